# SPDX-License-Identifier: MIT
"""Identities: what is written, what is refused, and what is said of files that are none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from attestation.errors import EnvironmentLacks, MalformedInput, UsageError
from attestation.identity import load_identity, write_identity


def test_writes_a_key_for_its_owner_alone_and_a_certificate_that_ends_never(tmp_path: Path) -> None:
    identity = write_identity("Alice", tmp_path / "new" / "alice")
    assert identity.certificate_file == tmp_path / "new" / "alice" / "Alice.pem"
    assert stat.S_IMODE(identity.key_file.stat().st_mode) == 0o600
    assert sorted(path.name for path in identity.key_file.parent.iterdir()) == ["Alice.key", "Alice.pem"]
    certificate = x509.load_der_x509_certificate(identity.certificate)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (2020, 9999)
    assert identity.name == "Alice"


def test_loads_by_folder_by_prefix_and_by_either_file(tmp_path: Path) -> None:
    identity = write_identity("alice", tmp_path)
    for where in (tmp_path, tmp_path / "alice", tmp_path / "alice.key", tmp_path / "alice.pem"):
        assert load_identity(where) == identity


def test_a_representation_tells_nothing_of_the_key(tmp_path: Path) -> None:
    assert "alice.key" not in repr(write_identity("alice", tmp_path))


@pytest.mark.parametrize("existing", ["alice.key", "alice.pem"])
def test_replaces_nothing(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        write_identity("alice", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_does_not_follow_a_link_that_points_nowhere(tmp_path: Path) -> None:
    (tmp_path / "alice.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists"):
        write_identity("alice", tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["", "a" * 65, "a\nb", "\x1b[31m"])
def test_refuses_a_name_that_cannot_be_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name"):
        write_identity(name, tmp_path)


@pytest.mark.parametrize(("name", "stem"), [("../evil", "evil"), ("a/b", "a-b"), (".hidden", "hidden"), ("Zoë", "Zo-")])
def test_a_name_never_leaves_the_folder(tmp_path: Path, name: str, stem: str) -> None:
    assert write_identity(name, tmp_path / "in").key_file == tmp_path / "in" / f"{stem}.key"


def test_refuses_a_key_of_another_certificate(tmp_path: Path) -> None:
    alice, bob = write_identity("alice", tmp_path / "a"), write_identity("bob", tmp_path / "b")
    alice.key_file.write_bytes(bob.key_file.read_bytes())
    with pytest.raises(MalformedInput, match=r"not the key of .*alice\.pem"):
        load_identity(tmp_path / "a")


def test_refuses_an_encrypted_key_and_says_how_to_open_it(tmp_path: Path) -> None:
    identity = write_identity("alice", tmp_path)
    key = load_pem_private_key(identity.key_file.read_bytes(), None)
    identity.key_file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(MalformedInput, match="encrypted") as caught:
        load_identity(tmp_path)
    assert "openssl pkey" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("alice.key", b"\x30\x82", "no PEM"),
        ("alice.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        ("alice.key", b"-----BEGIN " + bytes(20_000), "too large"),
        ("alice.pem", b"\x30\x82\xff", "no PEM"),
        ("alice.pem", b"nothing", "exactly one PEM"),
        ("alice.pem", bytes(20_000), "too large"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path: Path, file: str, content: bytes, what: str) -> None:
    write_identity("alice", tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=what) as caught:
        load_identity(tmp_path)
    assert file in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_refuses_a_key_that_others_can_read(tmp_path: Path) -> None:
    identity = write_identity("alice", tmp_path)
    identity.key_file.chmod(0o640)
    with pytest.raises(EnvironmentLacks, match="read by others") as caught:
        load_identity(tmp_path)
    assert caught.value.hint == f"chmod 600 {identity.key_file}"


def test_a_folder_with_none_or_several_identities_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no identity") as caught:
        load_identity(tmp_path)
    assert "identity new" in str(caught.value.hint)
    write_identity("alice", tmp_path)
    write_identity("bob", tmp_path)
    with pytest.raises(UsageError, match="more than one"):
        load_identity(tmp_path)


def test_a_missing_identity_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"carol\.pem"):
        load_identity(tmp_path / "carol")
