# SPDX-License-Identifier: MIT
"""The verbs of `veracruz image`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from attestation.console import Commands, emit, new_group, new_parser, say
from attestation.errors import UsageError
from attestation.files import demand_target, write_whole
from attestation.measurements import Measurements, dump_measurements

from . import eif_cli, sign_cli
from .config import DEFAULT_DIR, load_config
from .lock import format_lock, load_lock
from .recipe import build_image
from .resolve import describe_change, resolve


def add_verbs(commands: Commands) -> None:
    """Add `image build|describe|diff|extract|sign|lock`."""
    group = new_group(commands, "image", summary="build an enclave image and look inside one")

    build = new_parser(group, "build", summary="build the image that a lock describes", run=build_verb)
    build.add_argument("--out", type=Path, required=True, metavar="FILE.eif", help="where to write the image")
    build.add_argument("--measurements", type=Path, metavar="FILE", help="also write its PCRs there, as JSON")
    build.add_argument("--config", type=Path, default=DEFAULT_DIR, metavar="DIR", help="holds image.toml and the rest")
    build.add_argument("--lock", type=Path, metavar="FILE", help="instead of enclave.lock beside image.toml")
    build.add_argument("--offline", action="store_true", help="fetch nothing; fail if the cache lacks an input")

    eif_cli.add_verbs(group)
    sign_cli.add_verb(group)

    lock = new_parser(group, "lock", summary="resolve the inputs that image.toml names to exact hashes", run=lock_verb)
    lock.add_argument("--config", type=Path, default=DEFAULT_DIR, metavar="DIR", help="holds image.toml and the rest")
    lock.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: enclave.lock beside it)")


def _text(measurements: Measurements) -> str:
    table = dump_measurements(measurements)["Measurements"]
    return "\n".join(f"{name}  {table[name]}" for name in ("PCR0", "PCR1", "PCR2"))


def build_verb(args: argparse.Namespace) -> int:
    """Build an image; print its measurements."""
    start = time.monotonic()
    for target in (args.out, args.measurements):
        if target is not None:
            demand_target(target)
    if args.measurements is not None and args.measurements.absolute() == args.out.absolute():
        raise UsageError("--out and --measurements name the same file", actual=args.out)
    config = load_config(args.config)
    lock = load_lock(args.lock or args.config / "enclave.lock")
    built = build_image(config, lock, out=args.out, offline=args.offline)
    table = dump_measurements(built.measurements)
    if args.measurements is not None:
        write_whole(args.measurements, (json.dumps(table, indent=2) + "\n").encode())
    seconds = time.monotonic() - start
    verb = "built" if built.changed else "unchanged"
    say(f"{verb} {args.out}: {built.size / 2**20:.1f} MiB, sha256 {built.sha256}, {seconds:.1f} s")
    emit(
        args,
        {"image": str(args.out), "size": built.size, "sha256": built.sha256, "changed": built.changed, **table},
        _text(built.measurements),
    )
    return 0


def lock_verb(args: argparse.Namespace) -> int:
    """Resolve the lock anew; print what changed; write it."""
    config = load_config(args.config)
    out = args.out or args.config / "enclave.lock"
    demand_target(out)
    old = load_lock(out) if out.exists() else None
    new = resolve(config)
    changes = describe_change(old, new)
    if changes:
        write_whole(out, format_lock(new))
    emit(args, {"lock": str(out), "changes": changes}, "\n".join(changes) or "nothing changed")
    return 0
