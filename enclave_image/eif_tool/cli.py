# SPDX-License-Identifier: MIT
"""The verbs that look inside an image: `image describe`, `image diff`, `image extract`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.console import Commands, Progress, emit, new_parser, say, warn
from attestation.errors import EXIT_OK, EXIT_REFUSED, MAX_SHOWN
from attestation.files import naming

from ..errors import MalformedEif, MalformedRamdisk
from .layout import HINT, Source, open_source

if TYPE_CHECKING:
    from .inspection import Inspection  # imports cryptography, which a build does not need

DESCRIBE_EXITS = """exit code: 0 described, with warnings or without; 1 described, and an error is among the findings
(damaged, or a signature that does not hold); 2 no enclave image at all. docs/eif.md lists the findings."""
DIFF_EXITS = "exit code: 0 every byte is the same; 1 they differ; 2 one of them cannot be read."
EXTRACT_NOTES = """Links, devices, owners, times and set-id bits of a ramdisk's files are listed in NN-ramdisk.list and
never made. An existing DIR is refused. The files are those of an unverified image: look at them, do not run them."""
MAX_WARNINGS = 10  # lines about files that were not written


def add_verbs(group: Commands) -> None:
    """Add `describe`, `diff` and `extract`."""
    describe = new_parser(
        group, "describe", summary="say what an enclave image holds, and what is wrong", run=describe_verb
    )
    describe.add_argument("image", type=Path, metavar="FILE.eif", help="any: ours, AWS's, damaged")
    describe.epilog = DESCRIBE_EXITS

    diff = new_parser(group, "diff", summary="say what differs between two images, down to the file", run=diff_verb)
    diff.add_argument("old", type=Path, metavar="OLD.eif")
    diff.add_argument("new", type=Path, metavar="NEW.eif")
    diff.epilog = DIFF_EXITS

    extract = new_parser(group, "extract", summary="write an image's sections to files", run=extract_verb)
    extract.add_argument("image", type=Path, metavar="FILE.eif")
    extract.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new directory")
    extract.add_argument("--files", action="store_true", help="also unpack the ramdisks")
    extract.epilog = EXTRACT_NOTES


@contextlib.contextmanager
def inspected(path: Path) -> Iterator[tuple[Source, Inspection]]:
    """Open and inspect an image, with progress; errors of that name the file."""
    from .inspection import inspect

    with open_source(path) as source:
        progress = Progress(f"reading {path.name}", total=source.size)
        try:
            with naming(path, hint=HINT):
                found = inspect(source, at=datetime.now(UTC), report=progress.update)
        finally:
            progress.close()
        yield source, found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Source, Inspection]]:
    """Open and inspect an image; errors of the block that are about its content name the file too."""
    with inspected(path) as both, naming(path, about=(MalformedEif, MalformedRamdisk)):
        yield both


def describe_verb(args: argparse.Namespace) -> int:
    """Print what an image holds."""
    from .describe_text import data_of, text_of

    with opened(args.image) as (_, found):
        emit(args, data_of(str(args.image), found), text_of(args.image.name, found))
    return EXIT_REFUSED if found.broken else EXIT_OK


def diff_verb(args: argparse.Namespace) -> int:
    """Print what differs between two images."""
    from .diff import Opened, compare
    from .diff_text import data_of, text_of

    with inspected(args.old) as (old_source, old), inspected(args.new) as (new_source, new):
        change = compare(Opened(old_source, old, args.old), Opened(new_source, new, args.new))
    emit(args, data_of(change), text_of(change))
    return EXIT_OK if change.same else EXIT_REFUSED


def extract_verb(args: argparse.Namespace) -> int:
    """Take an image apart."""
    from .extract import extract

    with opened(args.image) as (source, found):
        result = extract(source, found, args.out, files=args.files)
    for name, why in list(result.left_out.items())[:MAX_WARNINGS]:
        warn(f"{name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + '...'} was not written: {why}")
    if len(result.left_out) > MAX_WARNINGS:
        warn(f"{len(result.left_out) - MAX_WARNINGS} more were not written: --json names them")
    if found.broken:
        warn(f"{args.image} is damaged, or its signature does not hold: veracruz image describe tells more")
    say(f"wrote {args.out}: {len(result.files)} files, {sum(result.files.values()):,} bytes")
    top = {name: size for name, size in result.files.items() if "/" not in name}
    data = {"out": str(args.out), "files": result.files, "left_out": result.left_out}
    emit(args, data, "\n".join(f"{size:>13,}  {name}" for name, size in top.items()))
    return EXIT_OK
