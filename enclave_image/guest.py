# SPDX-License-Identifier: MIT
"""The image's own programs, run on the building machine: what compiles its bytecode and packs its ramdisks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .architecture import BUILDER, Architecture
from .run import run

GUEST_TOOL = Path(__file__).parent / "guest_tool.py"
PYTHON = "usr/bin/python3.13"


@dataclass(frozen=True, slots=True)
class Guest:
    """An unpacked platform, and what runs its programs here."""

    root: Path
    architecture: Architecture = BUILDER
    emulator: Path | None = None  # a program for the building machine; None where that runs them itself

    def python(self, arguments: Sequence[str | Path], *, what: str) -> bytes:
        """Run the image's own interpreter on guest_tool.py, by the image's own loader and libraries."""
        libraries = self.root / self.architecture.libraries
        command = [
            *([self.emulator] if self.emulator else []), libraries / self.architecture.loader, "--library-path",
            libraries, self.root / PYTHON, "-X", "utf8", "-I", "-S", "-B", GUEST_TOOL, *arguments,
        ]  # fmt: skip
        return run(command, what=what, env={})

    def compress(self, source: Path, target: Path, *, level: int) -> None:
        """Compress a file by the image's own libzstd."""
        library = self.root / self.architecture.libraries / "libzstd.so.1"
        self.python(["compress", library, source, target, str(level)], what="compression")
