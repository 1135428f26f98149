# SPDX-License-Identifier: MIT
"""`veracruz cache list|prune`: what downloads and builds left on the disk."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.console import Commands, emit, new_group, new_parser, say

from .architecture import BUILDER, Architecture
from .cache import own_cache, using_cache
from .cache_contents import Item, find_linked, list_items, remove_items
from .config import DEFAULT_DIR, cache_dir, load_config
from .config_options import lock_beside
from .container.build import find_needed_init
from .lock import load_lock
from .recipe import find_needed
from .space import amount


def add_cache(commands: Commands) -> None:
    """Add `cache list|prune`."""
    group = new_group(commands, "cache", summary="see and remove what downloads and builds left on the disk")
    listed = new_parser(group, "list", summary="list what the cache holds", run=list_verb)
    prune = new_parser(group, "prune", summary="remove what the current lock does not need", run=prune_verb)
    prune.add_argument("--all", action="store_true", help="remove everything: the next build fetches and compiles anew")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for verb in (listed, prune):
        verb.add_argument("--config", type=Path, default=DEFAULT_DIR, metavar="DIR", help="its image is kept")
        verb.add_argument("--lock", type=Path, metavar="FILE", help="instead of the locks beside image.toml")


def _items(args: argparse.Namespace) -> list[Item]:
    """Return what there is; needed is what the lock named needs, or every one that stands beside image.toml."""
    own = [path for path in (lock_beside(args.config, architecture) for architecture in Architecture) if path.exists()]
    locks = [load_lock(path) for path in ([args.lock] if args.lock else own or [lock_beside(args.config, BUILDER)])]
    needed = find_linked()
    for lock in locks:
        config = load_config(args.config, architecture=lock.architecture)
        needed |= find_needed(config, lock) | {find_needed_init(config, lock)}
    return list_items(needed, locks)


def _json(item: Item) -> dict[str, Any]:
    used = datetime.fromtimestamp(item.used, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"kind": item.kind, "name": item.name, "size": item.size, "used": used, "needed": item.needed,
            "path": str(item.path)}  # fmt: skip


def _line(item: Item) -> str:
    used = datetime.fromtimestamp(item.used, UTC).strftime("%Y-%m-%d")
    return f"{item.kind:<18} {amount(item.size):>8}  {used}  {'needed' if item.needed else '      '}  {item.name}"


def list_verb(args: argparse.Namespace) -> int:
    """Print what the cache holds, and what of it the current lock needs."""
    with using_cache():
        items = _items(args)
    total, needed = sum(item.size for item in items), sum(item.size for item in items if item.needed)
    data = {"cache": str(cache_dir()), "size": total, "needed": needed, "items": [_json(item) for item in items]}
    last = f"{amount(total)} in {cache_dir()}, {amount(needed)} of it needed by the current lock"
    emit(args, data, "\n".join([*(_line(item) for item in items), last]))
    return 0


def prune_verb(args: argparse.Namespace) -> int:
    """Remove what is not needed; everything under --all."""
    with using_cache() if args.dry_run else own_cache():
        doomed = [item for item in _items(args) if args.all or not item.needed]
        if not args.dry_run:
            doomed = remove_items(doomed)
    size = sum(item.size for item in doomed)
    say(f"{'would remove' if args.dry_run else 'removed'} {len(doomed)} items, {amount(size)}")
    data = {"cache": str(cache_dir()), "dry_run": args.dry_run, "freed": size, "items": [_json(i) for i in doomed]}
    emit(args, data, "\n".join(_line(item) for item in doomed))
    return 0
