# SPDX-License-Identifier: MIT
"""The options of every verb that works on an image's sources: whose configuration, which lock, for which processor."""

from __future__ import annotations

import argparse
from pathlib import Path

from attestation.errors import UsageError

from .architecture import BUILDER, Architecture
from .config import DEFAULT_DIR, ImageConfig, load_config
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
