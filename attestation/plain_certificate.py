# SPDX-License-Identifier: MIT
"""The plain form that every certificate of Nitro's has had since 2021, and where in a path one may then stand.

Plain: version 3; ECDSA with SHA-384; dates as RFC 5280 4.1.2.5 writes them; critical basic constraints and a key usage,
perhaps key identifiers and one address of a list of revoked certificates; nothing else. For such a certificate the
rules of RFC 5280 6.1 come down to its `Place`. Each field is compared with the one way that DER has to write it. A
certificate of another form is not refused here: it has no place that this module could tell.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from .der import Fields, read_extensions, read_nested

_VERSION_3 = bytes.fromhex("a003020102")
ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")  # RFC 5758 3.2
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18  # for dates before 2050, and for those from then on
_EMPTY_NAME = bytes.fromhex("3000")
_ZERO = bytes.fromhex("020100")
_MAX_SERIAL = 2 + 21  # bytes: tag, length, the sign's byte and RFC 5280 4.1.2.2's 20

# Extensions, whole (RFC 5280 4.2.1). Basic constraints are critical always, key usage may be, the others never are.
_LEAF = bytes.fromhex("300c 0603551d13 0101ff 0402 3000")
_AUTHORITY = bytes.fromhex("300f 0603551d13 0101ff 0405 30030101ff")
_AUTHORITY_ABOVE = bytes.fromhex("3012 0603551d13 0101ff 0408 30060101ff 0201")  # and the path length
_USAGE = bytes.fromhex("300b 0603551d0f 0404 0302")  # and the number of unused bits, and the bits
_CRITICAL_USAGE = bytes.fromhex("300e 0603551d0f 0101ff 0404 0302")
_SUBJECT_KEY = bytes.fromhex("301d 0603551d0e 0416 0414")  # and a key identifier
_AUTHORITY_KEY = bytes.fromhex("301f 0603551d23 0418 30168014")
_KEY_IDENTIFIER = 20  # bytes: a SHA-1
_CRL_POINTS = bytes.fromhex("0603551d1f 04")  # where a list of revoked certificates is: never fetched
_CRL_POINT = bytes.fromhex("04 30 30 a0 a0 86")  # tags of one point, in one another: its full name is one URI

_DIGITAL_SIGNATURE, _KEY_CERT_SIGN = 0x80, 0x04  # RFC 5280 4.2.1.3: bits 0 and 5
_UNLIMITED = 1 << 16  # CAs below one that sets no limit


class Place(NamedTuple):
    """Where in a path a plain certificate may stand."""

    authority: bool  # above others; else it is a leaf, whose key signs data
    depth: int  # CAs that may stand between this one and the leaf


def read_place(fields: Fields, *, before: datetime, after: datetime) -> Place | None:
    """Return the place of a certificate that is valid from `before` to `after`, or None if it is not plain."""
    validity, signature = fields.validity, fields.signature
    if not (
        fields.version == _VERSION_3
        and len(fields.serial) <= _MAX_SERIAL
        and fields.serial[2] < 0x80  # not negative
        and fields.serial != _ZERO
        and fields.inner_algorithm == fields.algorithm == ECDSA_SHA384
        and fields.issuer != _EMPTY_NAME != fields.subject
        and validity[2] == _time_tag(before)
        and validity[4 + validity[3]] == _time_tag(after)
        and len(signature) == 2 + signature[1]  # a length of one byte
        and signature[2] == 0  # no unused bits
    ):
        return None
    try:
        return _place(read_extensions(fields.extensions))
    except (ValueError, IndexError):
        return None


def _time_tag(moment: datetime) -> int:
    return _UTC_TIME if moment.year < 2050 else _GENERALIZED_TIME


def _place(extensions: list[bytes]) -> Place | None:
    place: Place | None = None
    usage: int | None = None
    others: set[bytes] = set()  # by their type, each once
    for extension in extensions:
        size, start = len(extension), 2 if extension[1] < 0x80 else 2 + (extension[1] & 0x7F)
        if extension[:-1] == _AUTHORITY_ABOVE and extension[-1] < 0x80 and place is None:
            place = Place(authority=True, depth=extension[-1])
        elif extension[:-2] in (_USAGE, _CRITICAL_USAGE) and usage is None:
            usage = _bits(extension[-2], extension[-1])
        elif extension == _LEAF and place is None:
            place = Place(authority=False, depth=0)
        elif extension == _AUTHORITY and place is None:
            place = Place(authority=True, depth=_UNLIMITED)
        elif (
            (extension.startswith(_SUBJECT_KEY) and size == len(_SUBJECT_KEY) + _KEY_IDENTIFIER)
            or (extension.startswith(_AUTHORITY_KEY) and size == len(_AUTHORITY_KEY) + _KEY_IDENTIFIER)
            or (extension.startswith(_CRL_POINTS, start) and read_nested(extension, start + 5, _CRL_POINT).isascii())
        ) and extension[start : start + len(_CRL_POINTS)] not in others:
            others.add(extension[start : start + len(_CRL_POINTS)])
        else:
            return None
    if place is None or usage is None:
        return None
    if place.authority:
        return place if usage & _KEY_CERT_SIGN else None
    return place if usage & (_KEY_CERT_SIGN | _DIGITAL_SIGNATURE) == _DIGITAL_SIGNATURE else None


def _bits(unused: int, bits: int) -> int:
    """Return the bits of a key usage; raise ValueError if bits that it says are unused are set."""
    if unused > 7 or bits & ((1 << unused) - 1):
        raise ValueError("no bits of a key usage")
    return bits
