# SPDX-License-Identifier: MIT
"""Strict reading of JSON that others wrote: size first, no duplicate keys, exact types, every error names its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import MalformedInput, VeracruzError, escape

_HEX = re.compile(r"[0-9a-fA-F]*")


class _DuplicateKey(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class Node:
    """A decoded value, its place in the file (such as `programs[1].sha256`) and the error that it raises."""

    value: object
    place: str
    refusal: type[VeracruzError]

    def fail(self, what: str, *, expected: object = None, actual: object = None) -> NoReturn:
        """Raise the refusal, naming the place."""
        raise self.refusal(f"{self.place}: {what}" if self.place else what, expected=expected, actual=actual)

    def object(self, *required: str, optional: tuple[str, ...] = ()) -> dict[str, Node]:
        """Return the members of an object that has all required keys and no unknown one."""
        members = dict(self.members())
        for key, node in members.items():
            if key not in required and key not in optional:
                node.fail("unknown key", expected=", ".join((*required, *optional)))
        for key in required:
            if key not in members:
                self.fail("a key is missing", expected=key)
        return members

    def members(self, *, most: int = 1 << 16) -> Iterator[tuple[str, Node]]:
        """Yield the members of an object with free keys, at most `most`."""
        if not isinstance(self.value, dict):
            self._wrong_type("an object")
        if len(self.value) > most:
            self.fail("too many members", expected=f"at most {most}", actual=len(self.value))
        for key, value in self.value.items():
            plain = re.fullmatch(r"\w+", key, re.ASCII)
            step = f".{key}" if plain else f"[{escape(json.dumps(key))}]"
            yield key, Node(value, (self.place + step).removeprefix("."), self.refusal)

    def array(self, *, least: int = 0, most: int) -> list[Node]:
        """Return the elements of an array of `least` to `most`."""
        if not isinstance(self.value, list):
            self._wrong_type("an array")
        if not least <= len(self.value) <= most:
            self.fail("wrong number of elements", expected=f"{least}..{most}", actual=len(self.value))
        return [Node(value, f"{self.place}[{index}]", self.refusal) for index, value in enumerate(self.value)]

    def text(self, *, most: int, least: int = 0) -> str:
        """Return a string of `least` to `most` bytes of UTF-8 (a lone surrogate is none), without NUL."""
        if not isinstance(self.value, str):
            self._wrong_type("a string")
        try:
            size = len(self.value.encode("utf-8"))
        except UnicodeEncodeError:
            self.fail("no Unicode text", actual=self.value)
        if not least <= size <= most:
            self.fail("wrong length", expected=f"{least}..{most} bytes", actual=size)
        if "\0" in self.value:
            self.fail("a NUL character", actual=self.value)
        return self.value

    def match(self, pattern: str, *, form: str, most: int = 1024) -> str:
        """Return a string that matches a regular expression as a whole; `form` says it in words."""
        text = self.text(most=most)
        if not re.fullmatch(pattern, text, re.ASCII):
            self.fail("wrong form", expected=form, actual=text)
        return text

    def hexadecimal(self, size: int) -> bytes:
        """Return `size` bytes, written as hex digits."""
        if not isinstance(self.value, str):
            self._wrong_type(f"{2 * size} hex digits")
        if len(self.value) != 2 * size:
            self.fail("wrong length", expected=f"{2 * size} hex digits", actual=len(self.value))
        if not _HEX.fullmatch(self.value):
            self.fail("wrong form", expected=f"{2 * size} hex digits", actual=self.value)
        return bytes.fromhex(self.value)

    def integer(self, *, least: int, most: int) -> int:
        """Return an integer of `least` to `most`; true and 1.0 are none."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self._wrong_type("an integer")
        if not least <= self.value <= most:
            self.fail("out of range", expected=f"{least}..{most}", actual=self.value)
        return self.value

    def boolean(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            self._wrong_type("true or false")
        return self.value

    def _wrong_type(self, expected: str) -> NoReturn:
        names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
        self.fail("wrong type", expected=expected, actual=names.get(type(self.value), "a number"))


def read_json(raw: bytes, *, limit: int, what: str, refusal: type[VeracruzError] = MalformedInput) -> Node:
    """Decode one JSON text of at most `limit` bytes; raise `refusal` for anything else, duplicate keys included."""
    if len(raw) > limit:
        raise refusal(f"{what} is too long", expected=f"at most {limit} bytes", actual=len(raw))
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite
        )
    except _DuplicateKey as error:
        raise refusal(f"{what} has a duplicate key", expected="each key once", actual=error) from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise refusal(f"{what} is no JSON", expected="one JSON text in UTF-8", actual=error) from error
    return Node(value, "", refusal)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise _DuplicateKey(json.dumps(key))
        members[key] = value
    return members


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number out of range")
    return value
