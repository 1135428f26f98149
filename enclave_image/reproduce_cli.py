# SPDX-License-Identifier: MIT
"""`veracruz image reproduce`: does somebody's image stand for exactly the source that I have here?"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from attestation.console import Commands, emit, new_parser
from attestation.errors import EXIT_OK, EXIT_REFUSED, escape
from attestation.files import demand_apart, demand_target, hash_limited, naming, write_whole

from .cache import using_cache
from .checkout import hash_sources, read_checkout
from .comparison import Comparison, FileRow, SectionRow, compare_images
from .config_options import add_source_options, demand_architecture, find_lock, load_sources, source_files
from .eif import MAX_EIF, load_eif, read_eif
from .inventory import make_inventory
from .kernel_options import add_kernel_options, read_kernel
from .recipe import make_image

MAX_ROWS = 40  # files that the text lists; --json has all
MAX_HINTS = 4096  # bytes of an image's metadata that are shown


def add_reproduce(group: Commands) -> None:
    """Add `image reproduce`."""
    verb = new_parser(
        group, "reproduce", summary="rebuild an image from this checkout and lock, and say where it differs",
        run=reproduce_verb,
    )  # fmt: skip
    verb.add_argument("image", type=Path, metavar="FILE.eif")
    add_source_options(verb, of="your own image.toml and the rest")
    verb.add_argument("--out", type=Path, metavar="FILE.eif", help="also write the rebuilt image there")
    verb.add_argument("--snapshot", metavar="URL", help="of a snapshot service, for what the mirror no longer has")
    add_kernel_options(verb)
    verb.add_argument("--offline", action="store_true", help="fetch nothing; fail if the cache lacks an input")


def reproduce_verb(args: argparse.Namespace) -> int:
    """Rebuild from our own checkout and lock; compare section by section; 0 if all that is measured is the same."""
    theirs = load_eif(args.image)
    demand_architecture(args, theirs)
    given = hash_limited(args.image, limit=MAX_EIF, what="image")  # before anything is written
    if args.out is not None:
        demand_target(args.out)
    config, lock = load_sources(args)
    demand_apart({"--out": args.out}, [args.image, args.kernel, *source_files(args, config)])
    kernel = read_kernel(args)
    with using_cache():
        made = make_image(
            config, lock, out=args.out, offline=args.offline, snapshot=args.snapshot, kernel=kernel
        )  # fmt: skip
        ours = read_eif(made.image)
        inventory = make_inventory(config, lock, made)
    with naming(args.image):
        compared = compare_images(theirs, ours, inventory)
    if args.out is not None:
        write_whole(args.out, made.image)
    whole = given == hashlib.sha256(made.image).digest()
    checkout, hashes = read_checkout(), hash_sources(args.config, find_lock(args))
    data = {
        "reproduced": compared.reproduced,
        "identical": whole,
        "checkout": {
            "directory": str(checkout.directory), "commit": checkout.commit, "changed": list(checkout.changed),
        },
        "sources": hashes,
        "sha256": hashlib.sha256(made.image).hexdigest(),
        "registers": {name: {"theirs": a.hex(), "ours": b.hex()} for name, a, b in compared.registers},
        "sections": [_section_json(row) for row in compared.sections],
        "files": [
            {"ramdisk": row.ramdisk, "path": row.path, "difference": row.fault.value, "origin": row.origin}
            for row in compared.files
        ],
        "causes": list(compared.causes),
        "says_of_itself": _hints(theirs.metadata),
    }  # fmt: skip
    head = [f"checkout  {checkout}", *(f"{value}  {name}" for name, value in hashes.items())]
    emit(
        args, data, "\n".join([*head, *_text(compared), *_hint_lines(theirs.metadata), verdict(compared, whole=whole)])
    )
    return EXIT_OK if compared.reproduced else EXIT_REFUSED


def _section_json(row: SectionRow) -> dict[str, Any]:
    def side(told: tuple[int, str] | None) -> dict[str, Any] | None:
        return None if told is None else {"size": told[0], "sha256": told[1]}

    return {"section": row.name, "measured": row.measured, "same": row.same, "theirs": side(row.theirs),
            "ours": side(row.ours)}  # fmt: skip


def _text(compared: Comparison) -> list[str]:
    lines = []
    for name, theirs, ours in compared.registers:
        lines.append(f"{name}  {ours.hex()}" if theirs == ours else f"{name}  DIFFERS: theirs {theirs.hex()}")
        if theirs != ours:
            lines.append(f"      {'':8} ours   {ours.hex()}")
    for row in compared.sections:
        note = "" if row.measured else " (not measured)"
        lines.append(f"{row.name:<10} {'same' if row.same else f'DIFFERS: {_sides(row)}'}{note}")
    lines += [_file_line(row) for row in compared.files[:MAX_ROWS]]
    if len(compared.files) > MAX_ROWS:
        lines.append(f"  ... and {len(compared.files) - MAX_ROWS} files more (--json has all)")
    return lines + [f"because   {cause}" for cause in compared.causes]


def _sides(row: SectionRow) -> str:
    def side(told: tuple[int, str] | None) -> str:
        return "none" if told is None else f"{told[0]} bytes {told[1][:16]}.."

    return f"theirs {side(row.theirs)}, ours {side(row.ours)}"


def _file_line(row: FileRow) -> str:
    return f"  ramdisk {row.ramdisk}: /{escape(row.path)}: {row.fault}; from {row.origin}"


def _hints(metadata: bytes | None) -> Any:
    """Return what the image says of itself, if that is JSON: a hint, never an input."""
    try:
        return json.loads((metadata or b"")[:MAX_HINTS])
    except (ValueError, RecursionError):
        return None


def _hint_lines(metadata: bytes | None) -> list[str]:
    hints = _hints(metadata)
    if not isinstance(hints, dict):
        return []
    build = hints.get("BuildMetadata")
    rows = {"ImageName": hints.get("ImageName"), "ImageVersion": hints.get("ImageVersion"),
            **(build if isinstance(build, dict) else {})}  # fmt: skip
    words = ", ".join(f"{escape(key)} {escape(value)}" for key, value in list(rows.items())[:12])
    return [f"the image says of itself (a hint that nothing measures): {words}"]


def verdict(compared: Comparison, *, whole: bool) -> str:
    """Return the last line: what the comparison comes to. `whole`: the files are the same to the last byte."""
    if not compared.reproduced:
        return "NOT reproduced: its measurements do not stand for this checkout and lock"
    apart = [row.name for row in compared.sections if not row.same] or ["the header"]
    more = ", byte for byte" if whole else f"; outside PCR0 to PCR2 there differs: {', '.join(apart)}"
    if "signature" in apart:
        more += " (PCR8 stands for its signer: not compared)"
    return f"reproduced: its measurements stand for this checkout and lock{more}"
