# SPDX-License-Identifier: MIT
"""Changes to an input, each by a given source of randomness: of bytes, of CBOR, of DER and of JSON items."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

MAX_NESTING = 24  # levels of structure that a change reaches into

_ODD_CBOR = tuple(
    bytes.fromhex(text)
    for text in (
        "00", "20", "40", "60", "80", "a0", "f6", "f4", "f5", "f7", "ff", "1818", "1bffffffffffffffff",
        "3bffffffffffffffff", "5bffffffffffffffff", "9bffffffffffffffff", "bbffffffffffffffff", "5fff", "9fff", "bfff",
        "5f4100ff", "7f6161ff", "c100", "c249ffffffffffffffffff", "d81c80", "d81d00", "d9d9f700", "d8236161", "f90000",
        "fb7ff0000000000000", "f97e00", "f818", "f8ff", "1c", "5c00", "fc", "62c328",
        "a1f600", "a200000000", "813900ff",
    )
)  # fmt: skip
_ODD_JSON: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 63, 1 << 200, 1.5, "", "\0", "\ud800", "../x", "/", "//", "a" * 5000, [], {}, [[]],
    {"": 0}, "00" * 48, "2027-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "1e9999", "read", "\u202e",
)  # fmt: skip


def change_bytes(data: bytes, random: Random) -> bytes:
    """Flip, insert, remove, repeat or cut some bytes."""
    raw = bytearray(data)
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(raw) + 1)
        stop = min(len(raw), start + random.choice((0, 1, 1, 2, 4, 8, 64)))
        match random.randrange(6):
            case 0 if raw:
                raw[min(start, len(raw) - 1)] ^= 1 << random.randrange(8)
            case 1:
                raw[start:stop] = random.randbytes(random.choice((0, 1, 2, 4, 8)))
            case 2:
                raw[start:start] = raw[start:stop]
            case 3:
                del raw[start:stop]
            case 4:
                raw[start:stop] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (stop - start)
            case _:
                if random.randrange(8) == 0:
                    del raw[start:]
    return bytes(raw)


# CBOR (RFC 8949 3)


@dataclass(frozen=True, slots=True)
class _Item:
    start: int
    body: int  # where its head ends
    stop: int
    major: int


def change_cbor(data: bytes, random: Random) -> bytes:
    """Change one item of an encoding: leave out, repeat, replace, wrap it, or rewrite its head."""
    items: list[_Item] = []
    _scan(data, 0, items, 0)
    if not items:
        return change_bytes(data, random)
    item = random.choice(items)
    before, raw, after = data[: item.start], data[item.start : item.stop], data[item.stop :]
    other = random.choice(items)
    match random.randrange(10):
        case 0:
            raw = b""
        case 1:
            raw += raw
        case 2 | 3:
            raw = random.choice(_ODD_CBOR)
        case 4:
            raw = data[other.start : other.stop]
        case 5:
            raw = random.choice((b"\xd2", b"\x81", b"\x82\0", b"\xa1\0", b"\xd8\x18", b"\x5f", b"\xc2")) + raw
        case 6 if item.major in (2, 3):
            size = random.choice((0, 1, 31, 32, 33, 47, 48, 49, 64, 96, 512, 1023, 1024, 1025, 4096))
            raw = _head(item.major, size) + (data[item.body : item.stop] + random.randbytes(64) * 70)[:size]
        case 7:
            raw = _long_head(raw, random) + data[item.body : item.stop]
        case 8 if item.major in (2, 3, 4, 5):
            tail = random.choice((b"\xff", b""))
            content = raw if item.major in (2, 3) else data[item.body : item.stop]
            raw = bytes([item.major << 5 | 31]) + content + tail
        case _:
            raw = data[item.start : item.body] + change_bytes(data[item.body : item.stop], random)
    return before + raw + after


def _head(major: int, argument: int) -> bytes:
    argument = min(argument, (1 << 64) - 1)
    if argument < 24:
        return bytes([major << 5 | argument])
    width = next(width for width in (1, 2, 4, 8) if argument < 1 << (8 * width))
    return bytes([major << 5 | (23 + width.bit_length())]) + argument.to_bytes(width, "big")


def _long_head(raw: bytes, random: Random) -> bytes:
    """Return another head of the same kind: a count off by one, a huge one, the same in a longer form."""
    major, info = raw[0] >> 5, raw[0] & 0x1F
    argument = info if info < 24 else int.from_bytes(raw[1 : 1 + (1 << (info - 24))], "big") if info < 28 else 0
    match random.randrange(4):
        case 0:
            return _head(major, argument + 1)
        case 1:
            return _head(major, max(0, argument - 1))
        case 2:
            return bytes([major << 5 | 27]) + argument.to_bytes(8, "big")
        case _:
            return _head(major, random.choice((0, 23, 24, 255, 256, 65535, 65536, 1 << 31, 1 << 32, (1 << 64) - 1)))


def _scan(data: bytes, start: int, items: list[_Item], depth: int) -> int | None:
    """Note the items from `start` on; return where the first one ends, None where the encoding breaks off."""
    if start >= len(data) or depth > MAX_NESTING:
        return None
    major, info = data[start] >> 5, data[start] & 0x1F
    width = 1 << (info - 24) if 24 <= info < 28 else 0
    body = start + 1 + width
    if 28 <= info < 31 or body > len(data):
        return None
    argument = int.from_bytes(data[start + 1 : body], "big") if width else info
    stop: int | None = body
    place = len(items)
    if info == 31:
        if major not in (2, 3, 4, 5):
            return None
        while stop is not None and stop < len(data) and data[stop] != 0xFF:
            stop = _scan(data, stop, items, depth + 1)
        stop = None if stop is None else stop + 1
    elif major in (2, 3):
        stop = body + argument
    elif major in (4, 5, 6):
        count = min(argument, len(data)) * (2 if major == 5 else 1) if major != 6 else 1
        for _ in range(count):
            stop = _scan(data, stop, items, depth + 1)
            if stop is None:
                break
    if stop is None or stop > len(data):
        return None
    items.insert(place, _Item(start, body, stop, major))
    return stop


# DER (X.690), with the lengths around a change put right


_TIMES = (0x17, 0x18)  # UTCTime, GeneralizedTime
_OBJECT_IDENTIFIER = 0x06
_ODD_TIMES = (
    (0x18, b"00000101000000Z"), (0x18, b"00010101000000Z"), (0x18, b"99991231235959Z"), (0x18, b"20260230000000Z"),
    (0x17, b"000101000000Z"), (0x17, b"491231235959Z"), (0x17, b"500101000000Z"), (0x17, b"2611011200Z"),
)  # fmt: skip
_ODD_NAMES = tuple(
    (_OBJECT_IDENTIFIER, bytes.fromhex(name))
    for name in ("551d13", "551d0f", "551d11", "551d1e", "551d63", "2a8648ce3d040302", "2b81040022", "80", "")
)


def change_der(data: bytes, random: Random) -> bytes:
    """Change one element of a DER encoding and put right the lengths of those around it."""
    nodes = _read_der(data, 0)
    if not nodes:
        return change_bytes(data, random)
    flat: list[tuple[list[Any], int]] = []
    _flatten(nodes, flat)
    siblings, index = random.choice(flat)
    tag, content = siblings[index]
    match random.randrange(8):
        case 0:
            del siblings[index]
        case 1 if tag in _TIMES:
            siblings[index] = random.choice(_ODD_TIMES)
        case 1 if tag == _OBJECT_IDENTIFIER:
            siblings[index] = random.choice(_ODD_NAMES)
        case 1:
            siblings.insert(index, siblings[index])
        case 2:
            others, other = random.choice(flat)
            kind, inner = others[other]  # as bytes: one that holds this place would make a loop
            siblings[index] = (kind, _write_der(inner) if isinstance(inner, list) else inner)
        case 3:
            siblings[index] = (random.choice((tag ^ 0x20, tag ^ 0x80, 0x05, 0x13, 0x0C, 0x02, 0x30, 0x31)), content)
        case 4 if len(siblings) > 1:
            siblings[index], siblings[index - 1] = siblings[index - 1], siblings[index]
        case _ if isinstance(content, bytes):
            siblings[index] = (tag, change_bytes(content, random))
        case _:
            siblings[index] = (tag, b"")
    return _write_der(nodes)


def _read_der(data: bytes, depth: int) -> list[Any] | None:
    nodes: list[Any] = []
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            return None
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            width = size & 0x7F
            if not 1 <= width <= 4 or at + width > len(data):
                return None
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        if at + size > len(data):
            return None
        content = data[at : at + size]
        at += size
        inner = content[1:] if tag == 0x03 and content[:1] == b"\0" else content
        # Constructed, or an extension's value; a short string that happens to read as DER does no harm.
        children = _read_der(inner, depth + 1) if (tag & 0x20 or tag == 0x04) and depth < MAX_NESTING else None
        nodes.append((tag, children if children else content))
    return nodes


def _flatten(nodes: list[Any], flat: list[tuple[list[Any], int]]) -> None:
    for index, (_, content) in enumerate(nodes):
        flat.append((nodes, index))
        if isinstance(content, list):
            _flatten(content, flat)


def _write_der(nodes: list[Any]) -> bytes:
    parts = []
    for tag, content in nodes:
        raw = _write_der(content) if isinstance(content, list) else content
        size = len(raw)
        width = (size.bit_length() + 7) // 8
        head = bytes([tag, size]) if size < 0x80 else bytes([tag, 0x80 | width]) + size.to_bytes(width, "big")
        parts.append(head + raw)
    return b"".join(parts)


# JSON


def change_json(data: bytes, random: Random) -> bytes:
    """Change one value or name of a JSON text; a text that is none is changed as bytes."""
    try:
        top = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(data, random)
    places: list[tuple[Any, Any]] = []
    _places(top, places, 0)
    if not places:
        return json.dumps(random.choice(_ODD_JSON)).encode()
    holder, key = random.choice(places)
    match random.randrange(7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), holder[key])
        case 1:
            holder[random.choice((*_names(places), "", "a", "PCR3", "__proto__"))] = holder[key]
        case 2:
            other, name = random.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))  # a copy: no loops
        case 3 if isinstance(holder[key], str):
            text = bytearray(holder[key].encode("utf-8", "replace"))
            holder[key] = change_bytes(bytes(text), random).decode("utf-8", "replace")
        case 4 if isinstance(holder[key], int):
            holder[key] += random.choice((-1, 1, 1 << 31, -(1 << 63)))
        case _:
            holder[key] = random.choice(_ODD_JSON)
    return json.dumps(top, ensure_ascii=random.random() < 0.5).encode("utf-8", "replace")


def _places(value: Any, places: list[tuple[Any, Any]], depth: int) -> None:
    if depth > MAX_NESTING or not isinstance(value, dict | list):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        places.append((value, key))
        _places(value[key], places, depth + 1)


def _names(places: list[tuple[Any, Any]]) -> list[str]:
    return sorted({key for _, key in places if isinstance(key, str)})
