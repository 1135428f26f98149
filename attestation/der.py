# SPDX-License-Identifier: MIT
"""A certificate's fields as the bytes that stand in it (RFC 5280 4.1), to be compared and verified byte for byte.

Only for certificates that `cryptography` has parsed: what is strict DER has these fields at one place alone. Anything
else raises ValueError here too, but is not described. What `cryptography` reads later or never (the contents of an
extension) is held to DER's lengths here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SEQUENCE = 0x30
_SET = 0x31
_VERSION = 0xA0
_INTEGER = 0x02
_BIT_STRING = 0x03
_EXTENSIONS = 0xA3
_STRINGS = (0x0C, 0x13)  # UTF8String, PrintableString
_ATTRIBUTE = bytes.fromhex("06035504")  # an OID of X.520 5 up to its last number
# Attributes by that number: what RFC 4514 3 calls them, and the sizes that RFC 5280 A.1 allows where it does.
_NAMES = {
    3: ("CN=", 1, 64), 6: ("C=", 2, 2), 7: ("L=", 1, 116), 8: ("ST=", 1, 116), 10: ("O=", 1, 64), 11: ("OU=", 1, 64),
}  # fmt: skip
_PLAIN = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9 .:-]*[A-Za-z0-9])?")  # nothing that RFC 4514 2.4 escapes


class Fields(NamedTuple):
    """The parts of a certificate, each with its own tag and length."""

    signed: bytes  # TBSCertificate: what the issuer signed
    version: bytes  # empty where it is left out
    serial: bytes
    inner_algorithm: bytes  # the signature's, as it was signed
    issuer: bytes
    validity: bytes
    subject: bytes
    key: bytes  # SubjectPublicKeyInfo
    extensions: bytes  # [3], or whatever else stands behind the key
    algorithm: bytes  # the signature's, as it stands beside it
    signature: bytes  # BIT STRING


def read_fields(certificate: bytes) -> Fields:
    """Return the parts of a certificate; raise ValueError without them, or with bytes behind them."""
    try:
        signed = _content(certificate, 0)
        version = _content(certificate, signed)
        serial = _end(certificate, version, _VERSION) if certificate[version] == _VERSION else version
        inner = _end(certificate, serial, _INTEGER)  # each begins where the one before it ends
        issuer = _end(certificate, inner, _SEQUENCE)
        validity = _end(certificate, issuer, _SEQUENCE)
        subject = _end(certificate, validity, _SEQUENCE)
        key = _end(certificate, subject, _SEQUENCE)
        rest = _end(certificate, key, _SEQUENCE)
        algorithm = _end(certificate, signed, _SEQUENCE)
        signature = _end(certificate, algorithm, _SEQUENCE)
        end = _end(certificate, signature, _BIT_STRING)
    except IndexError as error:
        raise ValueError("truncated") from error
    if end != len(certificate):
        raise ValueError("bytes after the certificate")
    return Fields(
        signed=certificate[signed:algorithm],
        version=certificate[version:serial],
        serial=certificate[serial:inner],
        inner_algorithm=certificate[inner:issuer],
        issuer=certificate[issuer:validity],
        validity=certificate[validity:subject],
        subject=certificate[subject:key],
        key=certificate[key:rest],
        extensions=certificate[rest:algorithm],
        algorithm=certificate[algorithm:signature],
        signature=certificate[signature:end],
    )


def read_extensions(raw: bytes) -> list[bytes]:
    """Return each extension of `Fields.extensions`; raise ValueError if it is not just those."""
    found: list[bytes] = []
    try:
        outer = _content(raw, 0, _EXTENSIONS)
        offset = _content(raw, outer, _SEQUENCE)
        if not len(raw) == _end(raw, 0, _EXTENSIONS) == _end(raw, outer, _SEQUENCE):
            raise ValueError("bytes behind the extensions")
        while offset < len(raw):
            end = _end(raw, offset, _SEQUENCE)
            found.append(raw[offset:end])
            offset = end
    except IndexError as error:
        raise ValueError("truncated") from error
    return found


def read_nested(raw: bytes, offset: int, tags: bytes) -> bytes:
    """Return the content of the innermost of elements that are each the whole content of the one before.

    The outermost is at `offset` and ends with `raw`. Raises ValueError if it is not so.
    """
    try:
        for tag in tags:
            if _end(raw, offset, tag) != len(raw):
                raise ValueError(f"bytes behind the element at byte {offset}")
            offset = _content(raw, offset, tag)
    except IndexError as error:
        raise ValueError("truncated") from error
    return raw[offset:]


def read_plain_name(name: bytes) -> str | None:
    """Return a name (DER) as RFC 4514 writes it, or None if it is not of the plain kind that Nitro's are.

    Plain: one attribute a step, of a usual type, in letters that need no escape. Such a name says the same to every
    reader, and this one takes a tenth of a general one's time.
    """
    parts: list[str] = []
    try:
        offset = _content(name, 0)
        while offset < len(name):
            size = name[offset + 10]
            value = name[offset + 11 : offset + 11 + size]
            text, least, most = _NAMES[name[offset + 8]]
            if (
                name[offset : offset + 8] != bytes((_SET, size + 9, _SEQUENCE, size + 7)) + _ATTRIBUTE
                or name[offset + 9] not in _STRINGS
                or not least <= size <= most
                or not _PLAIN.fullmatch(value)
            ):
                return None
            parts.append(text + value.decode("ascii"))
            offset += 11 + size
    except (IndexError, KeyError, ValueError):
        return None
    return ",".join(reversed(parts)) if parts and offset == len(name) else None


def _content(raw: bytes, offset: int, tag: int = _SEQUENCE) -> int:
    """Return where the content of the element at `offset` begins."""
    if raw[offset] != tag:
        raise ValueError(f"no element {tag:#x} at byte {offset}")
    first = raw[offset + 1]
    return offset + 2 + (first & 0x7F if first > 0x80 else 0)


def _end(raw: bytes, offset: int, tag: int) -> int:
    """Return where the element at `offset` ends."""
    if raw[offset] != tag:
        raise ValueError(f"no element {tag:#x} at byte {offset}")
    first = raw[offset + 1]
    start, size = offset + 2, first
    if first >= 0x80:  # X.690 8.1.3.5: so many bytes of length
        start += first & 0x7F
        size = int.from_bytes(raw[offset + 2 : start], "big")
        if size < 0x80 or not raw[offset + 2]:  # X.690 10.1
            raise ValueError(f"length not in its shortest form at byte {offset}")
    if start + size > len(raw):
        raise IndexError(offset)
    return start + size
