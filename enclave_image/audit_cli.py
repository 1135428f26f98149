# SPDX-License-Identifier: MIT
"""`veracruz image audit`: known facts about what is inside an image."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from attestation.console import Commands, emit, new_parser, say
from attestation.errors import EXIT_OK, EXIT_REFUSED

from .advisories import Advisory, find_advisories, load_advisories
from .archive import KEYRING
from .audit import Audit, audit_image
from .cache import using_cache
from .changes import Change, find_changes
from .config import ImageConfig
from .config_options import add_source_options, demand_architecture, load_sources
from .eif import load_eif, read_eif
from .inventory import Inventory, make_inventory
from .lock import Lock
from .recipe import make_image
from .resolve import resolve

MAX_ROWS = 30  # rows of a list that the text shows; --json has all


def add_audit(group: Commands) -> None:
    """Add `image audit`."""
    verb = new_parser(group, "audit", summary="list known facts about what is inside an image", run=audit_verb)
    verb.add_argument("image", type=Path, nargs="?", metavar="FILE.eif", help="default: what this checkout builds")
    add_source_options(verb, of="your own image.toml and the rest")
    verb.add_argument("--advisories", type=Path, metavar="FILE", help="JSON export of Debian's security tracker")
    verb.add_argument("--keyring", type=Path, default=KEYRING, metavar="FILE", help="holds the archive's keys")
    verb.add_argument("--snapshot", metavar="URL", help="of a snapshot service, for what the mirror no longer has")
    verb.add_argument("--offline", action="store_true", help="fetch nothing: newer versions are not looked for")


def audit_verb(args: argparse.Namespace) -> int:
    """Print the facts; 1 if a file is not as it should be."""
    image = load_eif(args.image) if args.image is not None else None
    if image is not None:
        demand_architecture(args, image)
    table = load_advisories(args.advisories) if args.advisories is not None else None
    config, lock = load_sources(args)
    with using_cache():
        made = make_image(config, lock, offline=args.offline, snapshot=args.snapshot)
        inventory = make_inventory(config, lock, made)
    facts = audit_image(image or read_eif(made.image), inventory)
    behind = _find_behind(config, lock, args)
    advisories = find_advisories(inventory, table) if table is not None else None
    data = {
        "oddities": [asdict(oddity) for oddity in facts.oddities],
        "behind": None if behind is None else [change.as_json() for change in behind],
        "advisories": None if advisories is None else [asdict(row) for row in advisories],
        "security_suite": [component.name for component in facts.security],
        "licences": {name: list(users) for name, users in facts.licences.items()},
        "sizes": dict(facts.sizes),
        "modules": {name: list(modules) for name, modules in facts.modules.items()},
        "components": [
            {"kind": c.kind.value, "name": c.name, "version": c.version, "sha256": c.sha256}
            for c in inventory.components
        ],
    }  # fmt: skip
    emit(args, data, "\n".join(_text(facts, inventory, behind, advisories)))
    return EXIT_REFUSED if facts.oddities else EXIT_OK


def _find_behind(config: ImageConfig, lock: Lock, args: argparse.Namespace) -> list[Change] | None:
    if args.offline:
        say("--offline: newer versions were not looked for")
        return None
    return find_changes(lock, resolve(config, lock, keyring=args.keyring))


def _text(
    facts: Audit, inventory: Inventory, behind: list[Change] | None, advisories: list[Advisory] | None
) -> list[str]:
    lines = ["Files that should not be as they are (set-id, writable by all, executable, unknown ...)"]
    lines += _rows([f"{row.what}: ramdisk {row.ramdisk} /{row.path} {row.mode}" for row in facts.oddities])
    lines.append("Behind today's archive")
    lines += ["  not looked for"] if behind is None else _rows([str(change) for change in behind])
    lines.append("Known vulnerabilities of Debian packages (wheels and what they bundle are not covered)")
    lines += ["  not looked for: --advisories FILE"] if advisories is None else _advisory_rows(advisories)
    lines.append("From the security archive")
    lines += _rows([f"{component.name} {component.version}" for component in facts.security])
    lines.append("Licences that the packages name for their source")
    lines += _rows([f"{name}: {', '.join(users)}" for name, users in facts.licences.items()], limit=None)
    lines.append("Bytes unpacked, by component")
    versions = {component.name: component.version for component in inventory.components}
    lines += _rows([f"{size:>11,}  {name} {versions[name]}" for name, size in facts.sizes.items()], limit=None)
    lines.append("Python modules, by component")
    return lines + _rows([f"{name}: {len(modules)}" for name, modules in facts.modules.items()], limit=None)


def _advisory_rows(advisories: list[Advisory]) -> list[str]:
    rows = []
    for row in advisories:
        fixed = f", fixed in {row.fixed}" if row.fixed else ""
        rows.append(f"{row.name} {row.urgency or 'no urgency'}: {row.source} {row.version}: {row.status}{fixed}")
    return _rows(rows)


def _rows(rows: list[str], limit: int | None = MAX_ROWS) -> list[str]:
    shown = rows if limit is None else rows[:limit]
    more = [f"  ... and {len(rows) - len(shown)} more (--json has all)"] if len(shown) < len(rows) else []
    return [*(f"  {row}" for row in shown), *more] or ["  none"]
