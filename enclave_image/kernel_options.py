# SPDX-License-Identifier: MIT
"""The options of the verbs that build an image: which kernel configuration, or whose kernel."""

from __future__ import annotations

import argparse
from pathlib import Path

from attestation.console import warn

from .architecture import Architecture
from .given_kernel import GivenKernel, load_given_kernel


def add_kernel_options(parser: argparse.ArgumentParser) -> None:
    """Add --kernel-config and --kernel; at most one of them."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--kernel-config", metavar="NAME", help="instead of image.toml's: default, minimal")
    choice.add_argument("--kernel", type=Path, metavar="FILE", help="a finished kernel, which is in no lock")


def read_kernel(args: argparse.Namespace) -> GivenKernel | None:
    """Return the kernel that was given, having said aloud what that means; None for the lock's own."""
    if args.kernel is None:
        return None
    kernel = load_given_kernel(args.kernel, Architecture(args.architecture))
    warn(
        f"the kernel is {args.kernel} (sha256 {kernel.sha256}, {kernel.banner}) and in no lock: who rebuilds this "
        "image needs that very file, and PCR0 and PCR1 are not those of the lock"
    )
    return kernel
