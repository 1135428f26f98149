# SPDX-License-Identifier: MIT
"""`image build --from-oci`: its options, and what is said of an image that it makes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from attestation.console import say, warn
from attestation.errors import UsageError, escape

from ..config import ImageConfig
from ..eif_writer import Built
from ..given_kernel import GivenKernel
from ..lock import Lock
from .build import FromContainer, build_container

FOREIGN = (
    "this image runs a container, not our runtime: it takes no policy, ends no attested TLS and signs no receipts; "
    "what evidence it gives, and to whom, is the container's own doing (docs/from-oci.md)"
)


def add_options(build: argparse.ArgumentParser) -> None:
    """Add `--from-oci` and `--platform`."""
    build.add_argument(
        "--from-oci", type=Path, metavar="DIR|TAR", help="run a container image instead (docs/from-oci.md)"
    )
    build.add_argument(
        "--platform", metavar="OS/ARCH", help="of the container image, where it has several (default: the enclave's)"
    )


def check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if args.from_oci is None:
        if args.platform is not None:
            raise UsageError("--platform is for --from-oci")
        return
    for option in ("sbom", "manifest"):
        if getattr(args, option) is not None:
            raise UsageError(f"--{option} is not for --from-oci: what a container image holds is in no lock of ours")


def container_files(args: argparse.Namespace) -> list[Path]:
    """Return what is read of a container image: none may be an output."""
    source: Path | None = args.from_oci
    if source is None:
        return []
    names = ("oci-layout", "index.json", "manifest.json", "blobs")
    if not source.is_dir():
        return [source]
    # And what `docker save` wrote before it wrote layouts.
    return [*(source / name for name in names), *source.glob("*.json"), *source.glob("*/layer.tar")]


def build_from_oci(
    config: ImageConfig, lock: Lock, args: argparse.Namespace, *, kernel: GivenKernel | None
) -> tuple[Built, dict[str, Any]]:
    """Build; say what the image is not; return what was built and what to print beside it."""
    warn(FOREIGN)
    made = build_container(
        config, lock, args.from_oci, platform=args.platform or f"linux/{lock.architecture.debian}", out=args.out,
        offline=args.offline, snapshot=args.snapshot, kernel=kernel,
    )  # fmt: skip
    _tell(made)
    settings = made.settings
    return made.built, {
        "container": made.digest, "command": list(settings.command), "workdir": settings.workdir, "uid": settings.uid,
        "gid": settings.gid, "groups": list(settings.groups), "left_out": list(made.left_out),
        "lost_attributes": list(made.attributes),
    }  # fmt: skip


def _tell(made: FromContainer) -> None:
    if made.left_out:
        warn(f"{len(made.left_out)} device nodes below /dev are left out: the enclave's kernel makes its own")
    if made.attributes:
        names = ", ".join(escape(name) for name in made.attributes)
        warn(f"a ramdisk holds no extended attributes; lost: {names}")
    command = escape(shlex.join(made.settings.command))
    say(f"container {made.digest} runs {command} as {made.settings.uid}:{made.settings.gid}")
