# SPDX-License-Identifier: MIT
"""Which source is running: the checkout's commit, whether it was changed, and the hashes of what decides an image."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .application import OURS, SOURCE
from .run import CLEAN_ENVIRONMENT

GIT_LIMIT = 30  # seconds
DECIDING = (".toml", ".fragment", ".list", ".patch")  # beside the lock


@dataclass(frozen=True, slots=True)
class Checkout:
    """Where our own code comes from. `commit` is None where this is no git checkout: an installed package."""

    directory: Path
    commit: str | None
    changed: tuple[str, ...]  # files of our packages that differ from the commit, or that it does not have

    def __str__(self) -> str:
        if self.commit is None:
            return f"{self.directory}: no git checkout, so no commit can be named"
        if not self.changed:
            return f"{self.directory}: commit {self.commit}, clean"
        more = f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else ""
        return f"{self.directory}: commit {self.commit}, CHANGED: {', '.join(self.changed[:3])}{more}"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(SOURCE), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=GIT_LIMIT, env=CLEAN_ENVIRONMENT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def read_checkout() -> Checkout:
    """Return the state of the source that is running."""
    top = _git("rev-parse", "--show-toplevel") if shutil.which("git") else None
    commit = _git("rev-parse", "HEAD") if top and Path(top.strip()).resolve() == SOURCE else None
    if commit is None:
        return Checkout(SOURCE, None, ())
    status = _git("status", "--porcelain", "-z", "--no-renames", "--", *OURS, "pyproject.toml")
    if status is None:
        return Checkout(SOURCE, commit.strip(), ("its state cannot be read",))
    return Checkout(SOURCE, commit.strip(), tuple(row[3:] for row in status.split("\0") if row))


def hash_sources(config: Path, lock: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that decide an image beside our own code, by name."""
    files = [path for path in sorted(config.rglob("*")) if path.is_file() and path.suffix in DECIDING]
    hashes = {path.relative_to(config).as_posix(): path for path in files}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in {lock.name: lock, **hashes}.items()}
