# SPDX-License-Identifier: MIT
"""The platform half of an image: locked packages and wheels to one packed ramdisk, and where each file came from.

What this module and those that it imports say decides the product's bytes, so their source is part of its cache key.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .architecture import Architecture
from .guest import GUEST_TOOL, Guest
from .initramfs import Tree, only_executable, read_tree, write_cpio
from .rootfs import build_rootfs

RAMDISK, ORIGINS, ROOT = "ramdisk", "origins.json", "root"  # what an entry of the cache holds


def platform_key(inputs: Sequence[str], *, trim: Path, init: Path, level: int, sources: Sequence[Path]) -> str:
    """Return the hash of all that the platform is made of: inputs' SHA-256, trim list, /init, and our own steps."""
    parts = [*inputs, str(level)]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in (trim, init, GUEST_TOOL, *sources)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def make_platform(product: Path, *, packages: Sequence[Path], wheels: Sequence[Path], trim: Path, init: Path,
                  level: int, architecture: Architecture, emulator: Path | None) -> None:  # fmt: skip
    """Fill the empty directory `product`: the unpacked root, its ramdisk, and each file's input by file name."""
    guest = Guest(product / ROOT, architecture, emulator)
    guest.root.mkdir()
    origins = build_rootfs(guest, packages=packages, wheels=wheels, trim=trim, init=init)
    tree = only_executable("init", read_tree(guest.root))
    (product / RAMDISK).write_bytes(pack(tree, guest, level))
    (product / ORIGINS).write_text(json.dumps(find_origins(tree, origins), indent=0, sort_keys=True))


def find_origins(tree: Mapping[str, object], origins: Mapping[str, str]) -> dict[str, str]:
    """Return each path's input: a .pyc stands where its .py was."""
    found = {}
    for path in tree:
        origin = origins.get(path) or (origins.get(path[:-1]) if path.endswith(".pyc") else None)
        if origin is not None:
            found[path] = origin
    return found


def pack(tree: Tree, guest: Guest, level: int) -> bytes:
    """Return a tree as a ramdisk, compressed by the guest's own libzstd."""
    with tempfile.TemporaryDirectory(prefix="veracruz-pack-") as scratch:
        archive, packed = Path(scratch) / "cpio", Path(scratch) / "cpio.zst"
        archive.write_bytes(write_cpio(tree))
        guest.compress(archive, packed, level=level)
        return packed.read_bytes()
