# SPDX-License-Identifier: MIT
"""A kernel that the user brings: a finished bzImage, such as AWS's own, instead of the one that the lock describes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from attestation.errors import UsageError
from attestation.files import read_limited

MAX_KERNEL = 64 * 1024 * 1024  # bytes; distributions' have 15 MB

# Offsets of the setup header: Linux Documentation/arch/x86/boot.rst.
_HEADER_END = 0x264
_BOOT_FLAG = (0x1FE, b"\x55\xaa")
_MAGIC = (0x202, b"HdrS")
_VERSION, _OLDEST = 0x206, 0x020C  # xloadflags is there since 2.12
_KERNEL_VERSION = 0x20E  # of a text, less 0x200
_LOADFLAGS, _LOADED_HIGH = 0x211, 1  # bzImage, not zImage
_XLOADFLAGS, _KERNEL_64 = 0x236, 1
MAX_BANNER = 256  # bytes of the version text


@dataclass(frozen=True, slots=True)
class GivenKernel:
    """A bzImage as it was given."""

    path: Path
    image: bytes = field(repr=False)
    sha256: str  # hex
    banner: str  # what it says of itself: version, builder


def load_given_kernel(path: Path) -> GivenKernel:
    """Read a bzImage for x86-64; raise UsageError, saying what it is not."""
    raw = read_limited(path, limit=MAX_KERNEL, what="kernel", hint="--kernel takes a bzImage")

    def word(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], "little")

    def demand(holds: bool, expected: str) -> None:
        if not holds:
            raise UsageError(
                f"{path} is no kernel that an enclave boots", expected=expected, actual=raw[:4],
                hint="--kernel takes an x86-64 bzImage, the file that a distribution calls vmlinuz",
            )  # fmt: skip

    demand(len(raw) > _HEADER_END, f"a bzImage, which has more than {_HEADER_END} bytes")
    for offset, magic in (_BOOT_FLAG, _MAGIC):
        demand(raw[offset : offset + len(magic)] == magic, f"{magic!r} at {offset:#x}, as in a bzImage")
    demand(word(_VERSION, 2) >= _OLDEST, "boot protocol 2.12 or later")
    demand(bool(word(_LOADFLAGS, 1) & _LOADED_HIGH), "a bzImage, not a zImage")
    demand(bool(word(_XLOADFLAGS, 2) & _KERNEL_64), "a 64-bit kernel")
    return GivenKernel(path, raw, hashlib.sha256(raw).hexdigest(), _banner(raw, word(_KERNEL_VERSION, 2)))


def _banner(raw: bytes, pointer: int) -> str:
    if not pointer:
        return "unknown"
    text = raw[0x200 + pointer : 0x200 + pointer + MAX_BANNER].partition(b"\0")[0]
    return text.decode("ascii", "backslashreplace") or "unknown"
