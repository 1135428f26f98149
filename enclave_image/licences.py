# SPDX-License-Identifier: MIT
"""What a package says of itself: its source package, its licences, and what a wheel says it bundles.

Sources: Debian's machine-readable copyright format 1.0; Python's core metadata 2.4; CycloneDX for a wheel's own SBOM
(PEP 770). Licences are those that the package names for its source, nobody's conclusion.
"""

from __future__ import annotations

import email.parser
import email.policy
import io
import json
import lzma
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .debian import clean_name, open_data, read_ar_member

MAX_TEXT = 4 * 1024 * 1024  # bytes of a copyright file, a control file or a wheel's SBOM
DOCS = "usr/share/doc"

# Debian's short names where SPDX has another one.
_SPDX = {
    "expat": "MIT", "mit": "MIT", "x11": "X11", "isc": "ISC", "zlib": "Zlib", "zlib/libpng": "Zlib",
    "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause", "bsd-4-clause": "BSD-4-Clause",
    "apache-2": "Apache-2.0", "apache-2.0": "Apache-2.0", "cc0": "CC0-1.0", "cc0-1.0": "CC0-1.0",
    "artistic": "Artistic-1.0-Perl", "fsfap": "FSFAP", "gfdl-1.3+": "GFDL-1.3-or-later", "gfdl-1.3": "GFDL-1.3-only",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Licences:
    """Names of licences (SPDX's where there is one), and where a reader finds the text."""

    names: tuple[str, ...]  # empty: no assertion
    text: str  # where the licence's own words are


@dataclass(frozen=True, slots=True)
class Bundled:
    """A component that a wheel's own SBOM says is compiled into it."""

    name: str
    version: str
    purl: str
    licences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DebianFacts:
    """What a .deb says of itself."""

    source: str
    source_version: str
    licences: Licences


def spdx_name(short: str) -> str:
    """Return SPDX's name of a licence that Debian's format names, the same name where it has none."""
    short = short.strip()
    if (known := _SPDX.get(short.lower())) is not None:
        return known
    if (gnu := re.fullmatch(r"(L|A)?GPL-(\d)(\.\d)?(\.0)?(\+)?", short)) is not None:
        variant, major, minor, _, later = gnu.groups()
        return f"{variant or ''}GPL-{major}{minor or '.0'}-{'or-later' if later else 'only'}"
    return short


def parse_copyright(text: str) -> tuple[str, ...]:
    """Return the licences that a machine-readable copyright file names, sorted; none where it is another kind."""
    if not re.match(r"Format:\s*\S*copyright-format/1\.0", text.lstrip("\ufeff \n")):
        return ()
    names = set()
    for line in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE):
        for choice in re.split(r",?\s+(?:and/or|or|and)\s+", line.strip().rstrip(",")):
            names.add(spdx_name(choice.strip(" ,")))
    return tuple(sorted(names))


def read_deb(path: Path, name: str) -> DebianFacts:
    """Return what a package's control and copyright files say."""
    fields = _read_control(path)
    source = re.fullmatch(r"(\S+)(?: \((\S+)\))?", fields.get("Source", name))
    origin, version = (source[1], source[2]) if source else (name, None)
    copyright_file, link = _read_copyright(path, name)
    if link is not None:
        licences = Licences((), f"the copyright file of the package {link}")
    else:
        names = parse_copyright(copyright_file) if copyright_file is not None else ()
        licences = Licences(names, f"{DOCS}/{name}/copyright in {path.name}")
    return DebianFacts(origin, version or fields.get("Version", ""), licences)


def _read_control(path: Path) -> dict[str, str]:
    _, data = read_ar_member(path, "control.tar.xz")
    with lzma.open(io.BytesIO(data)) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if clean_name(member.name) == "control" and member.isreg() and member.size <= MAX_TEXT:
                content = tar.extractfile(member)
                text = content.read().decode("utf-8", "replace") if content else ""
                return dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.MULTILINE))
    return {}


def _read_copyright(path: Path, name: str) -> tuple[str | None, str | None]:
    """Return the copyright file's text, or the package that the documentation's link names instead."""
    with open_data(path) as tar:
        for member in tar:
            where = clean_name(member.name)
            if where == f"{DOCS}/{name}" and member.issym():
                return None, member.linkname
            if where == f"{DOCS}/{name}/copyright" and member.isreg() and member.size <= MAX_TEXT:
                content = tar.extractfile(member)
                return (content.read().decode("utf-8", "replace") if content else None), None
    return None, None


def read_wheel(path: Path) -> tuple[Licences, tuple[Bundled, ...]]:
    """Return what a wheel's metadata says of its licence, and what its own SBOMs say it bundles."""
    bundled: list[Bundled] = []
    with zipfile.ZipFile(path) as wheel:
        infos = {info.filename: info for info in wheel.infolist() if info.file_size <= MAX_TEXT}
        meta = next((name for name in infos if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)), None)
        fields = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(wheel.read(meta) if meta else b"")
        for name in sorted(infos):
            if re.fullmatch(r"[^/]+\.dist-info/sboms/.*\.json", name):
                bundled += _bundled(wheel.read(name))
    said = str(fields.get("License-Expression") or fields.get("License") or "").strip()
    names = (said,) if said and "\n" not in said and len(said) < 200 else ()
    unique = {(item.name, item.version): item for item in bundled}
    return Licences(names, f"{meta or 'the metadata'} in {path.name}"), tuple(unique[key] for key in sorted(unique))


def _bundled(raw: bytes) -> list[Bundled]:
    try:
        table = json.loads(raw)
        rows = table.get("components", []) if isinstance(table, dict) else []
    except (ValueError, RecursionError):
        return []
    found = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("name"), str) and isinstance(row.get("version"), str):
            purl = row.get("purl")
            found.append(
                Bundled(row["name"], row["version"], purl if isinstance(purl, str) else "", _licence_names(row))
            )
    return found


def _licence_names(row: dict[str, Any]) -> tuple[str, ...]:
    names = []
    for entry in row.get("licenses") or []:
        if isinstance(entry, dict):
            inner = entry.get("license") if isinstance(entry.get("license"), dict) else {}
            name = entry.get("expression") or (inner or {}).get("id") or (inner or {}).get("name")
            if isinstance(name, str):
                names.append(name)
    return tuple(names)
