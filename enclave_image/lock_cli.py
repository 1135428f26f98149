# SPDX-License-Identifier: MIT
"""`veracruz image lock`: show what today's archive would change in the lock; write it when told to."""

from __future__ import annotations

import argparse
from pathlib import Path

from attestation.console import Commands, emit, new_parser, say, warn
from attestation.errors import EXIT_OK, EXIT_REFUSED
from attestation.files import demand_target, write_whole

from .architecture import Architecture
from .archive import KEYRING
from .cache import using_cache
from .changes import Kind, describe_effect, find_changes
from .config import find_snapshot, load_config
from .config_options import add_source_options, find_lock, load_sources
from .errors import ArchiveUntrusted
from .fetch import Snapshot
from .lock import Lock, format_lock, own_version, parse_lock
from .resolve import complete, resolve


def add_lock(group: Commands) -> None:
    """Add `image lock`."""
    lock = new_parser(group, "lock", summary="show what today's Debian would change in the lock", run=lock_verb)
    add_source_options(lock)
    acts = lock.add_mutually_exclusive_group()
    acts.add_argument("--write", action="store_true", help="write the new lock (else nothing is written)")
    acts.add_argument("--check", action="store_true", help="exit with 1 when the lock is behind")
    lock.add_argument("--allow-older", action="append", default=[], metavar="NAME",
                      help="write although this package's version is lower than the lock's")  # fmt: skip
    lock.add_argument("--keyring", type=Path, default=KEYRING, metavar="FILE", help="holds the archive's keys")
    lock.add_argument("--snapshot", metavar="URL", help="of a snapshot service, for what the mirror no longer has")


def lock_verb(args: argparse.Namespace) -> int:
    """Resolve the lock anew; print what changed; write it only under --write."""
    path = find_lock(args)
    if args.write:
        demand_target(path)
    old: Lock | None = None
    if path.exists() or not args.write:
        config, old = load_sources(args)
    else:
        config = load_config(args.config, architecture=Architecture(args.architecture))
    new = resolve(config, old, keyring=args.keyring)
    changes = find_changes(old, new)
    lines = [str(change) for change in changes]
    moved_tool = old is not None and old.tool != new.tool
    if old is not None and moved_tool:
        lines.append(f"tool     veracruz {old.tool} -> {own_version()}")
    if behind := bool(lines):
        lines.append(describe_effect(changes))
    for change in changes:
        if change.kind is Kind.FORGED:
            warn(f"{change.name}: the archive serves other bytes under a version that the lock already has")
    if args.write and behind:
        lowered = [c.name for c in changes if c.kind is Kind.LOWERED and c.name not in args.allow_older]
        if lowered:
            raise ArchiveUntrusted(
                f"the archive's version is older than the lock's: {', '.join(lowered)}",
                hint="--allow-older NAME for each, once you know why",
            )
        with using_cache():
            raw = format_lock(complete(config, new, snapshot=Snapshot.named(find_snapshot(config, args.snapshot))))
        parse_lock(raw)  # what is written can be read
        write_whole(path, raw)
        say(f"wrote {path}")
    elif behind:
        say(f"{path} is left as it is; --write writes these changes")
    emit(
        args,
        {"lock": str(path), "behind": behind, "written": args.write and behind, "tool": new.tool,
         "changes": [change.as_json() for change in changes], "effect": describe_effect(changes)},
        "\n".join(lines) or "nothing changed",
    )  # fmt: skip
    return EXIT_REFUSED if args.check and behind else EXIT_OK
