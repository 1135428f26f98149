# SPDX-License-Identifier: MIT
"""The verbs of `veracruz image`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from attestation.console import Commands, emit, new_group, new_parser, say
from attestation.files import demand_apart, demand_target, write_whole
from attestation.measurements import Measurements, dump_measurements

from .audit_cli import add_audit
from .cache import using_cache
from .cache_cli import add_cache
from .config import ImageConfig
from .config_options import add_source_options, load_sources, source_files
from .container.cli import add_options, build_from_oci, check_options, container_files
from .eif_tool import cli as eif_cli
from .eif_tool import sign_cli
from .inventory import dump_inventory, make_inventory
from .kernel_options import add_kernel_options, read_kernel
from .lock import Lock
from .lock_cli import add_lock
from .recipe import Made, build_image
from .reproduce_cli import add_reproduce
from .sbom import make_sbom


def add_verbs(commands: Commands) -> None:
    """Add `image build|describe|diff|extract|sign|lock|reproduce|audit` and `cache list|prune`."""
    group = new_group(commands, "image", summary="build an enclave image and look inside one")

    build = new_parser(group, "build", summary="build the image that a lock describes", run=build_verb)
    build.add_argument("--out", type=Path, required=True, metavar="FILE.eif", help="where to write the image")
    build.add_argument("--measurements", type=Path, metavar="FILE", help="also write its PCRs there, as JSON")
    build.add_argument("--sbom", type=Path, metavar="FILE", help="also write its bill of materials there (CycloneDX)")
    build.add_argument("--manifest", type=Path, metavar="FILE", help="also write there what is inside, file by file")
    add_source_options(build)
    build.add_argument("--snapshot", metavar="URL", help="of a snapshot service, for what the mirror no longer has")
    add_kernel_options(build)
    add_options(build)
    build.add_argument("--offline", action="store_true", help="fetch nothing; fail if the cache lacks an input")

    eif_cli.add_verbs(group)
    sign_cli.add_verb(group)

    add_lock(group)
    add_reproduce(group)
    add_audit(group)
    add_cache(commands)


def _text(measurements: Measurements) -> str:
    table = dump_measurements(measurements)["Measurements"]
    return "\n".join(f"{name}  {table[name]}" for name in ("PCR0", "PCR1", "PCR2"))


def build_verb(args: argparse.Namespace) -> int:
    """Build an image; print its measurements."""
    start = time.monotonic()
    check_options(args)
    targets: dict[str, Path | None] = {
        f"--{option}": getattr(args, option) for option in ("out", "measurements", "sbom", "manifest")
    }
    for target in targets.values():
        if target is not None:
            demand_target(target)
    config, lock = load_sources(args)
    demand_apart(targets, [args.kernel, *container_files(args), *source_files(args, config)])
    kernel = read_kernel(args)
    more: dict[str, Any] = {}
    if args.from_oci is not None:
        built, more = build_from_oci(config, lock, args, kernel=kernel)
    else:
        with using_cache():
            built, made = build_image(
                config, lock, out=args.out, offline=args.offline, snapshot=args.snapshot, kernel=kernel,
                with_inputs=args.sbom is not None or args.manifest is not None,
            )  # fmt: skip
            _write_inventory(config, lock, made, args)
    table = dump_measurements(built.measurements)
    if args.measurements is not None:
        write_whole(args.measurements, (json.dumps(table, indent=2) + "\n").encode())
    seconds = time.monotonic() - start
    verb = "built" if built.changed else "unchanged"
    say(f"{verb} {args.out}: {built.size / 2**20:.1f} MiB, sha256 {built.sha256}, {seconds:.1f} s")
    emit(
        args,
        {"image": str(args.out), "size": built.size, "sha256": built.sha256, "changed": built.changed, **more, **table},
        _text(built.measurements),
    )
    return 0


def _write_inventory(config: ImageConfig, lock: Lock, made: Made, args: argparse.Namespace) -> None:
    if args.sbom is None and args.manifest is None:
        return
    inventory = make_inventory(config, lock, made)
    if args.manifest is not None:
        write_whole(args.manifest, (json.dumps(dump_inventory(inventory), indent=1) + "\n").encode())
    if args.sbom is not None:
        write_whole(args.sbom, make_sbom(inventory))
