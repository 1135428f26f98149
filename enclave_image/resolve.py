# SPDX-License-Identifier: MIT
"""`image lock`: turn the names in `image.toml` into exact, hashed inputs, from indices that Debian signed."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import subprocess
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterable
from pathlib import Path

from attestation.console import say

from .config import ImageConfig, demand_mirror, find_mirrors
from .debian import PoolFile, parse_packages
from .errors import ArchiveUntrusted, InputUnavailable, MalformedConfig
from .fetch import TIMEOUT, hash_file, pip_download
from .lock import Archive, Lock, LockedPackage, LockedWheel, Role

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MAX_RELEASE = 4 * 1024 * 1024  # bytes of an InRelease
MAX_INDEX = 64 * 1024 * 1024  # bytes of a Packages.xz, and 16 times that unpacked
INDEX = "main/binary-amd64/Packages.xz"


def _get(url: str, limit: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            raw: bytes = answer.read(limit + 1)
    except OSError as error:
        raise InputUnavailable(f"cannot read {url}", actual=error) from error
    if len(raw) > limit:
        raise ArchiveUntrusted(f"{url} is too long", expected=f"at most {limit} bytes")
    return raw


def verify_release(signed: bytes) -> str:
    """Return the text of an InRelease that the archive's keyring signed; raise ArchiveUntrusted."""
    if shutil.which("gpgv") is None or not KEYRING.exists():
        raise InputUnavailable(
            "cannot check the archive's signature: gpgv or its keyring is missing",
            hint="apt-get install gpgv debian-archive-keyring",
        )
    with tempfile.TemporaryDirectory(prefix="veracruz-release-") as scratch:
        source, out = Path(scratch) / "InRelease", Path(scratch) / "Release"
        source.write_bytes(signed)
        done = subprocess.run(
            ["gpgv", "--keyring", str(KEYRING), "--output", str(out), str(source)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0 or not out.exists():
            raise ArchiveUntrusted("the archive's InRelease has no good signature", actual=done.stderr[-200:])
        return out.read_text()  # what gpgv wrote is what was signed, not what stands around it


def read_index(mirror: str, suite: str) -> list[PoolFile]:
    """Return a suite's packages, over a chain of hashes from its signed InRelease."""
    base = f"{mirror}/dists/{suite}"
    release = verify_release(_get(f"{base}/InRelease", MAX_RELEASE))
    codename = re.search(r"^Codename: (\S+)$", release, re.MULTILINE)
    if codename is None or codename[1] != suite:
        raise ArchiveUntrusted(f"{base} is another suite", expected=suite, actual=codename and codename[1])
    hashes = release.split("\nSHA256:", 1)[-1]
    row = re.search(rf"^ ([0-9a-f]{{64}}) +(\d+) (?:updates/)?{re.escape(INDEX)}$", hashes, re.MULTILINE)
    if row is None:
        raise ArchiveUntrusted(f"{base}/InRelease names no {INDEX}")
    raw = _get(f"{base}/main/binary-amd64/by-hash/SHA256/{row[1]}", MAX_INDEX)
    if hashlib.sha256(raw).hexdigest() != row[1]:
        raise ArchiveUntrusted(f"{base}: SHA-256 of {INDEX}", expected=row[1], actual=hashlib.sha256(raw).hexdigest())
    text = lzma.LZMADecompressor().decompress(raw, max_length=16 * MAX_INDEX)
    return list(parse_packages(text.decode()))


def _version_key(version: str) -> tuple[int, list[tuple[str, int]]]:
    """Return a sort key that orders as dpkg does (Debian policy 5.6.12): '~' first, letters, then the rest."""
    epoch, _, rest = version.rpartition(":")
    parts = []
    for text, number in re.findall(r"(\D*)(\d*)", rest):
        order = "".join("\x01" if c == "~" else c if c.isalpha() else chr(ord(c) + 256) for c in text) + "\x02"
        parts.append((order, int(number or 0)))
    return int(epoch or 0), parts


def _newest(candidates: Iterable[tuple[Archive, PoolFile]]) -> tuple[Archive, PoolFile] | None:
    return max(candidates, key=lambda row: _version_key(row[1].version), default=None)


def _lock_packages(config: ImageConfig) -> list[LockedPackage]:
    mirrors = find_mirrors(config)
    found: list[tuple[Archive, PoolFile]] = []
    for archive, suite in (
        (Archive.DEBIAN, config.suite),
        (Archive.DEBIAN, f"{config.suite}-updates"),
        (Archive.SECURITY, f"{config.suite}-security"),
    ):
        mirror = demand_mirror(mirrors, archive)[0]
        index = read_index(mirror, suite)
        say(f"{suite}: {len(index)} packages, signature good")
        found += [(archive, package) for package in index]
    roles: dict[str, set[Role]] = {}
    for role, names in (
        (Role.TOOLCHAIN, config.toolchain), (Role.ROOT, config.root), (Role.KERNEL, (config.kernel_source,)),
    ):  # fmt: skip
        for name in names:
            roles.setdefault(name, set()).add(role)
    locked = []
    for name in sorted(roles):
        best = _newest(row for row in found if row[1].name == name)
        if best is None:
            raise MalformedConfig(f"image.toml names {name}, which {config.suite} does not have")
        archive, package = best
        locked.append(
            LockedPackage(
                name, package.version, frozenset(roles[name]), archive, package.path, package.size, package.sha256
            )
        )
    return locked


def _lock_wheels(config: ImageConfig) -> list[LockedWheel]:
    with tempfile.TemporaryDirectory(prefix="veracruz-lock-") as scratch:
        pip_download(Path(scratch), *config.wheels)
        locked = []
        for path in sorted(Path(scratch).iterdir()):
            with zipfile.ZipFile(path) as wheel:
                meta = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
                fields = dict(re.findall(r"^(Name|Version): (.*)$", wheel.read(meta).decode(), re.MULTILINE))
            locked.append(
                LockedWheel(fields["Name"].lower(), fields["Version"], path.name, path.stat().st_size, hash_file(path))
            )
        return locked


def resolve(config: ImageConfig) -> Lock:
    """Return a new lock for a configuration: today's newest versions. Fails closed on any unsigned byte."""
    return Lock(tuple(_lock_packages(config)), tuple(_lock_wheels(config)))


def describe_change(old: Lock | None, new: Lock) -> list[str]:
    """Return the difference between two locks in words that a reviewer can judge."""
    before = {entry.name: entry for entry in old.inputs} if old else {}
    after = {entry.name: entry for entry in new.inputs}
    lines = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None and now is not None:
            lines.append(f"added    {name} {now.version}")
        elif now is None and was is not None:
            lines.append(f"removed  {name} {was.version}")
        elif was is not None and now is not None and was != now:
            if was.version == now.version and was.sha256 != now.sha256:
                lines.append(f"WARNING  {name} {now.version}: other bytes under the same version")
            else:
                lines.append(f"changed  {name} {was.version} -> {now.version}")
    return lines
