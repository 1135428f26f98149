# SPDX-License-Identifier: MIT
"""The archive's signed indices: a real gpgv checks what a real key signed, and every link of the chain can break."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from enclave_image import archive
from enclave_image.architecture import Architecture
from enclave_image.archive import read_index, verify_release
from enclave_image.download import Patience
from enclave_image.errors import ArchiveUntrusted, InputUnavailable
from enclave_image.lock import Release

from .mirrors import Mirror, serving
from .signer import MISSING, Signer, new_signer

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

NOW = datetime.now(UTC).replace(microsecond=0)
PACKAGES = b"Package: bc\nVersion: 1-2\nFilename: pool/bc.deb\nSize: 5\nSHA256: " + b"ab" * 32 + b"\n\n"
INDEX = lzma.compress(PACKAGES)
DIGEST = hashlib.sha256(INDEX).hexdigest()
SUITE = "forky-updates"


@pytest.fixture(scope="module")
def signers() -> Iterator[tuple[Signer, Signer]]:
    with new_signer() as first, new_signer() as second:
        yield first, second


@dataclass
class Suite:
    """A mirror with one suite, whose release says what `fields` say."""

    mirror: Mirror
    signer: Signer
    fields: dict[str, str]
    hashes: str

    def publish(self, *words: str) -> None:
        text = "".join(f"{name}: {value}\n" for name, value in self.fields.items()) + self.hashes
        raw = self.signer.sign(text, *words)
        self.mirror.routes[f"/dists/{SUITE}/InRelease"] = lambda h: h.answer(raw)

    def read(self, **options: object) -> archive.Index:
        return read_index(self.mirror.url, SUITE, keyring=self.signer.keyring, now=NOW, **options)  # type: ignore[arg-type]


@pytest.fixture
def suite(signers: tuple[Signer, Signer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Suite]:
    quick = Patience(attempts=1, pause=0.01)
    read_url = archive.read_url
    monkeypatch.setattr(archive, "read_url", lambda url, limit: read_url(url, limit=limit, patience=quick))
    with serving() as mirror:
        mirror.routes[f"/dists/{SUITE}/main/binary-amd64/by-hash/SHA256/{DIGEST}"] = lambda h: h.answer(INDEX)
        fields = {
            "Origin": "Debian", "Suite": "x", "Codename": SUITE, "Date": format_datetime(NOW - timedelta(days=1)),
            "Valid-Until": format_datetime(NOW + timedelta(days=6)),
        }  # fmt: skip
        made = Suite(mirror, signers[0], fields, f"SHA256:\n {DIGEST} {len(INDEX)} main/binary-amd64/Packages.xz\n")
        made.publish()
        yield made


def test_reads_what_the_archive_signed(suite: Suite) -> None:
    index = suite.read()
    assert [(package.name, package.version) for package in index.packages] == [("bc", "1-2")]
    assert index.release.date == NOW - timedelta(days=1)
    assert index.release.suite == SUITE


def test_names_the_packages_of_another_architecture_as_debian_does(suite: Suite) -> None:
    suite.hashes += f" {DIGEST} {len(INDEX)} main/binary-arm64/Packages.xz\n"
    suite.mirror.routes[f"/dists/{SUITE}/main/binary-arm64/by-hash/SHA256/{DIGEST}"] = lambda h: h.answer(INDEX)
    suite.publish()
    index = suite.read(architectures=(Architecture.X86_64, Architecture.AARCH64))
    assert [package.name for package in index.packages] == ["bc", "bc:arm64"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("Codename", "sid", "is another suite"),
        ("Codename", None, "is another suite"),
        ("Valid-Until", format_datetime(NOW - timedelta(hours=1)), "has expired: the mirror is stale"),
        ("Valid-Until", "tomorrow", "Valid-Until; expected a date"),
        ("Valid-Until", None, "names no Valid-Until"),
        ("Date", format_datetime(NOW + timedelta(days=3)), "from the future"),
        ("Date", None, "Date; expected a date"),
    ],
    ids=["suite", "no suite", "expired", "no date of expiry", "no expiry", "future", "no date"],  # not the clock's
)
def test_refuses_a_release_that_is_not_todays_of_this_suite(
    suite: Suite, field: str, value: str | None, words: str
) -> None:
    suite.fields.pop(field)
    if value is not None:
        suite.fields[field] = value
    suite.publish()
    with pytest.raises(ArchiveUntrusted, match=words):
        suite.read()


def test_refuses_an_archive_older_than_the_lock(suite: Suite) -> None:
    same = Release(SUITE, NOW - timedelta(days=1), "0" * 64)
    suite.read(after=same)
    later = Release(SUITE, NOW - timedelta(hours=23), "0" * 64)
    with pytest.raises(ArchiveUntrusted, match="older than the one that the lock was made from"):
        suite.read(after=later)


def test_refuses_another_key(suite: Suite, signers: tuple[Signer, Signer]) -> None:
    suite.signer = signers[1]
    suite.publish()
    suite.signer = signers[0]
    with pytest.raises(ArchiveUntrusted, match="no good signature"):
        suite.read()


def test_refuses_a_changed_text(suite: Suite) -> None:
    raw = suite.signer.sign("Codename: x\n").replace(b"Codename: x", b"Codename: y")
    with pytest.raises(ArchiveUntrusted, match=r"bad signature.*BADSIG"):
        verify_release(raw, keyring=suite.signer.keyring)


def test_refuses_a_signature_that_has_expired(suite: Suite) -> None:
    raw = suite.signer.sign("Codename: x\n", "--faked-system-time", "20200101T000000", "--ignore-time-conflict",
                            "--default-sig-expire", "1d")  # fmt: skip
    with pytest.raises(ArchiveUntrusted, match="signature"):
        verify_release(raw, keyring=suite.signer.keyring)


@pytest.mark.parametrize("raw", [b"", b"Codename: x\n", b"\xff" * 100], ids=["empty", "unsigned", "noise"])
def test_refuses_what_nobody_signed(suite: Suite, raw: bytes) -> None:
    with pytest.raises(ArchiveUntrusted, match="signature"):
        verify_release(raw, keyring=suite.signer.keyring)


def test_takes_the_signed_words_alone(suite: Suite) -> None:
    raw = b"Codename: forged\n\n" + suite.signer.sign("Codename: x\n") + b"\nCodename: forged\n"
    try:
        text = verify_release(raw, keyring=suite.signer.keyring)
    except ArchiveUntrusted:
        return
    assert "forged" not in text


def test_an_absent_keyring_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputUnavailable, match="no keyring") as caught:
        verify_release(b"", keyring=tmp_path / "absent.gpg")
    assert "debian-archive-keyring" in str(caught.value.hint)


def test_an_absent_gpgv_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputUnavailable, match="no gpgv"):
        verify_release(b"")


def test_refuses_a_release_that_does_not_list_the_index(suite: Suite) -> None:
    suite.hashes = "MD5Sum:\n 0 1 main/binary-amd64/Packages.xz\n"
    suite.publish()
    with pytest.raises(ArchiveUntrusted, match=r"names no main/binary-amd64/Packages\.xz"):
        suite.read()


@pytest.mark.parametrize("other", [INDEX[:-1], INDEX + b"x", lzma.compress(PACKAGES + b"\n")])
def test_refuses_an_index_that_was_not_signed(suite: Suite, other: bytes) -> None:
    suite.mirror.routes[f"/dists/{SUITE}/main/binary-amd64/by-hash/SHA256/{DIGEST}"] = lambda h: h.answer(other)
    with pytest.raises(ArchiveUntrusted, match="is not the file that was signed"):
        suite.read()


def test_an_index_that_is_not_there_is_named(suite: Suite) -> None:
    suite.mirror.routes.clear()
    with pytest.raises(InputUnavailable, match=rf"cannot read {suite.mirror.url}/dists/{SUITE}/InRelease: 404"):
        suite.read()


@pytest.mark.parametrize("raw", [b"no xz", lzma.compress(PACKAGES)[:-20], lzma.compress(b"\xff\xfe")])
def test_an_index_that_does_not_unpack_is_said(suite: Suite, raw: bytes) -> None:
    digest = hashlib.sha256(raw).hexdigest()
    suite.hashes = f"SHA256:\n {digest} {len(raw)} main/binary-amd64/Packages.xz\n"
    suite.publish()
    suite.mirror.routes[f"/dists/{SUITE}/main/binary-amd64/by-hash/SHA256/{digest}"] = lambda h: h.answer(raw)
    with pytest.raises(ArchiveUntrusted, match=r"unpacked|too long or truncated"):
        suite.read()
