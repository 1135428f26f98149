# SPDX-License-Identifier: MIT
"""What a job left in its tree, taken back as if an attacker had made it: regular files alone, under its rights.

The worker is dead by then, but everything in the tree is its doing, so every step is by descriptor and openat2 with
RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS. One thing that is not allowed refuses all of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from attestation.errors import MalformedInput
from attestation.policy import Program, Right, normal_path

from .blobs import CHUNK, Blob
from .errors import ApiError
from .staging import TREE, Staging, directory_of, is_mutable
from .store import Store
from .syscalls import open_beneath

Write = Callable[[Iterator[bytes]], Blob]

MAX_RESULTS = 1024  # files of one job
MAX_STREAM = 64 * 1024  # bytes of one stream that are told


class ResultsRefused(Exception):
    """Something in the tree may not be taken back, so nothing is."""


@dataclass(slots=True)
class Results:
    """What is to change in the store."""

    changed: dict[str, Blob] = field(default_factory=dict)
    appended: dict[str, Blob] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)


def collect(staging: Staging, *, program: Program, store: Store, owner: str) -> Results:
    """Return the changes that a program made, all of them allowed; raise ResultsRefused."""
    results = Results()
    write = partial(store.write_blob, owner=owner)
    root = os.open(staging.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = set(_find_files(root, program))
        for path in sorted(found):
            _take(root, path, staging=staging, program=program, write=write, limit=store.file_limit, results=results)
        for path in staging.inputs:
            if path not in found and is_mutable(program.rights, directory_of(path)):
                if not program.rights.allow(path, Right.DELETE):
                    raise ResultsRefused
                results.deleted.append(path)
    except (OSError, ApiError, MalformedInput) as error:
        raise ResultsRefused from error
    finally:
        os.close(root)
    return results


def _find_files(root: int, program: Program) -> Iterator[str]:
    """Yield the path of each regular file in each directory that the program could change."""
    seen: set[str] = set()
    count = 0
    for key, _ in program.rights.entries:
        pending = [directory_of(key)] if is_mutable(program.rights, directory_of(key)) else []
        while pending:
            directory = pending.pop()
            if directory in seen:
                continue
            seen.add(directory)
            for name, mode in _entries(root, directory):
                path = directory + name
                if stat.S_ISDIR(mode):
                    pending.append(normal_path(path + "/", directory=True))
                elif stat.S_ISREG(mode):
                    yield normal_path(path)
                else:
                    raise ResultsRefused
                count += 1
                if count > 2 * MAX_RESULTS:
                    raise ResultsRefused


def _entries(root: int, directory: str) -> list[tuple[str, int]]:
    descriptor = open_beneath(root, (TREE + directory).rstrip("/"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            return [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    finally:
        os.close(descriptor)


def _take(
    root: int, path: str, *, staging: Staging, program: Program, write: Write, limit: int, results: Results
) -> None:
    """Add one file to the results, if it is new or not as it was."""
    before = staging.inputs.get(path)
    descriptor = open_beneath(root, TREE + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ResultsRefused
        blob = write(_read(descriptor, limit))
        if before is not None and before.sha256 == blob.sha256:
            return
        if program.rights.allow(path, Right.WRITE):
            results.changed[path] = blob
        elif program.rights.allow(path, Right.APPEND):
            results.appended[path] = blob if before is None else _rest(blob, before, write)
        else:
            raise ResultsRefused
    finally:
        os.close(descriptor)


def _read(descriptor: int, limit: int) -> Iterator[bytes]:
    total = 0
    while chunk := os.read(descriptor, CHUNK):
        total += len(chunk)
        if total > limit:
            raise ResultsRefused
        yield chunk


def _rest(after: Blob, before: Blob, write: Write) -> Blob:
    """Return what was added to a file; raise ResultsRefused where its old content did not stay."""
    if after.size <= before.size or not _same(after.chunks(), before):
        raise ResultsRefused

    def tail() -> Iterator[bytes]:
        skip = before.size
        for chunk in after.chunks():
            if skip < len(chunk):
                yield chunk[skip:]
            skip = max(skip - len(chunk), 0)

    return write(tail())


def _same(chunks: Iterator[bytes], before: Blob) -> bool:
    return all(chunk.startswith(old) for chunk, old in zip(chunks, before.chunks(), strict=False))


def read_stream(staging: Staging, name: str) -> bytes:
    """Return the first bytes of a stream."""
    root = os.open(staging.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_beneath(root, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(descriptor, MAX_STREAM) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError:
        return b""
    finally:
        os.close(root)
