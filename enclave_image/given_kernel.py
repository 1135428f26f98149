# SPDX-License-Identifier: MIT
"""A kernel that the user brings: a finished one, such as AWS's own, instead of the one that the lock describes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from attestation.errors import UsageError
from attestation.files import read_limited

from .architecture import Architecture, find_architecture, read_banner

MAX_KERNEL = 64 * 1024 * 1024  # bytes; distributions' have 15 MB

# Offsets of the setup header: Linux Documentation/arch/x86/boot.rst.
_HEADER_END = 0x264
_BOOT_FLAG = (0x1FE, b"\x55\xaa")
_MAGIC = (0x202, b"HdrS")
_VERSION, _OLDEST = 0x206, 0x020C  # xloadflags is there since 2.12
_LOADFLAGS, _LOADED_HIGH = 0x211, 1  # bzImage, not zImage
_XLOADFLAGS, _KERNEL_64 = 0x236, 1


@dataclass(frozen=True, slots=True)
class GivenKernel:
    """A kernel as it was given."""

    path: Path
    image: bytes = field(repr=False)
    sha256: str  # hex
    banner: str  # what it says of itself: version, builder


def load_given_kernel(path: Path, architecture: Architecture) -> GivenKernel:
    """Read a kernel for an architecture, in the form that its loaders take; raise UsageError, saying what it is not."""
    form = architecture.kernel_form
    raw = read_limited(path, limit=MAX_KERNEL, what="kernel", hint=f"--kernel takes {form}")
    (_check_bzimage if architecture is Architecture.X86_64 else _check_arm_image)(path, raw)
    return GivenKernel(path, raw, hashlib.sha256(raw).hexdigest(), read_banner(raw))


def _demand(path: Path, raw: bytes, holds: bool, expected: str, hint: str) -> None:
    if not holds:
        raise UsageError(
            f"{path} is no kernel that an enclave boots",
            expected=expected,
            actual=raw[:4],
            hint=f"--kernel takes {hint}",
        )


def _check_bzimage(path: Path, raw: bytes) -> None:
    def word(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], "little")

    def demand(holds: bool, expected: str) -> None:
        _demand(path, raw, holds, expected, "an x86-64 bzImage, the file that a distribution calls vmlinuz")

    demand(len(raw) > _HEADER_END, f"a bzImage, which has more than {_HEADER_END} bytes")
    for offset, magic in (_BOOT_FLAG, _MAGIC):
        demand(raw[offset : offset + len(magic)] == magic, f"{magic!r} at {offset:#x}, as in a bzImage")
    demand(word(_VERSION, 2) >= _OLDEST, "boot protocol 2.12 or later")
    demand(bool(word(_LOADFLAGS, 1) & _LOADED_HIGH), "a bzImage, not a zImage")
    demand(bool(word(_XLOADFLAGS, 2) & _KERNEL_64), "a 64-bit kernel")


def _check_arm_image(path: Path, raw: bytes) -> None:
    _demand(path, raw, find_architecture(raw) is Architecture.AARCH64, Architecture.AARCH64.kernel_form,
            "an uncompressed arm64 Image: unpack what a distribution calls vmlinuz")  # fmt: skip
