# SPDX-License-Identifier: MIT
"""The chain cache: whatever is in it, in whatever order it got there, each verdict is the one without it."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import chain as chain_module
from attestation.chain import CLOCK_LEEWAY, Chain, Root, verify_chain
from attestation.chain_cache import ChainCache
from attestation.errors import AttestationError, ClockOutOfStep, MalformedInput, UntrustedChain
from attestation.expectations import Expectations, ImageIs, NonceIs
from attestation.verifier import Appraisal, verify

from .documents import (
    IMAGE,
    MADE_AT,
    NITRO_FORMS,
    NONCE,
    P384_ORDER,
    Pki,
    der,
    make_certificate,
    make_document,
    make_pki,
)
from .test_chain import UNSOUND

HOUR = timedelta(hours=1)
SOUND = make_pki()
EXPECTED = Expectations.of(ImageIs.any_of([IMAGE]), NonceIs(NONCE))


@dataclass(frozen=True)
class Case:
    """One call of verify_chain."""

    leaf: bytes
    cabundle: tuple[bytes, ...]
    roots: tuple[Root, ...]
    at: datetime = MADE_AT
    made_at: datetime = MADE_AT

    def run(self, links: ChainCache | None) -> Chain | AttestationError:
        try:
            return verify_chain(
                self.leaf, self.cabundle, roots=self.roots, at=self.at, made_at=self.made_at, links=links
            )
        except AttestationError as error:
            return error


def _told(result: Chain | AttestationError) -> object:
    if isinstance(result, Chain):
        return result.root, result.links, result.key.public_numbers()
    return type(result), result.slug, str(result), result.hint


def _reissue(pki: Pki, *names: str, **changes: Mapping[str, Any]) -> Pki:
    """Make some certificates of a chain anew, from the first one named down, under the same CAs above."""
    certificates, keys = dict(pki.certificates), dict(pki.keys)
    order = list(NITRO_FORMS)
    for name in names:
        form = NITRO_FORMS[name].__class__(**{**_values(NITRO_FORMS[name]), **changes.get(name, {})})
        issuer = order[order.index(name) - 1]
        keys[name] = ec.generate_private_key(form.curve)
        certificates[name] = make_certificate(
            form, key=keys[name], issuer_name=NITRO_FORMS[issuer].name, issuer_key=keys[issuer]
        )
    return Pki(certificates, keys)


def _values(form: Any) -> dict[str, Any]:
    return {name: getattr(form, name) for name in form.__dataclass_fields__}


def _case(pki: Pki, **changes: Any) -> Case:
    return Case(**{"leaf": pki.leaf, "cabundle": tuple(pki.cabundle), "roots": (SOUND.root,), **changes})


NAMES = ("root", "regional", "zonal", "instance", "leaf")
_STRANGER = ec.generate_private_key(ec.SECP384R1())
_NAME_CONSTRAINTS = ((x509.NameConstraints([x509.DNSName("permitted.example")], None), True),)
_FORBIDDEN_NAME = ((x509.SubjectAlternativeName([x509.DNSName("elsewhere.example")]), False),)
_POLICIES = ((x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)]), False),)
_CONSTRAINED = _reissue(SOUND, "zonal", "instance", "leaf", zonal={"extensions": _NAME_CONSTRAINTS})
_WITH_POLICIES = _reissue(SOUND, "zonal", "instance", "leaf", zonal={"extensions": _POLICIES})
_ZONE = {"name": NITRO_FORMS["zonal"].name}
_DEEP = make_pki(regional={"path_length": None}, zonal={"path_length": None}, instance={"path_length": None})

# Chains that share as much as possible with one another, sound and not, so that each meets the others' heads.
PKIS: dict[str, Pki] = {
    "sound": SOUND,
    "next leaf": _reissue(SOUND, "leaf"),
    "leaf with longer life": _reissue(SOUND, "leaf", leaf={"after": timedelta(days=400)}),
    "next instance": _reissue(SOUND, "instance", "leaf"),
    "next zone": _reissue(SOUND, "zonal", "instance", "leaf"),
    "zone of short life": _reissue(SOUND, "zonal", "instance", "leaf", zonal={"after": HOUR}),
    "zone with too short a path": _reissue(SOUND, "zonal", "instance", "leaf", zonal={"path_length": 0}),
    "instance without keyCertSign": _reissue(SOUND, "instance", "leaf", instance={"usage": ("digital_signature",)}),
    "leaf is a CA": _reissue(SOUND, "leaf", leaf={"ca": True}),
    "leaf without digitalSignature": _reissue(SOUND, "leaf", leaf={"usage": ("content_commitment",)}),
    "leaf by a stranger": _reissue(SOUND, "leaf", leaf={"signed_by": _STRANGER}),
    "leaf on P-256": _reissue(SOUND, "leaf", leaf={"curve": ec.SECP256R1()}),
    "instance by a stranger": _reissue(SOUND, "instance", "leaf", instance={"signed_by": _STRANGER}),
    "with policies": _WITH_POLICIES,
    "with policies, leaf by a stranger": _reissue(_WITH_POLICIES, "leaf", leaf={"signed_by": _STRANGER}),
    "constrained": _CONSTRAINED,
    "constrained, leaf with a name": _reissue(_CONSTRAINED, "leaf", leaf={"extensions": _FORBIDDEN_NAME}),
    "instance of the zone's name": _reissue(
        SOUND, "instance", "leaf", instance=_ZONE, leaf={"issuer_name": _ZONE["name"]}
    ),
    "no path lengths": _DEEP,
}
AT = [
    MADE_AT, MADE_AT + timedelta(minutes=59), MADE_AT + HOUR + CLOCK_LEEWAY, MADE_AT + HOUR + 2 * CLOCK_LEEWAY,
    MADE_AT + 3 * HOUR + timedelta(seconds=4), MADE_AT + 4 * HOUR, MADE_AT + 30 * HOUR, MADE_AT - HOUR,
    MADE_AT - timedelta(days=3000), MADE_AT + timedelta(days=30_000),
]  # fmt: skip
ROOTS = [(SOUND.root,), (_DEEP.root,), (SOUND.root, _DEEP.root), ()]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    """A chain of the table, most often with some certificates of another one, in another order, changed or left out."""
    pki = PKIS[draw(st.sampled_from(sorted(PKIS)))]
    path = [*pki.cabundle, pki.leaf]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        place = draw(st.integers(0, len(path) - 1))
        match draw(st.sampled_from(["other", "flip", "swap", "drop", "twice", "cut"])):
            case "other":
                other = PKIS[draw(st.sampled_from(sorted(PKIS)))]
                path[place] = other.certificates[draw(st.sampled_from(NAMES))]
            case "flip" if path[place]:
                at = draw(st.integers(0, len(path[place]) - 1))
                path[place] = path[place][:at] + bytes([path[place][at] ^ 1]) + path[place][at + 1 :]
            case "swap":
                path[place], path[-1 - place] = path[-1 - place], path[place]
            case "drop" if len(path) > 2:
                del path[place]
            case "twice":
                path.insert(place, path[place])
            case "cut":
                path[place] = path[place][:-1]
    times = st.sampled_from(AT)
    return Case(path[-1], tuple(path[:-1]), draw(st.sampled_from(ROOTS)), draw(times), draw(times))


@settings(max_examples=80, deadline=None)
@given(st.lists(_cases(), min_size=2, max_size=5), st.sampled_from([1, 2, 4, 64]))
def test_any_cases_in_any_order_have_the_result_that_they_have_without(cases: list[Case], entries: int) -> None:
    links = ChainCache(entries=entries)
    for case in [*cases, *cases]:
        assert _told(case.run(links)) == _told(case.run(None))
        assert len(links) <= entries


@pytest.fixture(scope="module")
def warm() -> ChainCache:
    links = ChainCache()
    for pki in PKIS.values():
        for roots in ROOTS[:2]:
            _case(pki, roots=roots).run(links)
    return links


@pytest.mark.parametrize("name", PKIS)
def test_a_chain_after_all_the_others_has_the_result_that_it_has_without(name: str, warm: ChainCache) -> None:
    for at in AT:
        case = _case(PKIS[name], at=at, roots=ROOTS[2])
        assert _told(case.run(warm)) == _told(case.run(None))
    for roots in ROOTS:
        case = _case(PKIS[name], roots=roots)
        assert _told(case.run(warm)) == _told(case.run(None))


@pytest.mark.parametrize(("changes", "reason"), UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_chain_is_refused_each_time_and_never_remembered(changes: Any, reason: str) -> None:
    pki, links = make_pki(**changes), ChainCache()
    for _ in range(2):
        result = _case(pki, roots=(pki.root,)).run(links)
        assert type(result) is UntrustedChain
        assert not len(links)


def test_the_table_has_sound_and_unsound_chains() -> None:
    kinds = {type(_case(pki, roots=(SOUND.root, _DEEP.root)).run(None)) for pki in PKIS.values()}
    assert kinds == {Chain, UntrustedChain}
    assert isinstance(_case(PKIS["with policies"]).run(None), Chain)
    assert isinstance(_case(PKIS["constrained"]).run(None), UntrustedChain)


class _Counted:
    """How many certificates' signatures were verified each time that a path was validated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lengths: list[int] = []
        validate = chain_module.validate_path

        def counted(certificates: Any, *, sound: int = 1, **options: Any) -> Any:
            self.lengths.append(len(certificates) - sound)
            return validate(certificates, sound=sound, **options)

        monkeypatch.setattr(chain_module, "validate_path", counted)


def test_only_what_is_new_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, links = _Counted(monkeypatch), ChainCache()
    for name in ("sound", "sound", "next leaf", "next instance", "next instance", "next zone"):
        assert isinstance(_case(PKIS[name]).run(links), Chain)
    assert counted.lengths == [4, 1, 2, 3]


@pytest.mark.parametrize("name", ["zonal", "leaf"])
def test_the_other_signature_of_a_certificate_makes_another_certificate(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(r, s) and (r, n - s) are both signatures: the same certificate in other bytes, which nobody has verified yet."""
    counted, links = _Counted(monkeypatch), ChainCache()
    pki = PKIS["sound"]
    other = replace(pki, certificates={**pki.certificates, name: _malleate_certificate(pki.certificates[name])})
    for chain in (pki, other, pki, other):
        assert isinstance(_case(chain).run(links), Chain)
    assert counted.lengths == [4, {"zonal": 3, "leaf": 1}[name]]
    broken = replace(pki, certificates={**pki.certificates, name: pki.certificates[name][:-1] + b"\0"})
    assert isinstance(_case(broken).run(links), UntrustedChain)


def _malleate_certificate(certificate: bytes) -> bytes:
    parsed = x509.load_der_x509_certificate(certificate)
    r, s = decode_dss_signature(parsed.signature)
    algorithm = bytes.fromhex("300a06082a8648ce3d040303")
    signature = encode_dss_signature(r, P384_ORDER - s)
    return der(0x30, parsed.tbs_certificate_bytes + algorithm + der(0x03, b"\0" + signature))


def test_what_hangs_below_an_extension_of_another_kind_is_validated_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    links = ChainCache()
    assert isinstance(_case(_WITH_POLICIES).run(links), Chain)
    counted = _Counted(monkeypatch)
    assert isinstance(_case(_WITH_POLICIES).run(links), Chain)
    assert counted.lengths == []  # the very same chain
    assert isinstance(_case(_reissue(_WITH_POLICIES, "leaf")).run(links), Chain)
    assert counted.lengths == [3]  # the region's head has none, the zone's has


def test_a_head_of_one_depth_does_not_serve_another() -> None:
    """A CA may be sound above two certificates and not above three: its path length, or that of one above, says so."""
    for changes in ({"regional": {"path_length": 1}, "zonal": {"path_length": None}}, {"zonal": {"path_length": 0}}):
        links, pki = ChainCache(), make_pki(**changes)
        leaf = make_certificate(
            NITRO_FORMS["leaf"], key=_STRANGER, issuer_name=NITRO_FORMS["zonal"].name, issuer_key=pki.keys["zonal"]
        )
        assert isinstance(Case(leaf, tuple(pki.cabundle[:3]), (pki.root,)).run(links), Chain)
        result = _case(pki, roots=(pki.root,)).run(links)
        assert isinstance(result, UntrustedChain)
        assert "path length" in str(result)


def test_a_root_that_is_no_longer_chosen_is_not_trusted_out_of_memory() -> None:
    links = ChainCache()
    assert isinstance(_case(SOUND).run(links), Chain)
    for roots in ((), (_DEEP.root,)):
        result = _case(SOUND, roots=roots).run(links)
        assert isinstance(result, UntrustedChain)
        assert "was not chosen" in str(result)


def test_a_remembered_chain_expires() -> None:
    links = ChainCache()
    assert isinstance(_case(SOUND).run(links), Chain)
    assert isinstance(_case(SOUND, at=MADE_AT + 4 * HOUR).run(links), ClockOutOfStep)
    assert isinstance(_case(SOUND, at=MADE_AT - HOUR).run(links), ClockOutOfStep)
    assert isinstance(_case(SOUND).run(links), Chain)


def test_it_holds_no_more_than_it_may_and_drops_what_was_not_used_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    links = ChainCache(entries=5)
    first, second, third = (_case(_reissue(SOUND, "leaf")) for _ in range(3))
    for case in (first, second):
        case.run(links)
    assert len(links) == 5
    first.run(links)
    third.run(links)
    assert len(links) == 5
    counted = _Counted(monkeypatch)
    first.run(links)
    assert counted.lengths == []
    second.run(links)
    assert counted.lengths == [1]
    links.clear()
    assert not len(links)


@pytest.mark.parametrize("entries", [0, -1, 2**21])
def test_a_size_without_sense_is_refused(entries: int) -> None:
    with pytest.raises(MalformedInput, match="chain cache"):
        ChainCache(entries=entries)


def test_many_threads_share_one() -> None:
    links, cases = ChainCache(entries=3), [_case(pki) for pki in list(PKIS.values())[:6]]
    wanted = [_told(case.run(None)) for case in cases]
    wrong: list[object] = []

    def work(start: int) -> None:
        for turn in range(8):
            index = (start + turn) % len(cases)
            told = _told(cases[index].run(links))
            if told != wanted[index]:
                wrong.append(told)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(links) <= 3


def test_a_document_that_shares_a_remembered_chain_is_checked_for_all_else() -> None:
    links = ChainCache()
    roots = [SOUND.root]

    def told(document: bytes, at: datetime = MADE_AT, links: ChainCache | None = None) -> object:
        try:
            return verify(document, expected=EXPECTED, at=at, roots=roots, links=links)
        except AttestationError as error:
            return error.slug

    good = make_document(SOUND)
    assert isinstance(told(good, links=links), Appraisal)
    changed = good.replace(NONCE, NONCE[::-1])
    forged = make_document(Pki(SOUND.certificates, {**SOUND.keys, "leaf": _STRANGER}))
    for document in (good, changed, forged, make_document(SOUND, nonce=bytes(32)), good[:-1]):
        for at in (MADE_AT, MADE_AT + 4 * HOUR):
            assert told(document, at, links) == told(document, at)
    assert told(changed, links=links) == told(forged, links=links) == "bad-signature"


def test_a_root_goes_to_another_process_as_bytes() -> None:
    _case(SOUND).run(None)  # parses it
    again = pickle.loads(pickle.dumps(SOUND.root))
    assert again == SOUND.root
    assert isinstance(_case(SOUND, roots=(again,)).run(None), Chain)
