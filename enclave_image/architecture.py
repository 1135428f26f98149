# SPDX-License-Identifier: MIT
"""The two processors of enclaves: how others name them, the header's flag, and the form of their kernels.

Sources: aws-nitro-enclaves-image-format README.md (flags, bit 0), the kernel's Documentation/arch/x86/boot.rst and
Documentation/arch/arm64/booting.rst; aws-nitro-enclaves-sdk-bootstrap kernel/kernel.nix for the text offset.
"""

from __future__ import annotations

import os
import re
import struct
from enum import StrEnum

from attestation.errors import EnvironmentLacks

from .errors import BuildFailed

TEXT_OFFSET = 2 << 20  # bytes; what Nitro's loader wants where an arm64 Image says 0, as kernels do since 5.8
_ARM_HEAD = 64  # bytes of an arm64 Image's header
_X86_HEAD = 0x206  # bytes up to the end of the magic of a bzImage's header
_VERSION_AT = 0x20E  # boot.rst: kernel_version, less 0x200
MAX_BANNER = 256  # bytes of the version text
_ARM_BANNER = re.compile(rb"Linux version ([ -~]{1,%d})\n" % MAX_BANNER)  # init/version-timestamp.c: linux_banner


class Architecture(StrEnum):
    """A processor, under the kernel's name for it."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"

    @property
    def debian(self) -> str:
        """Debian's name, which is also OCI's."""
        return {"x86_64": "amd64", "aarch64": "arm64"}[self.value]

    @property
    def kernel_form(self) -> str:
        """What the image's kernel section has to be."""
        return {"x86_64": "an x86 bzImage", "aarch64": "an uncompressed arm64 Image"}[self.value]

    @property
    def kernel_target(self) -> str:
        """What make is asked for, which is also the finished file's name."""
        return {"x86_64": "bzImage", "aarch64": "Image"}[self.value]

    @property
    def kernel_tree(self) -> str:
        """The name of its directory below the kernel's arch/."""
        return {"x86_64": "x86", "aarch64": "arm64"}[self.value]

    @property
    def triplet(self) -> str:
        """Debian's name of the ABI: of library directories and of compilers."""
        return f"{self.value}-linux-gnu"

    @property
    def libraries(self) -> str:
        """The directory of shared libraries, below the root."""
        return f"usr/lib/{self.triplet}"

    @property
    def loader(self) -> str:
        """glibc's dynamic loader: its file's name."""
        return {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}[self.value]

    @property
    def loader_directory(self) -> str:
        """Where programs look for it: a directory of the root, which leads to the one of that name below usr."""
        return {"x86_64": "lib64", "aarch64": "lib"}[self.value]

    def package(self, name: str) -> str:
        """Return Debian's name of a package of this architecture beside the build machine's own: `libc6:arm64`."""
        return name if self is BUILDER else f"{name}:{self.debian}"


BUILDER = Architecture.X86_64  # every build runs on it: the toolchain and the emulator are programs for it


def demand_builder() -> None:
    """Raise EnvironmentLacks on a machine that cannot run the toolchain; before anything is fetched for it."""
    machine = os.uname().machine
    if machine != BUILDER:
        raise EnvironmentLacks(
            "images are built on x86-64 alone: the locked toolchain is of programs for it", expected=BUILDER.value,
            actual=machine, hint="build elsewhere and copy the image; any host will do to run it on Nitro or to verify",
        )  # fmt: skip


def find_architecture(kernel: bytes | memoryview) -> Architecture | None:
    """Return what a kernel is for, by the magic of its form; None for what no loader of enclaves takes."""
    head = bytes(kernel[:_X86_HEAD])
    if head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS":
        return Architecture.X86_64
    if head[56:60] == b"ARM\x64" and len(head) >= _ARM_HEAD:
        return Architecture.AARCH64
    return None


def read_banner(kernel: bytes | memoryview) -> str:
    """Return what a kernel says of itself: version, builder, time; "unknown" where it says nothing.

    It may be anybody's text, of at most four times MAX_BANNER characters: escape it before it is shown.
    """
    found = find_architecture(kernel)
    if found is Architecture.AARCH64:
        told = _ARM_BANNER.search(kernel)
        return told[1].decode("ascii") if told else "unknown"
    start = struct.unpack_from("<H", kernel, _VERSION_AT)[0] if found and len(kernel) >= _VERSION_AT + 2 else 0
    text = bytes(kernel[0x200 + start : 0x200 + start + MAX_BANNER]).partition(b"\0")[0] if start else b""
    return text.decode("ascii", "backslashreplace") or "unknown"


def fit_kernel(kernel: bytes, architecture: Architecture) -> bytes:
    """Return a kernel as its section has to hold it; raise BuildFailed for another form or processor.

    An arm64 Image whose text offset is 0 gets 2 MiB there: the loader does not apply the kernel's own rule for 0.
    """
    found = find_architecture(kernel)
    if found is not architecture:
        packed = "a compressed file" if kernel[:2] == b"\x1f\x8b" or kernel[4:8] == b"zimg" else "no kernel known"
        raise BuildFailed(
            f"the kernel's form is not {architecture}'s", expected=architecture.kernel_form,
            actual=found.kernel_form if found else packed,
        )  # fmt: skip
    if architecture is Architecture.AARCH64 and struct.unpack_from("<Q", kernel, 8) == (0,):
        return kernel[:8] + struct.pack("<Q", TEXT_OFFSET) + kernel[16:]
    return kernel
