# SPDX-License-Identifier: MIT
"""The application half of an image, kept by the hash of all that it is made of: an unchanged one is not made again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from attestation.console import say

from .application import OURS, SOURCE, stage_application
from .cache import Cache
from .errors import BuildFailed
from .guest import Guest
from .platform_half import RAMDISK, pack

KIND, TREE = "application", "tree"  # the kind of entry in the cache; the files of the ramdisk beside it, unpacked


def find_application(cache: Cache, guest: Guest, *, level: int) -> Path:
    """Return a directory with the ramdisk and its files unpacked; made unless the cache has it.

    The guest's root is the unpacked platform in its entry of the cache, `level` zstd's.
    """
    root = guest.root
    key = application_key(root.parent.name, level)
    if (found := cache.find(KIND, key)) is not None:
        return found
    with cache.make(KIND, key) as making:
        say("compiling the application")
        stage = making.product / TREE
        stage.mkdir()
        tree = stage_application(guest, stage)
        both = [name for name, entry in tree.items() if entry is not None and (root / name).exists()]
        if both:  # the later ramdisk would shadow the earlier one under an equal PCR1
            raise BuildFailed("both ramdisks hold the same path", actual=", ".join(both))
        (making.product / RAMDISK).write_bytes(pack(tree, guest, level))
        if application_key(root.parent.name, level) != key:
            raise BuildFailed("our own source changed while it was built", hint="run this again")
    return cache.demand(KIND, key)


def application_key(platform: str, level: int) -> str:
    """Return the hash of all that the application is made of.

    That is the platform, whose interpreter compiles it, and the source of both packages whole: also the steps' own.
    """
    digest = hashlib.sha256(f"{platform}\n{level}\n".encode())
    for path in sorted(path for package in OURS for path in (SOURCE / package).rglob("*.py")):
        text = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(SOURCE).as_posix()} {text}\n".encode())
    return digest.hexdigest()
