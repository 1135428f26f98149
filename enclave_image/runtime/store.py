# SPDX-License-Identifier: MIT
"""The parties' files: an index of paths over immutable contents, under rights, pins, `once` and quotas.

Paths exist in the index alone and never reach a file system here, so no spelling of a path leads anywhere else. A
change is one step under one lock: whole or not at all.

Storage is divided into equal shares, one for each participant who may store anything and one for each program that
may: what one of them uses is not to be seen in another's refusals.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from attestation.policy import Participant, Policy, Right

from .blobs import Blob, Blobs
from .errors import DigestMismatch, Frozen, NotAvailable, PinMismatch, TooLarge

MIB = 1 << 20
STORING = (Right.WRITE, Right.APPEND, Right.EXECUTE)
MAX_FILES = 1024  # paths of one participant


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands at a path, and whose share it uses."""

    blob: Blob
    owner: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One name in a directory."""

    name: str
    is_directory: bool
    size: int


Snapshot = Mapping[str, Blob]


class Store:
    """All files of the isolate."""

    def __init__(self, policy: Policy, directory: Path) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._frozen: set[str] = set()
        storing = sum(any(party.rights.keys(right) for right in STORING) for party in policy.participants)
        storing += sum(any(program.rights.keys(right) for right in STORING) for program in policy.programs)
        self.share = policy.limits.storage_mib * MIB // max(storing, 1)
        self.file_limit = min(policy.limits.file_mib * MIB, self.share)
        self._blobs = Blobs(directory, allowance=2 * self.share)  # while contents replace others, or a job holds them

    def snapshot(self) -> Snapshot:
        """Return all contents as they are now; a job sees them so until it ends."""
        with self._lock:
            return {path: entry.blob for path, entry in self._entries.items()}

    def find(self, party: Participant, path: str, right: Right) -> Blob:
        """Return the content at a path; raise NotAvailable where it is absent or forbidden."""
        with self._lock:
            entry = self._entries.get(path)
        if entry is None or not party.rights.allow(path, right):
            raise NotAvailable
        return entry.blob

    def put(self, party: Participant, path: str, *, content: Iterator[bytes], length: int, sha256: bytes) -> Blob:
        """Put a whole file in place."""
        if not party.rights.allow(path, Right.WRITE):
            raise NotAvailable
        self._check_place(path)
        self._check_pin(path, sha256)
        blob = self._upload(party, content, length=length, sha256=sha256)
        with self._lock:
            self._commit({path: blob}, owner=party.name)
        return blob

    def append(self, party: Participant, path: str, *, content: Iterator[bytes], length: int, sha256: bytes) -> None:
        """Add to a file's end, or make it."""
        if not party.rights.allow(path, Right.APPEND):
            raise NotAvailable
        self._check_place(path)
        piece = self._upload(party, content, length=length, sha256=sha256)
        with self._lock:
            self._commit({path: self._joined(path, piece, owner=party.name)}, owner=party.name)

    def delete(self, party: Participant, path: str) -> None:
        """Remove a file."""
        self.find(party, path, Right.DELETE)
        with self._lock:
            if path in self._frozen:
                raise Frozen
            self._entries.pop(path, None)

    def list(self, party: Participant, directory: str) -> list[Listed]:
        """Return the names in a directory (its path ends in "/"), sorted."""
        if not party.rights.allow(directory, Right.LIST):
            raise NotAvailable
        found: dict[str, Listed] = {}
        with self._lock:
            for path, entry in self._entries.items():
                if path.startswith(directory):
                    name, slash, _ = path[len(directory) :].partition("/")
                    found[name] = Listed(name, bool(slash), 0 if slash else entry.blob.size)
        return [found[name] for name in sorted(found)]

    def take_results(
        self, *, owner: str, changed: Mapping[str, Blob], appended: Mapping[str, Blob], deleted: Iterable[str]
    ) -> None:
        """Take what a job wrote, all or none; its rights were checked by who collected it."""
        with self._lock:
            contents = dict(changed)
            for path, piece in appended.items():
                contents[path] = self._joined(path, piece, owner=owner)
            gone = frozenset(path for path in deleted if path in self._entries)
            if gone & self._frozen:
                raise Frozen
            self._commit(contents, owner=owner, gone=gone)

    def write_blob(self, content: Iterator[bytes], *, owner: str) -> Blob:
        """Store a content that stands at no path yet; raise OSError where it is too much."""
        return self._blobs.write(content, owner=owner)

    def _upload(self, party: Participant, content: Iterator[bytes], *, length: int, sha256: bytes) -> Blob:
        if length > self.file_limit:
            raise TooLarge
        try:
            blob = self._blobs.write(content, owner=party.name)
        except OSError as error:
            raise TooLarge from error
        if blob.sha256 != sha256:
            raise DigestMismatch
        blob.sender = party.name
        return blob

    def _joined(self, path: str, piece: Blob, *, owner: str) -> Blob:
        entry = self._entries.get(path)
        if entry is None:
            return piece
        if entry.blob.size + piece.size > self.file_limit:
            raise TooLarge
        try:
            return self._blobs.write(piece.chunks(), owner=owner, base=entry.blob)
        except OSError as error:
            raise TooLarge from error

    def _commit(self, contents: Mapping[str, Blob], *, owner: str, gone: frozenset[str] = frozenset()) -> None:
        """Check everything, then change everything; called under the lock."""
        after = {path: entry for path, entry in self._entries.items() if path not in gone}
        for path, blob in contents.items():
            if path in self._frozen:  # with the same content too: that it is the same would confirm a guess
                raise Frozen
            self._check_pin(path, blob.sha256)
            if blob.size > self.file_limit:
                raise TooLarge
            after[path] = Entry(blob, owner)
        for path in contents:
            if _collides(path, after):
                raise NotAvailable
        sizes = [entry.blob.size for entry in after.values() if entry.owner == owner]
        if len(sizes) > MAX_FILES or sum(sizes) > self.share:
            raise TooLarge
        self._entries = after
        self._frozen.update(path for path in contents if self._policy.freezes(path))

    def _check_place(self, path: str) -> None:
        with self._lock:
            if path in self._frozen:
                raise Frozen

    def _check_pin(self, path: str, sha256: bytes) -> None:
        pin = self._policy.pin(path)
        if pin is not None and pin != sha256:
            raise PinMismatch


def _collides(path: str, entries: Mapping[str, Entry]) -> bool:
    """Return whether a path is below a file, or is a directory of others."""
    steps = path.split("/")
    if any("/".join(steps[:count]) in entries for count in range(2, len(steps))):
        return True
    return any(other.startswith(path + "/") for other in entries)
