# SPDX-License-Identifier: MIT
"""What stands between two locks, in words that a reviewer can judge."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .debian import version_key
from .lock import Archive, Lock, LockedInput, LockedPackage, Role


class Kind(StrEnum):
    """What happened to an input; the first two are reasons to stop and ask."""

    FORGED = "WARNING"  # other bytes under the same version
    LOWERED = "LOWERED"  # an older version than the lock's
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    MOVED = "moved"  # the same bytes with another role or at another place


@dataclass(frozen=True, slots=True)
class Change:
    """One input that is not as it was."""

    kind: Kind
    name: str
    old: LockedInput | None
    new: LockedInput | None

    def __str__(self) -> str:
        old, new = (entry.version if entry else None for entry in (self.old, self.new))
        match self.kind:
            case Kind.FORGED:
                what = f"{new}: other bytes under the same version"
            case Kind.CHANGED | Kind.LOWERED:
                what = f"{old} -> {new}"
            case Kind.MOVED:
                what = f"{new}: {_place(self.old)} -> {_place(self.new)}"
            case _:
                what = f"{new or old}"
        return f"{self.kind:<8} {self.name} {what} ({', '.join(self._notes())})"

    def _notes(self) -> list[str]:
        entry = self.new or self.old
        assert entry is not None
        notes = [_use(entry)]
        if isinstance(entry, LockedPackage) and entry.archive is Archive.SECURITY:
            notes.append("security suite")
        if self.old is not None and self.new is not None:
            notes.append(f"{self.new.size - self.old.size:+,} bytes")
        else:
            notes.append(f"{entry.size:,} bytes")
        return notes

    def as_json(self) -> dict[str, Any]:
        """Return the change as `image lock --json` prints it."""
        entry = self.new or self.old
        return {
            "kind": self.kind.value.lower(), "name": self.name,
            "old": self.old.version if self.old else None, "new": self.new.version if self.new else None,
            "old_sha256": self.old.sha256 if self.old else None, "new_sha256": self.new.sha256 if self.new else None,
            "size_change": (self.new.size if self.new else 0) - (self.old.size if self.old else 0),
            "use": _use(entry) if entry else None,
            "security": isinstance(entry, LockedPackage) and entry.archive is Archive.SECURITY,
        }  # fmt: skip


def _use(entry: LockedInput) -> str:
    return "+".join(sorted(entry.roles)) if isinstance(entry, LockedPackage) else "wheel"


def _place(entry: LockedInput | None) -> str:
    return f"{_use(entry)} {entry.archive}/{entry.path}" if isinstance(entry, LockedPackage) else "wheel"


def _kind(old: LockedInput | None, new: LockedInput | None) -> Kind:
    if old is None or new is None:
        return Kind.ADDED if old is None else Kind.REMOVED
    if old.version == new.version:
        return Kind.MOVED if old.sha256 == new.sha256 else Kind.FORGED
    if isinstance(new, LockedPackage) and version_key(new.version) < version_key(old.version):
        return Kind.LOWERED
    return Kind.CHANGED


def find_changes(old: Lock | None, new: Lock) -> list[Change]:
    """Return what differs, by name."""
    before = {entry.name: entry for entry in old.inputs} if old else {}
    after = {entry.name: entry for entry in new.inputs}
    changes = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is not None and now is not None and _identity(was) == _identity(now):
            continue
        changes.append(Change(_kind(was, now), name, was, now))
    return changes


def _identity(entry: LockedInput) -> tuple[object, ...]:
    place = (entry.roles, entry.archive, entry.path) if isinstance(entry, LockedPackage) else (entry.filename,)
    return (entry.version, entry.size, entry.sha256, *place)  # not sha1: it follows from the bytes


def describe_effect(changes: list[Change]) -> str:
    """Return what a changed lock means for the image, in one sentence."""
    roles: set[Role] = set()
    for change in changes:
        for entry in (change.old, change.new):
            roles |= entry.roles if isinstance(entry, LockedPackage) else {Role.ROOT} if entry else set()
    if not roles:
        return "no input of the image changed"
    if roles & {Role.KERNEL, Role.TOOLCHAIN}:
        return "effect: kernel and /init are compiled anew; PCR0 and PCR1 change"
    return "effect: the platform changes: PCR0 and PCR1; the kernel stays as it is"
