# SPDX-License-Identifier: MIT
"""What the cache holds, which of it a lock needs, and how the rest is removed while no build is under way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import remove_tree
from .config import cache_dir
from .lock import Lock

UNFINISHED = "unfinished"  # what a build that was killed left behind


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be removed by itself."""

    kind: str  # input, kernel, init, platform, log, or unfinished
    name: str
    path: Path
    size: int  # bytes on disk
    used: float  # seconds since 1970: when it was last written or read, as far as the file system tells
    needed: bool  # by the configuration and lock given


def disk_size(path: Path) -> int:
    """Return the bytes that a file or a tree takes on disk; a name that goes away meanwhile counts nothing."""
    total = 0
    for place in (path, *path.rglob("*")):
        try:
            total += place.lstat().st_blocks * 512
        except OSError:
            continue
    return total


def list_items(needed: frozenset[str], locks: Sequence[Lock]) -> list[Item]:
    """Return all items, sorted by kind and name. `needed` holds the paths `KIND/KEY` of built things to keep."""
    base = cache_dir()
    inputs = {entry.sha256[:16] for lock in locks for entry in lock.inputs}
    return sorted(
        [*_inputs(base / "inputs", inputs), *_built(base / "built", needed), *_logs(base / "logs")],
        key=lambda item: (item.kind, item.name),
    )


def _folders(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else []


def _item(kind: str, name: str, path: Path, needed: bool) -> Item:
    found = path.lstat()
    return Item(kind, name, path, disk_size(path), max(found.st_mtime, found.st_atime), needed)


def _inputs(base: Path, wanted: set[str]) -> Iterator[Item]:
    for folder in _folders(base):
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
        whole = [path.name for path in files if path.suffix != ".part"]
        kind = "input" if whole else UNFINISHED
        yield _item(kind, (whole or [path.name for path in files] or [folder.name])[0], folder,
                    folder.name in wanted and bool(whole))  # fmt: skip


def _built(base: Path, needed: frozenset[str]) -> Iterator[Item]:
    for kind in _folders(base):
        for entry in _folders(kind):
            unfinished = entry.name.startswith(".")
            name = f"{kind.name}/{entry.name}"
            yield _item(UNFINISHED if unfinished else kind.name, entry.name, entry, name in needed)


def find_linked() -> frozenset[str]:
    """Return the entries, `KIND/KEY`, that a link in the cache leads to: they are installed, not made for a lock."""
    base = cache_dir()
    built = (base / "built").resolve()
    targets = [path.resolve() for path in base.iterdir() if path.is_symlink()] if base.is_dir() else []
    return frozenset(str(target.relative_to(built)) for target in targets if target.is_relative_to(built))


def _logs(base: Path) -> Iterator[Item]:
    if base.is_dir():
        for path in sorted(base.glob("*.log")):
            yield _item("log", re.sub(r"-[0-9a-f]{32}\.log$", "", path.name), path, False)


def remove_items(items: Sequence[Item]) -> list[Item]:
    """Remove items; return those removed. The caller has the cache alone (`own_cache`).

    An entry that is being made all the same, by an older veracruz that takes no lock on the whole cache, is left.
    """
    removed = []
    for item in items:
        if item.path.is_dir():
            with _entry_free(item.path) as free:
                if not free:
                    continue
                doomed = item.path.with_name(f".removed-{os.getpid()}-{item.path.name}")
                item.path.rename(doomed)  # gone at once, as a whole: what is half removed is never found
            remove_tree(doomed)
        else:
            item.path.unlink(missing_ok=True)
        removed.append(item)
    return removed


@contextlib.contextmanager
def _entry_free(path: Path) -> Iterator[bool]:
    """Hold the lock under which `Cache.make` makes an entry; False where somebody else holds it."""
    key = re.search(r"[0-9a-f]{32}", path.name)
    lock = path.with_name(f".{key[0]}.lock") if key else path / ".lock"  # of an input: the one of its download
    with lock.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
