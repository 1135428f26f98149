# SPDX-License-Identifier: MIT
"""The development root and the chains under it."""

from __future__ import annotations

import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.chain import load_root, verify_chain
from attestation.errors import ClockOutOfStep
from attestation.limits import MAX_CERTIFICATE
from host_shim.dev_pki import LEAF_LIFE, LEAF_MARGIN, Chain, Leaf, make_root, open_root
from host_shim.errors import UnsafeState

AT = datetime(2026, 11, 22, 12, 0, 0, 500_000, tzinfo=UTC)


def clock() -> datetime:
    return AT


def verify(leaf: Leaf, at: datetime, made_at: datetime | None = None) -> None:
    root = x509.load_der_x509_certificate(leaf.cabundle[0])
    pem = root.public_bytes(Encoding.PEM)
    verify_chain(leaf.certificate, leaf.cabundle, roots=[load_root(pem)], at=at, made_at=made_at or at)


def test_the_root_is_made_once_and_private(tmp_path: Path) -> None:
    first = open_root(clock, tmp_path)
    second = open_root(clock, tmp_path)
    assert first.authority.certificate == second.authority.certificate
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((first.path.parent / "root.key").stat().st_mode) == 0o600
    assert load_root(first.path.read_bytes()).development
    assert [path.name for path in tmp_path.iterdir()] == ["dev-root"]


def test_the_root_says_that_it_protects_nothing(tmp_path: Path) -> None:
    name = load_root(open_root(clock, tmp_path).path.read_bytes()).name
    assert "UNSAFE" in name
    assert "protects nothing" in name


def _serial(home: Path) -> int:
    return open_root(clock, home).authority.certificate.serial_number


def test_creators_at_once_get_the_same_root(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        serials = pool.map(_serial, [tmp_path] * 8)
    assert len(set(serials)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["dev-root"]


def test_refuses_a_key_that_others_can_read(tmp_path: Path) -> None:
    key = open_root(clock, tmp_path).path.parent / "root.key"
    key.chmod(0o644)
    with pytest.raises(UnsafeState, match="readable by others"):
        open_root(clock, tmp_path)


def test_refuses_a_directory_that_others_can_write(tmp_path: Path) -> None:
    open_root(clock, tmp_path).path.parent.chmod(0o777)
    with pytest.raises(UnsafeState, match="not this user's own"):
        open_root(clock, tmp_path)


def test_refuses_a_key_of_another_certificate(tmp_path: Path) -> None:
    ours, theirs = open_root(clock, tmp_path / "a"), open_root(clock, tmp_path / "b")
    ours.path.write_bytes(theirs.path.read_bytes())
    with pytest.raises(UnsafeState, match="not the certificate's") as caught:
        open_root(clock, tmp_path / "a")
    assert caught.value.hint is not None
    assert "rm -r" in caught.value.hint


def test_chain_has_the_shape_of_aws() -> None:
    leaf = Chain(make_root(AT), module_id="i-0123456789abcdef0-enc0123456789abcdef").leaf(AT)
    certificates = [x509.load_der_x509_certificate(der) for der in (*leaf.cabundle, leaf.certificate)]
    lengths = [c.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length for c in certificates]
    assert lengths == [None, 2, 1, 0, None]
    lives = [c.not_valid_after_utc - c.not_valid_before_utc for c in certificates[1:]]
    assert lives == [timedelta(days=20), timedelta(days=6), timedelta(hours=24), timedelta(hours=3)]
    assert all(len(der) <= MAX_CERTIFICATE for der in (*leaf.cabundle, leaf.certificate))
    last = certificates[-1].extensions
    assert [(e.oid._name, e.critical) for e in last] == [("basicConstraints", True), ("keyUsage", False)]
    usage = last.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.content_commitment, usage.key_cert_sign) == (True, True, False)
    instance = certificates[-2].extensions.get_extension_for_class(x509.KeyUsage)
    assert (instance.critical, instance.value.key_cert_sign, instance.value.digital_signature) == (True, True, False)


def test_chain_verifies_from_its_first_moment_on() -> None:
    leaf = Chain(make_root(AT), module_id="i-0-enc0").leaf(AT)
    verify(leaf, AT)
    verify(leaf, AT + LEAF_LIFE - timedelta(seconds=1))
    with pytest.raises(ClockOutOfStep):
        verify(leaf, AT + LEAF_LIFE + timedelta(minutes=1), made_at=AT)


def test_leaf_is_not_backdated_and_renewed_before_it_expires() -> None:
    chain = Chain(make_root(AT), module_id="i-0-enc0")
    first = chain.leaf(AT)
    assert chain.leaf(AT + LEAF_LIFE - LEAF_MARGIN - timedelta(seconds=2)) is first
    later = AT + LEAF_LIFE - LEAF_MARGIN
    second = chain.leaf(later)
    assert second.certificate != first.certificate
    start = x509.load_der_x509_certificate(second.certificate).not_valid_before_utc
    assert start == later.replace(microsecond=0)
    verify(second, later)


def test_authorities_are_renewed_for_as_long_as_the_isolate_lives() -> None:
    chain = Chain(make_root(AT), module_id="i-0-enc0")
    bundles = set()
    for hours in range(0, 24 * 45, 7):
        at = AT + timedelta(hours=hours)
        leaf = chain.leaf(at)
        verify(leaf, at)
        verify(leaf, at + LEAF_MARGIN)
        bundles.add(leaf.cabundle)
    assert len({bundle[1] for bundle in bundles}) == 3  # regional: 20 days each
    assert len({bundle[0] for bundle in bundles}) == 1
