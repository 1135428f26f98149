# SPDX-License-Identifier: MIT
"""Certificates that bend X.509, signed by their true issuer: what a lax reader of DER or of RFC 5280 lets through."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestation.chain import CLOCK_LEEWAY, Chain, ChainCache, Root, Window, aws_root, verify_chain
from attestation.chain_certificate import load_certificate
from attestation.chain_path import check_order, validate_by_library, validate_path
from attestation.der import Fields, read_fields
from attestation.errors import ClockOutOfStep, UntrustedChain

from .documents import (
    LEAF_USAGE,
    MADE_AT,
    NITRO_FORMS,
    P384_ORDER,
    PLACEHOLDER,
    Pki,
    der,
    make_certificate,
    make_pki,
    sign_tbs,
)

SOUND = make_pki()
ROOT = SOUND.root
NAMES = tuple(NITRO_FORMS)
_ISSUERS = dict(zip(NAMES[1:], NAMES, strict=False))


def _verify(pki: Pki, *, links: ChainCache | None = None) -> Chain:
    return verify_chain(pki.leaf, pki.cabundle, roots=[ROOT], at=MADE_AT, made_at=MADE_AT, links=links)


def _refused(pki: Pki) -> str:
    """Return why a chain is refused, after each way to judge it refused it."""
    warm = ChainCache()
    _verify(SOUND, links=warm)
    for links in (warm, warm, None):
        with pytest.raises(UntrustedChain) as refusal:
            _verify(pki, links=links)
        assert type(refusal.value) is UntrustedChain
    try:
        path = [load_certificate(pki.certificates[name], name) for name in NAMES]
        check_order(path)
    except UntrustedChain:
        return str(refusal.value)  # both need what was refused

    def judge(validate: Callable[..., object]) -> None:
        validate(path, at=MADE_AT)
        path[-1].key()  # cryptography does not look at the leaf's

    for way in (validate_path, validate_by_library):
        with pytest.raises(UntrustedChain):
            judge(way)
    return str(refusal.value)


def _with(name: str, certificate: bytes) -> Pki:
    return Pki({**SOUND.certificates, name: certificate}, SOUND.keys)


def _edited(name: str, edit: Callable[[Fields], dict[str, bytes]]) -> Pki:
    """Make one certificate with some fields (each with its tag and length) written otherwise, and sign it."""
    fields = read_fields(SOUND.certificates[name])
    changed = {**fields._asdict(), **edit(fields)}
    parts = (
        "version", "serial", "inner_algorithm", "issuer", "validity", "subject", "key", "extensions",
    )  # fmt: skip
    tbs = der(0x30, b"".join(changed[part] for part in parts))
    return _with(name, sign_tbs(tbs, SOUND.keys[_ISSUERS[name]]))


def _long(element: bytes) -> bytes:
    """Write an element's length in one byte more than it takes."""
    first = element[1]
    if first < 0x80:
        return element[:1] + b"\x81" + element[1:]
    return element[:1] + bytes([first + 1, 0]) + element[2:]


def _times(start: tuple[int, bytes], end: tuple[int, bytes] = (0x17, b"490101000000Z")) -> bytes:
    return der(0x30, der(*start) + der(*end))


_UTC, _GENERALIZED = 0x17, 0x18
_SOUND_START = (_UTC, b"261101110000Z")
_KEY = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey
_CURVE = bytes.fromhex("06052b81040022")
_ALGORITHM = bytes.fromhex("06082a8648ce3d040303")  # ecdsa-with-SHA384


def _point(fields: Fields) -> bytes:
    return fields.key[-97:]


def _key(algorithm: bytes, bits: bytes) -> dict[str, bytes]:
    return {"key": der(0x30, der(0x30, algorithm) + der(0x03, bits))}


def _off_curve(point: bytes) -> bytes:
    return point[:-1] + bytes([point[-1] ^ 1])


def _insert(fields: Fields, extension: str) -> dict[str, bytes]:
    """Put one more extension in front of all others."""
    inner = _content(_content(fields.extensions))
    return {"extensions": der(0xA3, der(0x30, bytes.fromhex(extension) + inner))}


def _content(element: bytes) -> bytes:
    """Return what an element holds."""
    return element[2 + (element[1] & 0x7F if element[1] > 0x80 else 0) :]


def _replace(fields: Fields, old: str, new: str) -> dict[str, bytes]:
    """Write an extension in another way."""
    inner = _content(_content(fields.extensions))
    assert inner.count(bytes.fromhex(old)) == 1
    return {"extensions": der(0xA3, der(0x30, inner.replace(bytes.fromhex(old), bytes.fromhex(new))))}


_LEAF = "300c 0603551d13 0101ff 0402 3000"
_PATH_0 = "3012 0603551d13 0101ff 0408 3006 0101ff 020100"
_LEAF_USAGE = "300b 0603551d0f 0404 0302 06c0"

# Of the leaf and of a CA alike.
_FIELDS: dict[str, Callable[[Fields], dict[str, bytes]]] = {
    "version 1 said aloud": lambda f: {"version": bytes.fromhex("a003020100")},
    "version 2": lambda f: {"version": bytes.fromhex("a003020101")},
    "version 4": lambda f: {"version": bytes.fromhex("a003020103")},
    "no version": lambda f: {"version": b""},
    "serial of zero": lambda f: {"serial": der(0x02, b"\0")},
    "negative serial": lambda f: {"serial": der(0x02, b"\xff" + bytes(8))},
    "serial with a byte too many": lambda f: {"serial": der(0x02, b"\0\x01")},
    "serial of 21 bytes and a sign": lambda f: {"serial": der(0x02, b"\0" + b"\xff" * 21)},
    "empty serial": lambda f: {"serial": der(0x02, b"")},
    "signed algorithm with NULL": lambda f: {"inner_algorithm": der(0x30, _ALGORITHM + b"\x05\0")},
    "signed algorithm of another hash": lambda f: {
        "inner_algorithm": f.inner_algorithm[:-1] + b"\x02",  # ecdsa-with-SHA256
    },
    "empty issuer": lambda f: {"issuer": b"\x30\0"},
    "empty subject": lambda f: {"subject": b"\x30\0"},
    "issuer in a longer length": lambda f: {"issuer": _long(f.issuer)},
    "subject in a longer length": lambda f: {"subject": _long(f.subject)},
    "key in a longer length": lambda f: {"key": _long(f.key)},
    "extensions in a longer length": lambda f: {"extensions": _long(f.extensions)},
    "no seconds": lambda f: {"validity": _times((_UTC, b"2611011100Z"))},
    "offset for Z": lambda f: {"validity": _times((_UTC, b"261101110000+0000"))},
    "local time": lambda f: {"validity": _times((_UTC, b"261101110000"))},
    "fraction of a second": lambda f: {"validity": _times((_GENERALIZED, b"20261101110000.5Z"))},
    "GeneralizedTime before 2050": lambda f: {"validity": _times((_GENERALIZED, b"20261101110000Z"))},
    "the end as GeneralizedTime before 2050": lambda f: {
        "validity": _times(_SOUND_START, (_GENERALIZED, b"20490101000000Z")),
    },
    "two digits that mean 1950": lambda f: {"validity": _times(_SOUND_START, (_UTC, b"500101000000Z"))},
    "a start before all UTCTimes": lambda f: {"validity": _times((_GENERALIZED, b"19491231235959Z"))},
    "the first year": lambda f: {"validity": _times((_GENERALIZED, b"00010101000000Z"))},
    "a leap second": lambda f: {"validity": _times((_UTC, b"251231235960Z"))},
    "the 30th of February": lambda f: {"validity": _times((_UTC, b"260230000000Z"))},
    "an end before the start": lambda f: {"validity": _times(_SOUND_START, (_UTC, b"261101105959Z"))},
    "one time": lambda f: {"validity": der(0x30, der(*_SOUND_START))},
    "three times": lambda f: {"validity": der(0x30, 3 * der(*_SOUND_START))},
    "curve left out": lambda f: _key(_KEY, b"\0" + _point(f)),
    "curve NULL": lambda f: _key(_KEY + b"\x05\0", b"\0" + _point(f)),
    "curve by its parameters": lambda f: _key(_KEY + b"\x30\x03\x02\x01\x01", b"\0" + _point(f)),
    "bytes behind the curve": lambda f: _key(_KEY + _CURVE + b"\x05\0", b"\0" + _point(f)),
    "algorithm ECDH": lambda f: _key(bytes.fromhex("06052b8104010c") + _CURVE, b"\0" + _point(f)),
    "unused bits in the key": lambda f: _key(_KEY + _CURVE, b"\x01" + _point(f)[:-1] + b"\0"),
    "hybrid point": lambda f: _key(_KEY + _CURVE, b"\0" + bytes([6 | _point(f)[-1] & 1]) + _point(f)[1:]),
    "point off the curve": lambda f: _key(_KEY + _CURVE, b"\0" + _off_curve(_point(f))),
    "coordinates that are no residues": lambda f: _key(_KEY + _CURVE, b"\0\x04" + b"\xff" * 96),
    "point at infinity": lambda f: _key(_KEY + _CURVE, b"\0\0"),
    "point of zeros": lambda f: _key(_KEY + _CURVE, b"\0\x04" + bytes(96)),
    "bytes behind the point": lambda f: _key(_KEY + _CURVE, b"\0" + _point(f) + b"\0"),
    "no extensions": lambda f: {"extensions": b""},
    "extensions of none": lambda f: {"extensions": bytes.fromhex("a3023000")},
    "bytes behind the extensions": lambda f: {"extensions": f.extensions + b"\x05\0"},
    "extensions twice": lambda f: {"extensions": 2 * f.extensions},
    "extension that says it is not critical": lambda f: _insert(f, "300c 0603551d63 010100 0402 0500"),
    "extension with a lax boolean": lambda f: _insert(f, "300c 0603551d63 010101 0402 0500"),
    "second basic constraints": lambda f: _insert(f, _LEAF),
    "second key usage": lambda f: _insert(f, _LEAF_USAGE),
    "two key identifiers": lambda f: _insert(f, 2 * ("301d 0603551d0e 0416 0414" + "00" * 20)),
    "list of revoked certificates that is no DER": lambda f: _insert(f, "300a 0603551d1f 0403 ffffff"),
    "list of revoked certificates with a longer length": lambda f: _insert(
        f, "3018 0603551d1f 0411 30810e 300c a00a a008 8606 687474703a2f",
    ),
    "list of revoked certificates with bytes behind it": lambda f: _insert(
        f, "3018 0603551d1f 0411 300e 300c a00a a008 8606 687474703a2f 05",
    ),
    "critical list of revoked certificates": lambda f: _insert(
        f, "3019 0603551d1f 0101ff 040f 300d 300b a009 a007 8605 687474703a",
    ),
    "constraints on directory names that are not critical": lambda f: _insert(
        f, "301e 0603551d1e 0417 3015 a113 3011 a40f 300d 310b 3009 0603550406 13025553",
    ),
    "constraints on policies that are not critical": lambda f: _insert(f, "300c 0603551d24 0405 3003 800100"),
    "policy mappings": lambda f: _insert(f, "3015 0603551d21 040e 300c 300a 06032a0304 06032a0305"),
    "inhibited policies that are not critical": lambda f: _insert(f, "300a 0603551d36 0403 020100"),
    "other purposes": lambda f: _insert(f, "3013 0603551d25 040c 300a 06082b06010505070302"),
    "critical alternative name": lambda f: _insert(f, "300f 0603551d11 0101ff 0405 3003820161"),
    "critical purposes, any": lambda f: _insert(f, "3012 0603551d25 0101ff 0408 3006 0604551d2500"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("name", ["instance", "leaf"])
@pytest.mark.parametrize("edit", _FIELDS.values(), ids=_FIELDS)
def test_refuses_a_certificate_with_an_odd_field(edit: Callable[[Fields], dict[str, bytes]], name: str) -> None:
    assert _refused(_edited(name, edit))


def test_what_the_tests_edit_is_sound_unless_edited() -> None:
    for name in NAMES[1:]:
        _verify(_edited(name, lambda fields: {}))
    _verify(_edited("leaf", lambda fields: {"validity": _times(_SOUND_START)}))
    _verify(_edited("leaf", lambda fields: _key(_KEY + _CURVE, b"\0" + _point(fields))))
    _verify(_edited("leaf", lambda fields: _insert(fields, "300a 0603551d63 0403 040100")))
    point = "3017 0603551d1f 0410 300e 300c a00a a008 8606 687474703a2f"
    _verify(_edited("instance", lambda fields: _insert(fields, point)))


_LEAF_EXTENSIONS = {
    "cA that is said to be false": (_LEAF, "300f 0603551d13 0101ff 0405 3003010100"),
    "path length of a leaf": (_LEAF, "300f 0603551d13 0101ff 0405 3003020100"),
    "bytes behind basic constraints": (_LEAF, "300e 0603551d13 0101ff 0404 30000500"),
    "unused bits that are set": (_LEAF_USAGE, "300b 0603551d0f 0404 0302 07c0"),
    "eight unused bits": (_LEAF_USAGE, "300b 0603551d0f 0404 0302 0880"),
    "no bits": (_LEAF_USAGE, "300a 0603551d0f 0403 030100"),
    "key usage that is an OCTET STRING": (_LEAF_USAGE, "300b 0603551d0f 0404 0402 06c0"),
    "bytes behind the key usage": (_LEAF_USAGE, "300d 0603551d0f 0406 0302 06c0 0500"),
    "keyCertSign too": (_LEAF_USAGE, "300b 0603551d0f 0404 0302 0284"),
}
_CA_EXTENSIONS = {
    "negative path length": (_PATH_0, "3012 0603551d13 0101ff 0408 3006 0101ff 0201ff"),
    "path length with a byte too many": (_PATH_0, "3013 0603551d13 0101ff 0409 3007 0101ff 02020000"),
    "lax cA": (_PATH_0, "3012 0603551d13 0101ff 0408 3006 010101 020100"),
    "path length without cA": (_PATH_0, "300f 0603551d13 0101ff 0405 3003 020100"),
}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        *(pytest.param("leaf", old, new, id=what) for what, (old, new) in _LEAF_EXTENSIONS.items()),
        *(pytest.param("instance", old, new, id=what) for what, (old, new) in _CA_EXTENSIONS.items()),
    ],
)
def test_refuses_a_certificate_whose_place_is_written_oddly(name: str, old: str, new: str) -> None:
    assert _refused(_edited(name, lambda fields: _replace(fields, old, new)))


def _sealed(signature: bytes, *, algorithm: bytes = der(0x30, _ALGORITHM), behind: bytes = b"") -> Pki:
    """Make the leaf anew around its signed part."""
    signed = read_fields(SOUND.leaf).signed
    return _with("leaf", der(0x30, signed + algorithm + signature + behind))


_SIGNATURE = read_fields(SOUND.leaf).signature[3:]
_R, _S = decode_dss_signature(_SIGNATURE)


def _integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(49, "big", signed=True))  # not the shortest for most


_SEALS: dict[str, Pki] = {
    "unused bits in the signature": _sealed(der(0x03, b"\x04" + _SIGNATURE[:-1] + b"\0")),
    "constructed signature": _sealed(der(0x23, der(0x03, b"\0" + _SIGNATURE))),
    "signature that is an OCTET STRING": _sealed(der(0x04, _SIGNATURE)),
    "signature in a longer length": _sealed(_long(der(0x03, b"\0" + _SIGNATURE))),
    "bytes behind the signature": _sealed(der(0x03, b"\0" + _SIGNATURE), behind=b"\x05\0"),
    "bytes behind s in the signature": _sealed(der(0x03, b"\0" + _SIGNATURE + b"\0")),
    "empty signature": _sealed(der(0x03, b"\0")),
    "no signature at all": _sealed(der(0x03, b"")),
    "r and s of zero": _sealed(der(0x03, b"\0" + encode_dss_signature(0, 0))),
    "s of n": _sealed(der(0x03, b"\0" + encode_dss_signature(_R, P384_ORDER))),
    "r and s beyond n": _sealed(der(0x03, b"\0" + encode_dss_signature(_R + P384_ORDER, _S))),
    "negative s": _sealed(der(0x03, b"\0" + der(0x30, _integer(_R) + _integer(-_S)))),
    "s with a byte too many": _sealed(der(0x03, b"\0" + der(0x30, _integer(_R) + der(0x02, b"\0\0" + b"\x01" * 47)))),
    "algorithm with NULL": _sealed(der(0x03, b"\0" + _SIGNATURE), algorithm=der(0x30, _ALGORITHM + b"\x05\0")),
    "algorithm of another hash": _sealed(der(0x03, b"\0" + _SIGNATURE), algorithm=der(0x30, _ALGORITHM[:-1] + b"\x02")),
}


@pytest.mark.parametrize("pki", _SEALS.values(), ids=_SEALS)
def test_refuses_a_leaf_with_an_odd_seal(pki: Pki) -> None:
    assert _refused(pki)


def test_accepts_the_other_signature_of_a_pair() -> None:
    """(r, n - s) is a signature too. The memory holds it as another certificate: it never goes by a signature."""
    links = ChainCache()
    twin = _sealed(der(0x03, b"\0" + encode_dss_signature(_R, P384_ORDER - _S)))
    assert _verify(SOUND, links=links).links == _verify(twin, links=links).links


def _issued(name: str, subject: str, issuer: str, **changes: Any) -> bytes:
    """Return a certificate of one's form, with the key of that one, by the key of its issuer."""
    form = NITRO_FORMS[name]
    values = {field: getattr(form, field) for field in form.__dataclass_fields__} | {"name": subject} | changes
    return make_certificate(
        type(form)(**values), key=SOUND.keys[name], issuer_name=issuer, issuer_key=SOUND.keys[_ISSUERS[name]]
    )


def test_refuses_paths_that_turn_back_on_themselves() -> None:
    zone, instance = NITRO_FORMS["zonal"].name, NITRO_FORMS["instance"].name
    region, leaf = NITRO_FORMS["regional"].name, NITRO_FORMS["leaf"].name
    for pki in (
        _with("instance", _issued("instance", zone, zone)),  # issued in its own name
        _with("leaf", _issued("leaf", instance, instance)),
        _with("leaf", _issued("leaf", region, instance)),  # the name of one above
        _with("leaf", SOUND.certificates["instance"]),
        _with("leaf", SOUND.certificates["root"]),
        _with("instance", SOUND.certificates["root"]),
        _with("zonal", _issued("zonal", zone, leaf)),  # a ring of names
    ):
        assert _refused(pki)


@pytest.mark.parametrize("name", ["zonal", "leaf"])
def test_purposes_that_include_any_are_no_constraint(name: str) -> None:
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, ExtendedKeyUsageOID.CLIENT_AUTH])
    form = NITRO_FORMS[name].name
    issuer = NITRO_FORMS[_ISSUERS[name]].name
    _verify(_with(name, _issued(name, form, issuer, extensions=((purposes, False),))))


def test_a_leaf_may_sign_lists_of_revoked_certificates_but_no_certificates() -> None:
    names = NITRO_FORMS["leaf"].name, NITRO_FORMS["instance"].name
    _verify(_with("leaf", _issued("leaf", *names, usage=(*LEAF_USAGE, "crl_sign"))))
    told = _refused(_with("leaf", _issued("leaf", *names, usage=(*LEAF_USAGE, "key_cert_sign"))))
    assert "for certificates too" in told


def test_a_root_is_told_by_its_bytes_not_by_what_it_is_called() -> None:
    assert Root(ROOT.certificate, aws_root().name).development
    assert not Root(aws_root().certificate, ROOT.name).development


@pytest.mark.parametrize("extensions", [(), PLACEHOLDER], ids=["plain", "by cryptography"])
def test_a_time_means_the_same_in_any_zone(extensions: Any) -> None:
    pki = make_pki(leaf={"extensions": extensions})
    window = Window.of([load_certificate(pki.certificates[name], name) for name in NAMES])
    for hours in (-12, 0, 14):
        zone = timezone(timedelta(hours=hours))
        for moment, leeway in ((window.not_before, -CLOCK_LEEWAY), (window.not_after, CLOCK_LEEWAY)):
            at = (moment + leeway).astimezone(zone)
            verify_chain(pki.leaf, pki.cabundle, roots=[pki.root], at=at, made_at=MADE_AT)
            late = at + leeway / 1_000_000
            with pytest.raises(ClockOutOfStep):
                verify_chain(pki.leaf, pki.cabundle, roots=[pki.root], at=late, made_at=MADE_AT)
