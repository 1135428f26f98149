# SPDX-License-Identifier: MIT
"""What a finished kernel build must show of itself: some steps go wrong without a word in the log."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .architecture import Architecture
from .errors import BuildFailed
from .given_kernel import load_given_kernel

ORC_HASH = Path("arch/x86/include/generated/asm/orc_hash.h")  # scripts/orc_hash.sh: sed, awk and sha1sum in a pipe
NOTHING = hashlib.sha1(b"", usedforsecurity=False).digest()


def find_kernel(build: Path, architecture: Architecture) -> Path:
    """Return where a build of the kernel leaves it."""
    return build / "arch" / architecture.kernel_tree / "boot" / architecture.kernel_target


def check_kernel(build: Path, architecture: Architecture, *, environment: dict[str, str]) -> None:
    """Raise BuildFailed unless the build used the given time, user and host, and its generated hash is of something.

    usr/gen_initramfs.sh and the banner take the present time where the given one is not understood; a hash of nothing
    comes out where a tool before it in the pipe has failed.
    """
    banner = load_given_kernel(find_kernel(build, architecture), architecture).banner
    user, version = "({KBUILD_BUILD_USER}@{KBUILD_BUILD_HOST}) ", "#{KBUILD_BUILD_VERSION} "
    wanted = [text.format_map(environment) for text in (user, version)]  # an arm64 kernel names its compiler between
    if not all(text in banner for text in wanted) or not banner.endswith(environment["KBUILD_BUILD_TIMESTAMP"]):
        raise BuildFailed(
            "the kernel names another time, user or host",
            expected=f"{'...'.join(wanted)}... {environment['KBUILD_BUILD_TIMESTAMP']}", actual=banner,
        )  # fmt: skip
    if (build / ORC_HASH).exists():  # a configuration may unwind by other means
        found = bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2})", (build / ORC_HASH).read_text()))
        if len(found) != len(NOTHING) or found == NOTHING:
            raise BuildFailed(
                "the kernel's ORC hash is of nothing: awk, sed or sha1sum does not work in the toolchain",
                expected=f"{len(NOTHING)} bytes", actual=found.hex(),
            )  # fmt: skip
