# SPDX-License-Identifier: MIT
"""What runs the programs of an image for another processor during its build: QEMU's user emulation, locked.

It decides no byte: the image's own interpreter and libzstd do, and they compute the same on any processor.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .architecture import Architecture
from .cache import Cache
from .debian import unpack
from .errors import BuildFailed

KIND = "emulator"  # of the cache
RECIPE = "1"  # part of the cache's key: change it when the steps below change their product


def emulator_key(sha256: str, architecture: Architecture) -> str:
    """Return the hash of all that an emulator is made of: `sha256` is its package's."""
    return hashlib.sha256(f"{RECIPE}\n{architecture}\n{sha256}".encode()).hexdigest()


def find_emulator(cache: Cache, package: Path, *, sha256: str, architecture: Architecture) -> Path:
    """Return the program that runs an architecture's programs here, out of QEMU's locked package, static as it is."""
    name, key = f"qemu-{architecture}", emulator_key(sha256, architecture)
    if cache.find(KIND, key) is None:
        with cache.make(KIND, key) as making:
            unpack(package, making.product, keep=lambda path: path == f"usr/bin/{name}")
            if not (making.product / "usr/bin" / name).is_file():
                raise BuildFailed(f"{package.name} holds no emulator for {architecture}", expected=f"usr/bin/{name}")
    return cache.demand(KIND, key) / "usr/bin" / name
