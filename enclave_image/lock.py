# SPDX-License-Identifier: MIT
"""`enclave.lock`: every input of an image, by SHA-256 and size."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from attestation.files import naming, read_limited

from .architecture import BUILDER, Architecture
from .errors import MalformedConfig, ToolMismatch

SCHEMA = "veracruz.lock/2"
MAX_LOCK = 1024 * 1024  # bytes
ARCHITECTURES = tuple(Architecture)
DATE = "%Y-%m-%dT%H:%M:%SZ"


class Role(StrEnum):
    """What an input is for."""

    TOOLCHAIN = "toolchain"  # unpacked into the root in which kernel and /init are compiled
    ROOT = "root"  # unpacked into the image
    KERNEL = "kernel"  # the kernel's source
    EMULATOR = "emulator"  # runs the image's own programs during the build, where the building machine cannot


class Archive(StrEnum):
    """Where a Debian package's path is to be found: which of a mirror's trees."""

    DEBIAN = "debian"
    SECURITY = "debian-security"


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One Debian package."""

    name: str  # Debian's; with `:arm64` behind it where it is for another architecture than the building machine's
    version: str
    roles: frozenset[Role]
    archive: Archive
    path: str  # below the archive's root
    size: int  # bytes
    sha256: str  # hex; the check
    sha1: str = ""  # hex; only the name under which a snapshot service keeps it. Empty while its lock is being made

    @property
    def filename(self) -> str:
        """The name under which the cache shows it."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def bare_name(self) -> str:
        """The name alone, as Debian's indices have it."""
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class LockedWheel:
    """One Python wheel; all wheels go into the image."""

    name: str
    version: str
    filename: str
    size: int  # bytes
    sha256: str  # hex


LockedInput = LockedPackage | LockedWheel


@dataclass(frozen=True, slots=True)
class Release:
    """A signed index from which versions were taken: an older one is refused when they are resolved anew."""

    suite: str
    date: datetime  # UTC
    sha256: str  # hex, of the InRelease


@dataclass(frozen=True, slots=True)
class Lock:
    """All inputs of an image."""

    packages: tuple[LockedPackage, ...]
    wheels: tuple[LockedWheel, ...]
    releases: tuple[Release, ...] = ()
    tool: str = ""  # the version of veracruz that makes the image's bytes of them
    architecture: Architecture = Architecture.X86_64

    @property
    def inputs(self) -> tuple[LockedInput, ...]:
        """All of them: packages, then wheels."""
        return (*self.packages, *self.wheels)

    def packages_for(self, role: Role) -> tuple[LockedPackage, ...]:
        """Return the packages with a role, sorted by name."""
        return tuple(package for package in self.packages if role in package.roles)


def own_version() -> str:
    """Return the version of veracruz that is running."""
    return metadata.version("veracruz")


def demand_tool(lock: Lock) -> None:
    """Raise ToolMismatch unless the running veracruz is the one that the lock names: another may give other bytes."""
    if lock.tool != own_version():
        raise ToolMismatch(
            "the lock is for another version of veracruz", expected=lock.tool, actual=own_version(),
            hint="check out that version; or `veracruz image lock --write` makes the lock this version's (other PCRs)",
        )  # fmt: skip


def _hex(value: Any, place: str, *, digits: int = 64) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
        raise MalformedConfig(place, expected=f"{digits} hex digits", actual=value)
    return value


def _date(value: Any, place: str) -> datetime:
    try:
        return datetime.strptime(value, DATE).replace(tzinfo=UTC)
    except (ValueError, TypeError) as error:
        raise MalformedConfig(place, expected="a time such as 2026-01-31T12:00:00Z", actual=value) from error


def _size(value: Any, place: str) -> int:
    if type(value) is not int or not 0 < value < 1 << 32:
        raise MalformedConfig(place, expected="a size in bytes", actual=value)
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+.:~_/%-]*", value) or ".." in value:
        raise MalformedConfig(place, expected="a plain name", actual=value)
    return value


def _rows(table: dict[str, Any], name: str, keys: set[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    rows = table.pop(name, None)
    if not isinstance(rows, list) or not rows:
        raise MalformedConfig(f"no [[{name}]]")
    for index, row in enumerate(rows):
        place = f"{name}[{index}]"
        if not isinstance(row, dict) or set(row) != keys:
            raise MalformedConfig(f"{place}: wrong keys", expected=", ".join(sorted(keys)), actual=row)
        yield place, row


def parse_lock(raw: bytes) -> Lock:
    """Parse a lock; raise MalformedConfig naming the place."""
    if len(raw) > MAX_LOCK:
        raise MalformedConfig("too long", expected=f"at most {MAX_LOCK} bytes", actual=len(raw))
    try:
        table = tomllib.loads(raw.decode())
    except ValueError as error:
        raise MalformedConfig("no TOML", actual=error) from error
    if table.pop("schema", None) != SCHEMA:
        raise MalformedConfig("schema", expected=SCHEMA)
    tool = _text(table.pop("tool", None), "tool")
    architecture = table.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise MalformedConfig("architecture", expected=" or ".join(ARCHITECTURES), actual=architecture)
    releases, packages, wheels = [], [], []
    for place, row in _rows(table, "release", {"suite", "date", "sha256"}):
        suite, date = _text(row["suite"], f"{place}.suite"), _date(row["date"], f"{place}.date")
        releases.append(Release(suite, date, _hex(row["sha256"], f"{place}.sha256")))
    for place, row in _rows(
        table, "package", {"name", "version", "roles", "archive", "path", "size", "sha256", "sha1"}
    ):
        try:
            roles = frozenset(Role(role) for role in row["roles"])
            archive = Archive(row["archive"])
        except (ValueError, TypeError) as error:
            raise MalformedConfig(place, actual=error) from error
        name, version, path = (_text(row[key], f"{place}.{key}") for key in ("name", "version", "path"))
        size, sha256 = _size(row["size"], f"{place}.size"), _hex(row["sha256"], f"{place}.sha256")
        sha1 = _hex(row["sha1"], f"{place}.sha1", digits=40)
        packages.append(LockedPackage(name, version, roles, archive, path, size, sha256, sha1))
    for place, row in _rows(table, "wheel", {"name", "version", "filename", "size", "sha256"}):
        name, version, filename = (_text(row[key], f"{place}.{key}") for key in ("name", "version", "filename"))
        if "/" in filename:
            raise MalformedConfig(f"{place}.filename", expected="a file's name", actual=filename)
        size, sha256 = _size(row["size"], f"{place}.size"), _hex(row["sha256"], f"{place}.sha256")
        wheels.append(LockedWheel(name, version, filename, size, sha256))
    if table:
        raise MalformedConfig("unknown keys", actual=", ".join(sorted(table)))
    lock = Lock(
        tuple(sorted(packages, key=lambda p: p.name)), tuple(sorted(wheels, key=lambda w: w.name)),
        tuple(sorted(releases, key=lambda r: r.suite)), tool, Architecture(architecture),
    )  # fmt: skip
    names = [entry.name for entry in lock.inputs] + [f"release {release.suite}" for release in releases]
    if len(set(names)) != len(names):
        raise MalformedConfig(
            "an input is named twice", actual=", ".join(sorted({n for n in names if names.count(n) > 1}))
        )
    if len(lock.packages_for(Role.KERNEL)) != 1:
        raise MalformedConfig("packages with the role kernel", expected=1, actual=len(lock.packages_for(Role.KERNEL)))
    emulators, wanted = len(lock.packages_for(Role.EMULATOR)), int(lock.architecture is not BUILDER)
    if emulators != wanted:
        raise MalformedConfig("packages with the role emulator", expected=wanted, actual=emulators)
    return lock


def load_lock(path: Path) -> Lock:
    """Read and parse a lock file."""
    hint = "where there is none, veracruz image lock --write makes one"
    raw = read_limited(path, limit=MAX_LOCK, what="lock", hint=hint)
    with naming(path, hint=hint):
        return parse_lock(raw)


def format_lock(lock: Lock) -> bytes:
    """Return a lock's one text form."""
    lines = [
        "# Every input of the image, by SHA-256. Made by `veracruz image lock --write`; a reviewer reads its diff.",
        "# sha1 is only the name under which a snapshot service keeps a package that mirrors no longer have.",
        f'schema = "{SCHEMA}"', f'tool = "{lock.tool}"', f'architecture = "{lock.architecture}"',
    ]  # fmt: skip
    for release in sorted(lock.releases, key=lambda r: r.suite):
        date = release.date.strftime(DATE)
        lines += ["", "[[release]]", f'suite = "{release.suite}"', f'date = "{date}"', f'sha256 = "{release.sha256}"']
    for package in sorted(lock.packages, key=lambda p: p.name):
        roles = ", ".join(f'"{role}"' for role in sorted(package.roles))
        lines += [
            "", "[[package]]", f'name = "{package.name}"', f'version = "{package.version}"', f"roles = [{roles}]",
            f'archive = "{package.archive}"', f'path = "{package.path}"', f"size = {package.size}",
            f'sha256 = "{package.sha256}"', f'sha1 = "{package.sha1}"',
        ]  # fmt: skip
    for wheel in sorted(lock.wheels, key=lambda w: w.name):
        lines += [
            "", "[[wheel]]", f'name = "{wheel.name}"', f'version = "{wheel.version}"',
            f'filename = "{wheel.filename}"', f"size = {wheel.size}", f'sha256 = "{wheel.sha256}"',
        ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()
