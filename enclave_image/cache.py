# SPDX-License-Identifier: MIT
"""Built things, by the hash of all that they were made of; complete or absent, never half-made."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .config import cache_dir
from .errors import BuildFailed, CacheInUse, NoSpace


@dataclass(frozen=True, slots=True)
class Making:
    """A build under way: `product` becomes the entry, `scratch` is thrown away."""

    product: Path
    scratch: Path


class Cache:
    """Entries are directories `KIND/KEY`; one process at a time makes an entry, others wait for it."""

    def __init__(self, base: Path | None = None) -> None:
        self.base = (base or cache_dir()) / "built"

    @staticmethod
    def entry_name(key: str) -> str:
        """Return the name of the directory that holds the entry of a key."""
        return key[:32]

    def find(self, kind: str, key: str) -> Path | None:
        """Return an entry, None if there is none."""
        path = self.base / kind / self.entry_name(key)
        return path if path.is_dir() else None

    def has(self, kind: str) -> bool:
        """Return whether there is any entry of a kind."""
        directory = self.base / kind
        return directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir())

    def log(self, kind: str, key: str) -> Path:
        """Return an empty file for the log of a build; it outlives a build that fails."""
        path = self.base.parent / "logs" / f"{kind}-{key[:32]}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return path

    def demand(self, kind: str, key: str) -> Path:
        """Return an entry that must be there."""
        found = self.find(kind, key)
        if found is None:
            raise BuildFailed(f"the cache has lost {kind}/{key[:32]} while it was in use")
        return found

    @contextlib.contextmanager
    def make(self, kind: str, key: str) -> Iterator[Making]:
        """Make an entry in the body; it appears whole when the body ends, and not at all if it raises.

        If another process made the same entry meanwhile, theirs stays: same key, same bytes.
        """
        directory = self.base / kind
        target = directory / key[:32]
        with lock_file(directory / f".{key[:32]}.lock"):
            making = f".making-{key[:32]}-"
            for left in directory.glob(f"{making}*"):  # by a build that was killed
                remove_tree(left)
            scratch = Path(tempfile.mkdtemp(prefix=making, dir=directory))
            product = scratch / "product"
            try:
                product.mkdir()
                yield Making(product, scratch)
                if not target.is_dir():
                    _sync_tree(product)
                    product.rename(target)
            finally:
                remove_tree(scratch)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory whatever its modes are."""
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock: two builds of the same thing by two shells take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


USE = ".use.lock"  # held shared by whoever reads or fills the cache, alone by `cache prune`


@contextlib.contextmanager
def using_cache() -> Iterator[None]:
    """Keep `cache prune` away while something of the cache is in use; also of a cache that is only to be read."""
    base = cache_dir()
    base.mkdir(parents=True, exist_ok=True)
    with _open_use(base / USE) as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def _open_use(path: Path) -> IO[str]:
    try:
        return path.open("a")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES) or not path.exists():
            raise
        return path.open("r")  # flock asks for no right to write


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """Have the cache alone; raise CacheInUse at once while a build is under way."""
    base = cache_dir()
    base.mkdir(parents=True, exist_ok=True)
    with (base / USE).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheInUse(f"a build is using {base}", hint="run this again when it has ended") from error
        yield


def demand_space(where: Path, needed: int) -> None:
    """Raise NoSpace unless `needed` bytes are free on the file system of the directory `where`."""
    free = shutil.disk_usage(where).free
    if free < needed:
        raise NoSpace(
            f"too little room in {where}", expected=f"{needed / 1e6:.0f} MB free", actual=f"{free / 1e6:.0f} MB",
            hint="free some, or name another place: --out FILE, TMPDIR, or XDG_CACHE_HOME for the cache",
        )  # fmt: skip
