# SPDX-License-Identifier: MIT
"""A strict reader of the little CBOR that evidence is made of (RFC 8949): what is not expected is refused.

Evidence reaches this reader before any signature is checked, so it knows no tag, float or indefinite string, builds
nothing but int, bytes, str, None, bool, tuple and dict, and reads no byte twice. A general decoder is lax here: it
ignores trailing bytes, takes integers in any width, and turns tags into dates, patterns and e-mail messages.
"""

from __future__ import annotations

from .errors import MalformedEvidence

MAX_DEPTH = 4  # containers in one another; a document's payload has 2
MAX_ITEMS = 64  # entries of one array or map; a document has 32 registers at most

Value = int | bytes | str | bool | tuple["Value", ...] | dict["Value", "Value"] | None

_TAG = 6  # RFC 8949 3.1: major type
_INDEFINITE = 31
_BREAK = b"\xff"
_SIMPLE_VALUES = {20: False, 21: True, 22: None}


def decode(raw: bytes, *, what: str, open_map: bool = False, max_items: int = MAX_ITEMS) -> Value:
    """Return the one item that `raw` is; raise MalformedEvidence, saying where.

    Heads have their shortest form and lengths are definite, so that a value has one encoding. `open_map` allows the
    outermost item to be an indefinite-length map, as AWS writes the payload since December 2025. `max_items` is the
    most entries of one array or map.
    """
    reader = _Reader(raw, what, max_items)
    value = reader.open_map() if open_map and raw[:1] == b"\xbf" else reader.item(depth=0)
    if reader.offset != len(raw):
        raise reader.error("bytes after the item")
    return value


class _Reader:
    def __init__(self, raw: bytes, what: str, max_items: int) -> None:
        self._raw = raw
        self._what = what
        self._max_items = max_items
        self.offset = 0

    def error(self, what: str) -> MalformedEvidence:
        return MalformedEvidence(f"{self._what}: {what} at byte {self.offset}")

    def _take(self, size: int) -> bytes:
        if size > len(self._raw) - self.offset:
            raise self.error("truncated")
        taken = self._raw[self.offset : self.offset + size]
        self.offset += size
        return taken

    def _head(self) -> tuple[int, int]:
        """Read a major type and its argument (RFC 8949 3)."""
        start = self.offset
        (first,) = self._take(1)
        major, info = first >> 5, first & 0x1F
        if info < 24:
            return major, info
        if info > 27:
            self.offset = start
            raise self.error("indefinite length or break" if info == _INDEFINITE else "reserved head")
        width: int = 1 << (info - 24)
        argument = int.from_bytes(self._take(width), "big")
        if argument < (24 if width == 1 else 1 << (4 * width)):  # RFC 8949 4.1: the shortest form
            self.offset = start
            raise self.error("head not in its shortest form")
        return major, argument

    def item(self, *, depth: int) -> Value:
        start = self.offset
        major, argument = self._head()
        match major:  # RFC 8949 3.1
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self._take(argument)
            case 3:
                return self._text(argument)
            case 4:
                self._enter(argument, depth)
                return tuple(self.item(depth=depth + 1) for _ in range(argument))
            case 5:
                self._enter(argument, depth)
                entries: dict[Value, Value] = {}
                for _ in range(argument):
                    self._entry(entries, depth + 1)
                return entries
            case 7 if argument in _SIMPLE_VALUES and self.offset == start + 1:
                return _SIMPLE_VALUES[argument]
        self.offset = start
        raise self.error("tag" if major == _TAG else "float or unknown simple value")

    def open_map(self) -> Value:
        """Read a map `bf ... ff`; what is in it is definite."""
        self.offset = 1
        entries: dict[Value, Value] = {}
        while self._raw[self.offset : self.offset + 1] != _BREAK:
            if len(entries) == self._max_items:
                raise self.error("too many entries")
            self._entry(entries, 1)
        self.offset += 1
        return entries

    def _entry(self, entries: dict[Value, Value], depth: int) -> None:
        start = self.offset
        key = self.item(depth=depth)
        if type(key) is not int and type(key) is not str:
            self.offset = start
            raise self.error("map key is neither integer nor text")
        if key in entries:
            self.offset = start
            raise self.error("duplicate map key")
        entries[key] = self.item(depth=depth)

    def _text(self, size: int) -> str:
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error("text is not UTF-8") from error

    def _enter(self, items: int, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise self.error("nested too deep")
        if items > self._max_items:
            raise self.error("too many entries")
