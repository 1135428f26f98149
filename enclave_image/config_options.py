# SPDX-License-Identifier: MIT
"""The options of every verb that works on an image's sources: whose configuration, which lock, for which processor."""

from __future__ import annotations

import argparse
from pathlib import Path

from attestation.errors import UsageError

from .architecture import BUILDER, Architecture, find_architecture
from .config import DEFAULT_DIR, ImageConfig, load_config
from .eif import Eif
from .lock import Lock, load_lock


def add_source_options(parser: argparse.ArgumentParser, *, of: str = "holds image.toml and the rest") -> None:
    """Add --config, --lock and --architecture; `of` says what the configuration is for."""
    parser.add_argument("--config", type=Path, default=DEFAULT_DIR, metavar="DIR", help=of)
    parser.add_argument("--lock", type=Path, metavar="FILE", help="instead of the lock beside image.toml")
    names = [str(architecture) for architecture in Architecture]
    parser.add_argument("--architecture", choices=names, default=str(BUILDER), help=f"of the enclave ({BUILDER})")


def lock_beside(directory: Path, architecture: Architecture) -> Path:
    """Return where the lock of an architecture stands: beside image.toml."""
    return directory / ("enclave.lock" if architecture is BUILDER else f"enclave-{architecture}.lock")


def find_lock(args: argparse.Namespace) -> Path:
    """Return the lock's path: the option's, or the architecture's own."""
    named: Path | None = args.lock
    return named or lock_beside(args.config, Architecture(args.architecture))


def source_files(args: argparse.Namespace, config: ImageConfig) -> list[Path]:
    """Return the files that a build reads of its configuration, and its lock: none may be a verb's output."""
    return [find_lock(args), *config.files]


def load_sources(args: argparse.Namespace) -> tuple[ImageConfig, Lock]:
    """Return the configuration and its lock; raise UsageError for a lock of another architecture."""
    config = load_config(
        args.config, architecture=Architecture(args.architecture), kernel_config=getattr(args, "kernel_config", None)
    )
    lock = load_lock(find_lock(args))
    if lock.architecture is not config.architecture:
        raise UsageError(
            f"{find_lock(args)} is for another architecture", expected=config.architecture, actual=lock.architecture,
            hint=f"--architecture {lock.architecture}, or another --lock",
        )  # fmt: skip
    return config, lock


def demand_architecture(args: argparse.Namespace, image: Eif) -> None:
    """Raise UsageError for an image of another processor than the one asked for: its rebuild could only differ.

    What an image is chooses nothing by itself: which lock to hold it against is the relying party's to say.
    """
    found = find_architecture(image.kernel)
    if found is not None and found != args.architecture:
        raise UsageError(
            f"{args.image} is for another processor", expected=args.architecture, actual=found,
            hint=f"--architecture {found}, to rebuild from the lock of that one",
        )  # fmt: skip
