# SPDX-License-Identifier: MIT
"""`image lock` from a signed archive on this machine: shows, writes only when told to, refuses what is behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.lock import Role, format_lock, load_lock, own_version
from host_shim.cli import main

from .mirrors import Mirror, serving
from .signer import MISSING, Signer, new_signer

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ("linux-source", "tool", "library")


class Archive:
    """A mirror with the three suites that are asked; `publish` signs them anew."""

    def __init__(self, mirror: Mirror, signer: Signer) -> None:
        self.mirror, self.signer = mirror, signer

    def publish(self, versions: dict[str, str], *, date: datetime = NOW, security: bool = False) -> None:
        for suite in ("forky", "forky-updates", "forky-security"):
            here = versions if suite == ("forky-security" if security else "forky") else {}
            index = lzma.compress("".join(self._stanza(name, version) for name, version in here.items()).encode())
            digest = hashlib.sha256(index).hexdigest()
            text = (
                f"Codename: {suite}\nDate: {format_datetime(date)}\n"
                f"Valid-Until: {format_datetime(NOW + timedelta(days=9))}\n"
                f"SHA256:\n {digest} {len(index)} main/binary-amd64/Packages.xz\n"
            )
            base = f"/dists/{suite}"
            self._serve(f"{base}/InRelease", self.signer.sign(text))
            self._serve(f"{base}/main/binary-amd64/by-hash/SHA256/{digest}", index)

    def _serve(self, path: str, body: bytes) -> None:
        self.mirror.routes[path] = lambda h: h.answer(body)

    def _stanza(self, name: str, version: str) -> str:
        body, path = f"{name} {version}".encode(), f"pool/{name}_{version}_amd64.deb"
        self._serve(f"/{path}", body)
        digest = hashlib.sha256(body).hexdigest()
        return f"Package: {name}\nVersion: {version}\nFilename: {path}\nSize: {len(body)}\nSHA256: {digest}\n\n"


@pytest.fixture(scope="module")
def signer() -> Iterator[Signer]:
    with new_signer() as made:
        yield made


@pytest.fixture
def archive(signer: Signer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Archive]:
    with serving() as mirror:
        monkeypatch.setattr("enclave_image.config._apt_sources", list)  # a second each, and not what is tried here
        monkeypatch.setenv("VERACRUZ_DEBIAN_MIRROR", mirror.url)
        monkeypatch.setenv("VERACRUZ_SECURITY_MIRROR", mirror.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        made = Archive(mirror, signer)
        made.publish(dict.fromkeys(NAMES, "1.0-1"))
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small configuration with the wheels of the shipped lock: nobody is asked for those."""
    place = tmp_path / "config"
    shutil.copytree(DEFAULT_DIR, place)
    wheels = json.dumps(list(load_config().wheels))
    text = (place / "image.toml").read_text().partition("kernel_source")[0].replace('"trixie"', '"forky"')
    lists = 'kernel_source = "linux-source"\ntoolchain = ["tool", "library"]\nroot = ["library"]\n'
    (place / "image.toml").write_text(f"{text}{lists}wheels = {wheels}\n")
    lock = load_lock(place / "enclave.lock")
    kept = [package for package in lock.packages if package.roles == {Role.KERNEL}]
    small = dataclasses.replace(
        lock, packages=tuple(kept), releases=(dataclasses.replace(lock.releases[0], suite="x"),)
    )
    (place / "enclave.lock").write_bytes(format_lock(small))
    return place


Run = Callable[..., tuple[int, dict[str, object]]]


@pytest.fixture
def lock(archive: Archive, config: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, dict[str, object]]:
        options = ["--config", str(config), "--keyring", str(archive.signer.keyring), "--json"]
        code = main(["image", "lock", *options, *words])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_shows_and_writes_nothing(lock: Run, config: Path, archive: Archive) -> None:
    before = (config / "enclave.lock").read_bytes()
    code, said = lock()
    assert code == 0
    assert said["behind"] is True
    assert said["written"] is False
    changes = said["changes"]
    assert isinstance(changes, list)
    assert {change["name"] for change in changes} >= set(NAMES)
    assert (config / "enclave.lock").read_bytes() == before
    assert not [path for path, _ in archive.mirror.requests if path.startswith("/pool/")]


def test_check_tells_by_its_exit_code_and_write_by_hand_makes_it_good(lock: Run, config: Path) -> None:
    assert lock("--check")[0] == 1
    code, said = lock("--write")
    assert (code, said["written"]) == (0, True)
    assert lock("--check") == (0, {**lock("--check")[1], "changes": [], "behind": False})
    made = load_lock(config / "enclave.lock")
    assert {package.name: package.version for package in made.packages} == dict.fromkeys(NAMES, "1.0-1")
    assert made.packages[0].sha1 == hashlib.sha1(b"library 1.0-1").hexdigest()
    assert {package.name: package.roles for package in made.packages}["library"] == {Role.ROOT, Role.TOOLCHAIN}
    assert made.tool == own_version()
    assert [release.date for release in made.releases] == [NOW] * 3
    before = (config / "enclave.lock").read_bytes()
    assert lock("--write")[1]["written"] is False
    assert (config / "enclave.lock").read_bytes() == before


def test_a_security_update_says_so(lock: Run, archive: Archive) -> None:
    lock("--write")
    archive.publish({**dict.fromkeys(NAMES, "1.0-1"), "tool": "1.0-1+deb14u1"}, security=True)
    (change,) = [c for c in lock()[1]["changes"] if c["name"] == "tool"]  # type: ignore[attr-defined]
    assert (change["old"], change["new"], change["security"]) == ("1.0-1", "1.0-1+deb14u1", True)


def test_an_archive_that_goes_back_is_refused(lock: Run, config: Path, archive: Archive) -> None:
    lock("--write")
    before = (config / "enclave.lock").read_bytes()
    archive.publish(dict.fromkeys(NAMES, "2.0-1"), date=NOW - timedelta(hours=1))
    code, said = lock("--write")
    assert (code, said["error"]["slug"]) == (4, "archive-untrusted")  # type: ignore[index]
    assert (config / "enclave.lock").read_bytes() == before


def test_an_older_version_is_written_only_when_it_is_named(lock: Run, config: Path, archive: Archive) -> None:
    lock("--write")
    archive.publish({**dict.fromkeys(NAMES, "1.0-1"), "tool": "0.9-1"})
    code, said = lock("--write")
    assert (code, said["error"]["slug"]) == (4, "archive-untrusted")  # type: ignore[index]
    assert "tool" in said["error"]["message"]  # type: ignore[index]
    assert lock("--write", "--allow-older", "tool")[0] == 0
    assert {package.version for package in load_lock(config / "enclave.lock").packages} == {"1.0-1", "0.9-1"}


def test_a_package_that_is_gone_is_named(lock: Run, archive: Archive) -> None:
    archive.publish({"linux-source": "1", "library": "1"})
    code, said = lock("--write")
    assert (code, said["error"]["slug"]) == (2, "malformed-config")  # type: ignore[index]
    assert "names tool" in said["error"]["message"]  # type: ignore[index]
