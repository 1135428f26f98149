# SPDX-License-Identifier: MIT
"""Known vulnerabilities of the Debian packages inside, from a file of Debian's security tracker (its JSON export).

The file is the caller's: none is fetched, and no address is built in. What the tracker does not cover is not covered
here: Python wheels, and what is compiled into them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attestation.files import naming, read_limited

from .debian import version_key
from .errors import MalformedConfig
from .inventory import Component, Inventory, Kind

MAX_ADVISORIES = 512 * 1024 * 1024  # bytes; the tracker's export has some 70 MB
COVERED = (Kind.DEBIAN, Kind.LINKED, Kind.KERNEL)
_ORDER = ("high", "medium", "low", "not yet assigned", "unimportant", "end-of-life")


@dataclass(frozen=True, slots=True)
class Advisory:
    """One vulnerability that the tracker does not call fixed in the version that is inside."""

    name: str  # such as CVE-2026-1234
    source: str  # Debian's source package
    version: str  # inside
    packages: tuple[str, ...]  # its binary packages that are inside
    status: str  # open, undetermined, or fixed-later: a version with the fix exists
    fixed: str  # the version with the fix, if there is one
    urgency: str


def load_advisories(path: Path) -> dict[str, Any]:
    """Read a tracker's export; raise UsageError or MalformedConfig naming the file."""
    raw = read_limited(path, limit=MAX_ADVISORIES, what="advisories")
    with naming(path):
        try:
            table = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise MalformedConfig("no JSON", actual=error) from error
        if not isinstance(table, dict) or not all(isinstance(rows, dict) for rows in table.values()):
            raise MalformedConfig("not an export of the security tracker", expected="{source package: {CVE: {...}}}")
        return table


def find_advisories(inventory: Inventory, table: dict[str, Any]) -> list[Advisory]:
    """Return what is known of the packages inside, the most urgent first."""
    sources: dict[tuple[str, str], list[Component]] = {}
    for component in inventory.components:
        if component.kind in COVERED and component.source:
            sources.setdefault((component.source, component.source_version), []).append(component)
    found = [
        advisory
        for (source, version), components in sources.items()
        for advisory in _of_source(table.get(source, {}), source, version, components, inventory.suite)
    ]
    return sorted(found, key=lambda row: (_rank(row.urgency), row.source, row.name))


def _rank(urgency: str) -> int:
    plain = urgency.rstrip("*")
    return _ORDER.index(plain) if plain in _ORDER else len(_ORDER)


def _of_source(
    rows: dict[str, Any], source: str, version: str, components: list[Component], suite: str
) -> Iterator[Advisory]:
    packages = tuple(sorted(component.name for component in components))
    for name, row in rows.items():
        releases = row.get("releases") if isinstance(row, dict) else None
        release = releases.get(suite) if isinstance(releases, dict) else None
        if not isinstance(release, dict):
            continue
        status, fixed = str(release.get("status", "undetermined")), str(release.get("fixed_version", ""))
        if status == "resolved":
            # The tracker writes 0 where no version in this suite ever was affected.
            if not fixed or fixed == "0" or version_key(version) >= version_key(fixed):
                continue
            status = "fixed-later"
        yield Advisory(name, source, version, packages, status, fixed, str(release.get("urgency", "")))
