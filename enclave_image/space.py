# SPDX-License-Identifier: MIT
"""How much room a build needs, said before it begins and refused where there is less."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from attestation.console import say

from .cache import demand_space
from .config import cache_dir

# Bytes, rounded up from what was measured (docs/image.md).
KERNEL = 2_300_000_000  # while it compiles: 2.0 GB of source, objects and toolchain at the peak; 3 MB stay
PLATFORM = 150_000_000  # unpacked and packed; stays
SCRATCH = 120_000_000  # a ramdisk before and after it is compressed
IMAGE = 40_000_000
SMALL = 64_000_000  # what is not worth a line at the start


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build is going to make."""

    downloads: int  # bytes
    kernel: bool
    platform: bool

    def rows(self, out: Path | None) -> list[tuple[Path, int, str]]:
        """Return each place, the bytes needed there, and what for."""
        rows = [(Path(tempfile.gettempdir()), SCRATCH, "to pack")]
        if self.downloads:
            rows.append((cache_dir(), self.downloads, "of downloads"))
        if self.kernel:
            rows.append((cache_dir(), KERNEL, "while the kernel compiles"))
        if self.platform:
            rows.append((cache_dir(), PLATFORM, "for the platform"))
        if out is not None:
            rows.append((out.parent, IMAGE, "for the image"))
        return rows


def demand_room(plan: Plan, *, out: Path | None) -> None:
    """Say what a build needs where that is much; raise NoSpace with the numbers where there is less."""
    needs: dict[int, list[tuple[Path, int, str]]] = defaultdict(list)
    for where, size, purpose in plan.rows(out):
        needs[os.stat(where).st_dev].append((where, size, purpose))  # noqa: PTH116
    for rows in needs.values():
        total = sum(size for _, size, _ in rows)
        words = ", ".join(f"{amount(size)} {purpose}" for _, size, purpose in rows)
        where = max(rows, key=lambda row: row[1])[0]
        if plan.downloads + plan.kernel + plan.platform > 0 and total > SMALL:
            say(f"needs {amount(total)} in {where} ({words}); {amount(shutil.disk_usage(where).free)} are free")
        demand_space(where, total)


def amount(size: int) -> str:
    """Return a number of bytes for a reader."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
