# SPDX-License-Identifier: MIT
"""`image lock`: turn the names in `image.toml` into exact, hashed inputs, from indices that Debian signed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from attestation.console import say

from .architecture import BUILDER
from .archive import KEYRING, Index, read_index
from .config import ImageConfig, demand_mirror, find_mirrors
from .debian import PoolFile, version_key
from .errors import MalformedConfig
from .fetch import Snapshot, fetch_inputs, hash_file, pip_download
from .lock import Archive, Lock, LockedPackage, LockedWheel, Role, own_version


def _read_indices(config: ImageConfig, old: Lock | None, keyring: Path) -> list[tuple[Archive, Index]]:
    mirrors = find_mirrors(config)
    known = {release.suite: release for release in old.releases} if old else {}
    architectures = tuple(dict.fromkeys((BUILDER, config.architecture)))
    indices = []
    for archive, suite in (
        (Archive.DEBIAN, config.suite),
        (Archive.DEBIAN, f"{config.suite}-updates"),
        (Archive.SECURITY, f"{config.suite}-security"),
    ):
        mirror = demand_mirror(mirrors, archive)[0]
        index = read_index(mirror, suite, architectures=architectures, after=known.get(suite), keyring=keyring)
        say(f"{suite} of {index.release.date:%Y-%m-%d %H:%M}: {len(index.packages)} packages, signature good")
        indices.append((archive, index))
    return indices


def _newest(candidates: Iterable[tuple[Archive, PoolFile]]) -> tuple[Archive, PoolFile] | None:
    return max(candidates, key=lambda row: version_key(row[1].version), default=None)


def lock_packages(config: ImageConfig, indices: list[tuple[Archive, Index]], old: Lock | None) -> list[LockedPackage]:
    """Return the newest version of every package that the configuration names; raise MalformedConfig for none."""
    roles: dict[str, set[Role]] = {}
    for role, names in (
        (Role.TOOLCHAIN, config.toolchain), (Role.ROOT, map(config.architecture.package, config.root)),
        (Role.KERNEL, (config.kernel_source,)), (Role.EMULATOR, filter(None, (config.emulator,))),
    ):  # fmt: skip
        for name in names:
            roles.setdefault(name, set()).add(role)
    known = {package.sha256: package.sha1 for package in old.packages} if old else {}
    found = [(archive, package) for archive, index in indices for package in index.packages if package.name in roles]
    locked = []
    for name in sorted(roles):
        best = _newest(row for row in found if row[1].name == name)
        if best is None:
            raise MalformedConfig(f"image.toml names {name}, which {config.suite} does not have")
        archive, package = best
        use, sha1 = frozenset(roles[name]), known.get(package.sha256, "")
        locked.append(
            LockedPackage(name, package.version, use, archive, package.path, package.size, package.sha256, sha1)
        )
    return locked


def _lock_wheels(config: ImageConfig, old: Lock | None) -> list[LockedWheel]:
    """Return the wheels; those that the lock has in the version named stay as they are, and nobody is asked."""
    known = {f"{wheel.name}=={wheel.version}": wheel for wheel in old.wheels} if old else {}
    locked = [known[name] for name in config.wheels if name in known]
    wanted = [name for name in config.wheels if name not in known]
    if not wanted:
        return locked
    with tempfile.TemporaryDirectory(prefix="veracruz-lock-") as scratch:
        pip_download(Path(scratch), config.architecture, *wanted)
        for path in sorted(Path(scratch).iterdir()):
            with zipfile.ZipFile(path) as wheel:
                meta = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
                fields = dict(re.findall(r"^(Name|Version): (.*)$", wheel.read(meta).decode(), re.MULTILINE))
            locked.append(
                LockedWheel(fields["Name"].lower(), fields["Version"], path.name, path.stat().st_size, hash_file(path))
            )
    return locked


def resolve(config: ImageConfig, old: Lock | None = None, *, keyring: Path = KEYRING) -> Lock:
    """Return a new lock for a configuration: today's newest versions. Fails closed on any unsigned byte.

    No index may be older than the one that `old` was made from. Packages that `old` does not have lack their SHA-1:
    Debian's indices do not name it, so `complete` reads it from the files themselves.
    """
    indices = _read_indices(config, old, keyring)
    return Lock(
        tuple(lock_packages(config, indices, old)), tuple(_lock_wheels(config, old)),
        tuple(index.release for _, index in indices), own_version(), config.architecture,
    )  # fmt: skip


def complete(config: ImageConfig, lock: Lock, *, snapshot: Snapshot | None = None) -> Lock:
    """Return the lock with every package's SHA-1, the name under which a snapshot service keeps it."""
    lacking = [package for package in lock.packages if not package.sha1]
    if not lacking:
        return lock
    paths = fetch_inputs(lacking, find_mirrors(config), snapshot=snapshot)

    def sha1(package: LockedPackage) -> str:
        with paths[package.name].open("rb") as stream:
            return hashlib.file_digest(stream, "sha1").hexdigest()

    whole = [package if package.sha1 else dataclasses.replace(package, sha1=sha1(package)) for package in lock.packages]
    return dataclasses.replace(lock, packages=tuple(whole))
