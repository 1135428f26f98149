# SPDX-License-Identifier: MIT
"""Findings on disk: the input and what it brought about, with the command that shows it again."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from attestation.files import user_folder, write_whole

from .target import Finding, Target


def default_folder(target: str) -> Path:
    """Return where the findings of a target are kept: state of the user's, not a cache."""
    return user_folder("XDG_STATE_HOME", ".local/state") / "fuzz" / target


def file_name(place: str, data: bytes) -> str:
    """Return a name that says what it is, of letters that are safe in a shell."""
    return f"{_escaped(place)}-{hashlib.sha256(data).hexdigest()[:12]}"


def _escaped(place: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", place)[:80]


def replay_command(target: str, path: Path) -> str:
    """Return the command that runs one input again."""
    return f"scripts/fuzz {target} --replay {path}"


def save(folder: Path, target: Target, finding: Finding, *, replaces: bool = False) -> Path:
    """Write a finding's input, and beside it what happened; return the input's path.

    With `replaces`, earlier inputs for the same place are removed: this one is smaller.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if replaces:
        for old in folder.glob(f"{_escaped(finding.place)}-*"):
            old.unlink(missing_ok=True)
    path = folder / file_name(finding.place, finding.data)
    write_whole(path, finding.data)
    text = f"{finding.place}: {finding.message}\n\n{replay_command(target.name, path)}\n\n{finding.trace}"
    write_whole(path.with_name(path.name + ".txt"), text.encode("ascii", "backslashreplace"))
    return path
