# SPDX-License-Identifier: MIT
"""A strict reader of the little CBOR that evidence is made of (RFC 8949): what is not expected is refused.

Evidence reaches this reader before any signature is checked, so it knows no tag, float or indefinite string, builds
nothing but int, bytes, str, None, bool, tuple and dict, and reads no byte twice. A general decoder is lax here: it
ignores trailing bytes, takes integers in any width, and turns tags into dates, patterns and e-mail messages.
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import MalformedEvidence

MAX_DEPTH = 4  # containers in one another; a document's payload has 2
MAX_ITEMS = 64  # entries of one array or map; a document has 32 registers at most

Value = int | bytes | str | bool | tuple["Value", ...] | dict["Value", "Value"] | None

_TAG = 6  # RFC 8949 3.1: major type
_INDEFINITE = 31
_BREAK = b"\xff"
_SIMPLE_VALUES = {20: False, 21: True, 22: None}


class _Asked(NamedTuple):
    """What the caller of `decode` wants."""

    what: str
    max_items: int


def decode(raw: bytes, *, what: str, open_map: bool = False, max_items: int = MAX_ITEMS) -> Value:
    """Return the one item that `raw` is; raise MalformedEvidence, saying where.

    Heads have their shortest form and lengths are definite, so that a value has one encoding. `open_map` allows the
    outermost item to be an indefinite-length map, as AWS writes the payload since December 2025. `max_items` is the
    most entries of one array or map.
    """
    asked = _Asked(what, max_items)
    if open_map and raw[:1] == b"\xbf":
        value, offset = _open_map(raw, asked)
    else:
        value, offset = _item(raw, 0, 0, asked)
    if offset != len(raw):
        raise _error(asked, "bytes after the item", offset, "the end", f"{len(raw) - offset} bytes")
    return value


def encode_bytes(value: bytes) -> bytes:
    """Return a byte string's one encoding: what goes into a Sig_structure need not pass through a general encoder."""
    size = len(value)
    if size < 24:
        return bytes([0x40 | size]) + value  # RFC 8949 3.1: major type 2
    width = next(width for width in (1, 2, 4, 8) if size < 1 << (8 * width))
    return bytes([0x57 + width.bit_length()]) + size.to_bytes(width, "big") + value


def describe(value: Value) -> str:
    """Return what kind of value this is, and how large, for a message: nothing of its content."""
    match value:
        case bytes():
            return f"{len(value)} bytes"
        case str():
            return f"text of {len(value)} characters"
        case tuple():
            return f"array of {len(value)}"
        case dict():
            return f"map of {len(value)}"
        case None | bool():
            return {None: "null", False: "false", True: "true"}[value]
    return "integer"


# Each reader takes an offset and returns a value with the offset behind it: a document has some seventy items, and
# these are the few lines of Python that all of them pass through.


def _item(raw: bytes, start: int, depth: int, asked: _Asked) -> tuple[Value, int]:
    if start >= len(raw):
        raise _truncated(asked, raw, start, 1)
    first, offset = raw[start], start + 1
    major, argument = first >> 5, first & 0x1F  # RFC 8949 3: major type and argument
    if argument >= 24:
        if argument == 24 and offset < len(raw) and raw[offset] >= 24:  # one byte of it, as most have
            argument, offset = raw[offset], offset + 1
        else:
            argument, offset = _long_argument(raw, argument, start, asked)
    if major == 2 or major == 3:  # RFC 8949 3.1
        end = offset + argument
        if end > len(raw):
            raise _truncated(asked, raw, offset, argument)
        if major == 2:
            return raw[offset:end], end
        return _text(raw, offset, end, asked), end
    if major == 0:
        return argument, offset
    if major == 1:
        return -1 - argument, offset
    if major == 4:
        _enter(argument, depth, asked, offset)
        items: list[Value] = []
        for _ in range(argument):
            value, offset = _item(raw, offset, depth + 1, asked)
            items.append(value)
        return tuple(items), offset
    if major == 5:
        _enter(argument, depth, asked, offset)
        entries: dict[Value, Value] = {}
        for _ in range(argument):
            offset = _entry(entries, raw, offset, depth + 1, asked)
        return entries, offset
    if major == 7 and argument in _SIMPLE_VALUES and offset == start + 1:
        return _SIMPLE_VALUES[argument], offset
    raise _error(
        asked, "tag" if major == _TAG else "float or unknown simple value", start,
        "integer, bytes, text, array, map, bool or null", raw[start:offset],
    )  # fmt: skip


def _long_argument(raw: bytes, info: int, start: int, asked: _Asked) -> tuple[int, int]:
    """Read the argument that stands behind a head's first byte."""
    if info > 27:
        raise _error(
            asked, "indefinite length or break" if info == _INDEFINITE else "reserved head", start,
            "a definite length", raw[start : start + 1],
        )  # fmt: skip
    width: int = 1 << (info - 24)
    end = start + 1 + width
    if end > len(raw):
        raise _truncated(asked, raw, start + 1, width)
    argument = raw[start + 1] if width == 1 else int.from_bytes(raw[start + 1 : end], "big")
    if argument < (24 if width == 1 else 1 << (4 * width)):  # RFC 8949 4.1: the shortest form
        raise _error(asked, "head not in its shortest form", start, "fewer bytes", raw[start:end])
    return argument, end


def _open_map(raw: bytes, asked: _Asked) -> tuple[Value, int]:
    """Read a map `bf ... ff`; what is in it is definite."""
    offset = 1
    entries: dict[Value, Value] = {}
    while raw[offset : offset + 1] != _BREAK:
        if len(entries) == asked.max_items:
            raise _too_many(asked, offset, f"over {asked.max_items}")
        offset = _entry(entries, raw, offset, 1, asked)
    return entries, offset + 1


def _entry(entries: dict[Value, Value], raw: bytes, start: int, depth: int, asked: _Asked) -> int:
    key: Value
    if start < len(raw) and raw[start] < 24:  # a register's index
        key, offset = raw[start], start + 1
    else:
        key, offset = _item(raw, start, depth, asked)
    if type(key) is not int and type(key) is not str:
        raise _error(asked, "map key is neither integer nor text", start, "integer or text", describe(key))
    if key in entries:
        raise _error(asked, "duplicate map key", start, "each key once", key)
    entries[key], offset = _item(raw, offset, depth, asked)
    return offset


def _text(raw: bytes, start: int, end: int, asked: _Asked) -> str:
    try:
        return raw[start:end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(asked, "text is not UTF-8", end, "UTF-8", raw[start:end]) from error


def _enter(items: int, depth: int, asked: _Asked, offset: int) -> None:
    if depth >= MAX_DEPTH:
        raise _error(asked, "nested too deep", offset, f"at most {MAX_DEPTH} levels", f"over {MAX_DEPTH}")
    if items > asked.max_items:
        raise _too_many(asked, offset, items)


def _truncated(asked: _Asked, raw: bytes, offset: int, wanted: int) -> MalformedEvidence:
    return _error(asked, "truncated", offset, f"{wanted} bytes", f"{max(len(raw) - offset, 0)} bytes")


def _too_many(asked: _Asked, offset: int, items: object) -> MalformedEvidence:
    return _error(asked, "too many entries", offset, f"at most {asked.max_items}", items)


def _error(asked: _Asked, error: str, offset: int, expected: str, actual: object) -> MalformedEvidence:
    return MalformedEvidence(f"{asked.what}: {error} at byte {offset}", expected=expected, actual=actual)
