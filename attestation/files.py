# SPDX-License-Identifier: MIT
"""A participant's own files: read with a limit, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import EnvironmentLacks, UsageError


def read_limited(path: Path, *, limit: int, what: str) -> bytes:
    """Return a file's bytes, at most `limit`; raise UsageError for one that is missing, too large or no file."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot read the {what} {path}: {reason}") from error
    if len(raw) > limit:
        raise UsageError(f"the {what} {path} is too large", expected=f"at most {limit} bytes")
    return raw


def write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that must not exist yet, whole or not at all, with exactly this mode from the first byte on."""
    with replacing(path, mode=mode, refuse_existing=True) as file:
        file.write(data)


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write or replace a file, whole or not at all."""
    with replacing(path, mode=mode) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644, refuse_existing: bool = False) -> Iterator[BinaryIO]:
    """Give a temporary file beside `path`; put it in place, synced, when the block ends well, else remove it."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    except OSError as error:
        raise EnvironmentLacks(f"cannot write in {path.parent}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        _put_in_place(temporary, path, refuse_existing=refuse_existing)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _put_in_place(temporary: Path, path: Path, *, refuse_existing: bool) -> None:
    try:
        if refuse_existing:
            os.link(temporary, path)  # unlike rename, fails where somebody was faster
        else:
            temporary.replace(path)
    except FileExistsError as error:
        raise UsageError(f"{path} exists") from error
    except OSError as error:
        raise EnvironmentLacks(f"cannot write {path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system opens a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
