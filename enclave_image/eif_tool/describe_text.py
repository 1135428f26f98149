# SPDX-License-Identifier: MIT
"""An inspection in words for a person, and as the object that --json prints. All that the file says is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256

from attestation.errors import MAX_SHOWN, escape
from attestation.measurements import HASH_ALGORITHM, dump_measurements

from ..eif import SectionType
from .inspection import Inspection, Signer
from .layout import Part
from .loaders import Verdict

MARGIN = 11  # columns of the labels
SHOWN_DIGEST = 16  # hex digits of a section's digest; --json has them all
SHOWN_FINDINGS = 3  # of one slug
_METADATA_ROWS = (("name", ("ImageName", "ImageVersion")), ("built", ("BuildTime",)), ("system", ("OperatingSystem",)))


def registers(inspection: Inspection) -> dict[str, dict[str, str]]:
    """Return the measurements under nitro-cli's names, PCR8 among them where a certificate is there."""
    if inspection.measurements is None:
        return {}
    table = dump_measurements(inspection.measurements)
    if inspection.pcr8 is not None:
        table["Measurements"]["PCR8"] = inspection.pcr8.hex()
    return table


def text_of(name: str, inspection: Inspection) -> str:
    """Return the whole description, in blocks divided by empty lines."""
    layout = inspection.layout
    head = f"{name}: EIF version {layout.header.version}, {layout.header.architecture}, {layout.size:,} bytes"
    blocks = [
        [head], _section_rows(inspection), _register_rows(inspection), _content_rows(inspection),
        _finding_rows(inspection),
    ]  # fmt: skip
    return "\n\n".join("\n".join(block) for block in blocks if block)


def row(label: str, text: str) -> str:
    """Return a labelled line."""
    return f"{label:<{MARGIN}}{text}".rstrip()


def _section_rows(inspection: Inspection) -> list[str]:
    rows = [(f"{'#':>2}  {'section':<9}  {'offset':>13}  {'size':>13}  SHA-384")]
    for part in inspection.layout.parts:
        digest = inspection.digests[part.index][:SHOWN_DIGEST] + ".." if inspection.digests else "-"
        rows.append(
            f"{part.index:>2}  {part.name:<9}  {part.start:>13,}  {part.size:>13,}  {digest}{_note(inspection, part)}"
        )
    return rows


def _note(inspection: Inspection, part: Part) -> str:
    if part.type == SectionType.KERNEL and inspection.contents.kernel is not None:
        return f"  {inspection.contents.kernel}"
    packing = inspection.contents.packings.get(part.index)
    return f"  {packing}" if packing is not None else ""


def _register_rows(inspection: Inspection) -> list[str]:
    table = registers(inspection).get("Measurements")
    if table is None:
        why = inspection.layout.unbounded or "a section is not all in the file"
        return [row("PCRs", f"not computed: {why}")]
    return [f"{name}  {value}" for name, value in table.items() if name.startswith("PCR")]


def _content_rows(inspection: Inspection) -> list[str]:
    contents, rows = inspection.contents, []
    if contents.cmdline is not None:
        rows += _wrapped("cmdline", contents.cmdline.decode("latin-1").encode("unicode_escape").decode())
    metadata = contents.metadata or {}
    build = metadata.get("BuildMetadata")
    flat = {**(build if isinstance(build, dict) else {}), **metadata}
    for label, keys in _METADATA_ROWS:
        words = " ".join(escape(flat[key]) for key in keys if isinstance(flat.get(key), str))
        if label == "built" and isinstance(flat.get("BuildTool"), str):
            words += f" by {escape(flat['BuildTool'])} {escape(flat.get('BuildToolVersion', ''))}"
        if words:
            rows.append(row(label, words + ("  (says the file; nothing measures it)" if label == "name" else "")))
    rows += _signer_rows(inspection.signer)
    rows += _loader_rows(inspection.loaders)
    return rows


def _loader_rows(loaders: Sequence[Verdict]) -> list[str]:
    if all(verdict.takes for verdict in loaders):
        return [row("loads in", ", ".join(verdict.loader for verdict in loaders))]
    words = {True: "yes", False: "no: ", None: "not known: "}
    lines = [f"{verdict.loader:<10} {words[verdict.takes]}{escape(verdict.why)}" for verdict in loaders]
    return [row("" if number else "loads in", line) for number, line in enumerate(lines)]


def _wrapped(label: str, text: str, width: int = 100) -> list[str]:
    """Return a line broken between words where it is long; nothing of it is left out."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [row(label if not lines_before else "", one) for lines_before, one in enumerate([*lines, line])]


def _signer_rows(signer: Signer | None) -> list[str]:
    if signer is None:
        return [row("signature", "none")]
    if signer.certificate is None:
        return [row("signature", f"not readable: {signer.fault}")]
    certificate = signer.certificate
    holds = f"{signer.algorithm.name}, verified over PCR0" if signer.algorithm else f"does not hold: {signer.fault}"
    valid = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
    return [
        row("signature", holds),
        row("signer", f"{escape(certificate.subject.rfc4514_string())}, valid {valid}"),
        row("", f"SHA-256 {certificate.fingerprint(SHA256()).hex()}"),
    ]


def _finding_rows(inspection: Inspection) -> list[str]:
    rows, counts = [], Counter[str]()
    for finding in inspection.findings:
        counts[finding.slug] += 1
        if counts[finding.slug] <= SHOWN_FINDINGS:
            rows.append(f"{finding.weight}: {finding.slug}: {finding.text}")
    for slug, count in counts.items():
        if count > SHOWN_FINDINGS:
            rows.append(f"and {count - SHOWN_FINDINGS} more of {slug}: --json has them all")
    return rows


def data_of(name: str, inspection: Inspection) -> dict[str, Any]:
    """Return the description as one JSON object."""
    header, contents = inspection.layout.header, inspection.contents
    return {
        "image": name,
        "EifVersion": header.version,
        "architecture": header.architecture,
        "size": inspection.layout.size,
        "command_line": None if contents.cmdline is None else contents.cmdline.decode("ascii", "backslashreplace"),
        "kernel": contents.kernel,
        "header": {
            "flags": header.flags, "default_memory": header.default_memory, "default_cpus": header.default_cpus,
            "num_sections": header.count, "crc32": f"{header.crc:08x}",
            "crc32_computed": None if inspection.crc is None else f"{inspection.crc:08x}",
        },
        "sections": [
            {
                "type": part.name, "offset": part.start, "size": part.size,
                "sha384": inspection.digests[part.index] if inspection.digests else None,
                **({"packing": str(packing)} if (packing := contents.packings.get(part.index)) else {}),
            }
            for part in inspection.layout.parts
        ],
        "metadata": contents.metadata,
        "signed": inspection.signer is not None,
        "signature": _signer_data(inspection.signer),
        "loaders": {
            verdict.loader: {"takes": verdict.takes, "why": verdict.why or None} for verdict in inspection.loaders
        },
        "findings": [
            {"slug": finding.slug, "weight": str(finding.weight), "text": finding.text}
            for finding in inspection.findings
        ],
        **(registers(inspection) or {"Measurements": {"HashAlgorithm": HASH_ALGORITHM}}),
    }  # fmt: skip


def _signer_data(signer: Signer | None) -> dict[str, Any] | None:
    if signer is None:
        return None
    certificate = signer.certificate
    return {
        "verified": signer.algorithm is not None,
        "fault": signer.fault,
        "algorithm": signer.algorithm.name if signer.algorithm else None,
        "certificate": None if certificate is None else {
            "subject": certificate.subject.rfc4514_string()[:MAX_SHOWN],
            "not_before": certificate.not_valid_before_utc.isoformat(),
            "not_after": certificate.not_valid_after_utc.isoformat(),
            "sha256": certificate.fingerprint(SHA256()).hex(),
        },
    }  # fmt: skip
