# SPDX-License-Identifier: MIT
"""A participant's own files: read with a limit, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from .errors import EnvironmentLacks, UsageError, VeracruzError

PIECE = 1 << 20  # bytes
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_STREAM = 64 << 20  # bytes of what is no regular file, such as a pipe; a device may never end


def read_limited(
    path: Path, *, limit: int, what: str, hint: str | None = None, oversized: type[VeracruzError] = UsageError
) -> bytes:
    """Return a file's bytes, at most `limit`; raise UsageError for one that is missing or no file.

    One that is larger is somebody's mistake too, or somebody's attack: `oversized` is what is raised for it.
    """
    return b"".join(_read_pieces(path, limit=limit, what=what, hint=hint, oversized=oversized))


def hash_limited(path: Path, *, limit: int, what: str) -> bytes:
    """Return a file's SHA-256 without holding the file in memory; raise as `read_limited` does."""
    digest = hashlib.sha256()
    for piece in _read_pieces(path, limit=limit, what=what):
        digest.update(piece)
    return digest.digest()


def _read_pieces(
    path: Path, *, limit: int, what: str, hint: str | None = None, oversized: type[VeracruzError] = UsageError
) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            done, known = 0, stat.S_ISREG(found.st_mode)
            if known:
                done = found.st_size if found.st_size > limit else 0
            else:
                limit = min(limit, MAX_STREAM)
            while done <= limit and (piece := file.read(min(PIECE, limit + 1 - done))):
                done += len(piece)
                yield piece
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        missing = isinstance(error, FileNotFoundError)
        raise UsageError(f"cannot read the {what} {path}: {reason}", hint=hint if missing else None) from error
    if done > limit:
        actual = f"{done} bytes" if known else "more"
        raise oversized(f"the {what} {path} is too large", expected=f"at most {limit} bytes", actual=actual)


def user_folder(variable: str, fallback: str) -> Path:
    """Return our directory below one of the XDG base directories (relative values are ignored, as they demand)."""
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / fallback
        except RuntimeError as error:
            raise EnvironmentLacks("this user has no home directory", hint=f"set HOME or {variable}") from error
    return base / "veracruz"


@contextlib.contextmanager
def naming(
    path: Path, *, hint: str | None = None, about: tuple[type[VeracruzError], ...] = (VeracruzError,)
) -> Iterator[None]:
    """Let an error about a file's content, which the block raises, say which file; give it a hint if it has none."""
    try:
        yield
    except about as error:
        error.what = f"{path}: {error.what}"
        error.hint = error.hint or hint
        raise


def demand_target(path: Path) -> None:
    """Raise unless a file can be written at `path`, before long work for it; a device, say, is never replaced."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no regular file, and is not replaced", hint="name a file")
        if not path.parent.is_dir():
            raise EnvironmentLacks(f"cannot write {path}: no such directory", hint=f"mkdir -p {path.parent}")
    except OSError as error:
        raise EnvironmentLacks(f"cannot write {path}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EnvironmentLacks(f"cannot write in {path.parent}: Permission denied")


def demand_apart(targets: Mapping[str, Path | None], sources: Iterable[Path | None]) -> None:
    """Raise UsageError where an output, by whatever name, is another output, a source, or lies in one's folder.

    `targets` are named as the user named them: `--out`. What is None was not asked for.
    """
    named = [(name, path) for name, path in targets.items() if path is not None]
    given = [source for source in sources if source is not None]
    for index, (name, path) in enumerate(named):
        for other, before in named[:index]:
            if _same_file(path, before):
                raise UsageError(f"{other} and {name} name the same file", actual=path)
        for source in given:
            if _same_file(path, source) or _lies_in(path, source):
                raise UsageError(
                    f"{name} {path} would replace what it is made from: {source}", hint="name another file"
                )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def _lies_in(path: Path, folder: Path) -> bool:
    return folder.is_dir() and Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


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
    demand_target(path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    except OSError as error:
        raise not_writable(path.parent, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        _put_in_place(temporary, path, refuse_existing=refuse_existing)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise EnvironmentLacks(f"cannot write {path}: {error.strerror}", hint=room_hint(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def not_writable(folder: Path, error: OSError) -> EnvironmentLacks:
    """Return the error for a directory in which no file could be made."""
    reason = error.strerror
    if isinstance(error, FileNotFoundError) and folder.is_dir():  # so says /proc to whoever is root
        reason = "its file system takes no new files"
    return EnvironmentLacks(f"cannot write in {folder}: {reason}")


def room_hint(error: OSError, *, space: str = "free some space there") -> str | None:
    """Return what to do where a write was refused: `space` for want of it; a limit on a file's size is no such want."""
    if error.errno == errno.EFBIG:
        return "a limit of this process or of that file system on a file's size: ulimit -f shows the first"
    return space if error.errno in NO_ROOM else None


def _put_in_place(temporary: Path, path: Path, *, refuse_existing: bool) -> None:
    try:
        if refuse_existing:
            _link(temporary, path)  # unlike rename, fails where somebody was faster
        else:
            temporary.replace(path)
    except FileExistsError as error:
        raise UsageError(f"{path} exists") from error
    except OSError as error:
        raise EnvironmentLacks(f"cannot write {path}: {error.strerror}") from error


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # no hard links there, as on a USB stick
        temporary.replace(path)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system opens a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
