# SPDX-License-Identifier: MIT
"""Look at a whole image file of any origin: what it holds, what is measured, who signed it, what is wrong with it.

The work is bounded whatever the file says: every byte is read at most three times, piece by piece, and 32 sections at
most are followed; of a file that is larger than any image, or whose sections overlap, nothing is hashed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.cose import Algorithm
from attestation.errors import VeracruzError
from attestation.measurements import Measurements, Measurer, signer_pcr

from ..eif import MAX_EIF, MAX_SIGNATURE, SectionType
from .contents import Contents, read_contents
from .findings import Finding, Weight, differs
from .layout import HEADER, SECTION, Layout, Part, Source, pieces, read_layout, read_part
from .loaders import InSequence, Verdict, judge_nitro_cli, judge_ours, judge_qemu, read_in_sequence
from .signature_section import ImageSignature, load_certificate, read_signatures, verify_signature
from .structure import check_structure

Report = Callable[[int], None]  # is told the bytes that are done


@dataclass(frozen=True, slots=True)
class Signer:
    """The first signature of an image."""

    certificate: x509.Certificate | None  # None: unreadable
    algorithm: Algorithm | None  # None: not verified
    fault: str | None  # why it does not hold; None: it does

    @property
    def der(self) -> bytes | None:
        """The certificate, as PCR8 measures it."""
        return None if self.certificate is None else self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that was found."""

    layout: Layout
    digests: tuple[str, ...]  # SHA-384 of each section's data, hex; empty where they were not computed
    crc: int | None  # of the file; None: not computed
    measurements: Measurements | None  # None: not computed, or sections are not all there
    contents: Contents
    signer: Signer | None  # None: unsigned
    loaders: tuple[Verdict, ...]
    findings: tuple[Finding, ...]  # the heaviest first

    @property
    def pcr8(self) -> bytes | None:
        """The register of the signer, None where it stays zero."""
        return signer_pcr(self.signer.der) if self.signer is not None and self.signer.der is not None else None

    @property
    def broken(self) -> bool:
        """Whether the file is damaged or its signature does not hold."""
        return any(finding.weight is Weight.ERROR for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Sums:
    digests: tuple[str, ...]
    measurements: Measurements | None
    by_table: int | None  # CRC-32 as QEMU computes it


def inspect(source: Source, *, at: datetime, report: Report = lambda done: None) -> Inspection:
    """Inspect a file; certificates are judged at the time `at`. Raises MalformedEif where it is no EIF at all."""
    layout = read_layout(source)
    findings = list(check_structure(layout))
    sums = _sum_up(source, layout, report)
    ours = [(part.type, part.start, part.size) for part in layout.parts]
    sequence = read_in_sequence(source)
    same = sequence.fault is None and list(sequence.sections) == ours
    crc = sums.by_table if _is_contiguous(layout) else None
    if crc is None:
        crc = _crc(source, layout, [(HEADER.size, source.size)])
    if crc is not None and crc != layout.header.crc:
        actual = f"{layout.header.crc:08x}"
        findings.append(differs("crc-mismatch", "header: CRC-32", expected=f"{crc:08x}", actual=actual))
    if sequence.fault is None and not same:
        findings.append(Finding("readers-differ", "nitro-cli, which reads in sequence, sees other sections than QEMU"))
    contents = read_contents(source, layout, findings)
    signer = _find_signer(source, layout, sums.measurements, at, findings)
    readable = signer is None or signer.certificate is not None
    slugs = {finding.slug for finding in findings}
    loaders = (
        judge_ours(findings, certificate_readable=readable),
        judge_qemu(layout, crc=sums.by_table, certificate_readable=readable),
        judge_nitro_cli(
            layout, sequence, crc=sums.by_table if same else _crc_in_sequence(source, layout, sequence),
            metadata_readable=None if "metadata-endless" in slugs else "metadata-malformed" not in slugs,
            signature=next((slug for slug in _SIGNATURE_FAULTS if slug in slugs), None),
        ),
    )  # fmt: skip
    findings.sort(key=lambda finding: list(Weight).index(finding.weight))
    return Inspection(layout, sums.digests, crc, sums.measurements, contents, signer, loaders, tuple(findings))


_SIGNATURE_FAULTS = (
    "signature-endless",
    "signature-malformed",
    "signature-bad",
    "certificate-expired",
    "certificate-early",
)


def _is_contiguous(layout: Layout) -> bool:
    position = HEADER.size
    for part in layout.parts:
        if part.offset != position:
            return False
        position = part.end
    return position == layout.size


def _sum_up(source: Source, layout: Layout, report: Report) -> _Sums:
    """Hash every section once for all: its own digest, the registers, the CRC in the table's order."""
    if layout.unbounded:
        return _Sums((), None, None)
    measurer, crc, done, ramdisks = Measurer(), zlib.crc32(layout.header.raw[:-4]), 0, 0
    digests = []
    with ThreadPoolExecutor(1) as second:  # a section's own hash on another core
        for part in layout.parts:
            crc = zlib.crc32(source.read(part.offset, SECTION.size), crc)
            digest = hashlib.sha384()
            for piece in pieces(source, part.start, part.size):
                own = second.submit(digest.update, piece)
                _measure(measurer, part, piece, ramdisks)
                crc = zlib.crc32(piece, crc)
                own.result()
                done += len(piece)
                report(done)
            ramdisks += part.type == SectionType.RAMDISK
            digests.append(digest.hexdigest())
    whole = all(part.whole for part in layout.parts)
    return _Sums(tuple(digests), measurer.measurements() if whole else None, crc if whole else None)


def _measure(measurer: Measurer, part: Part, piece: bytes, ramdisks: int) -> None:
    match part.type:
        case SectionType.KERNEL:
            measurer.kernel(piece)
        case SectionType.CMDLINE:
            measurer.cmdline(piece)
        case SectionType.RAMDISK:
            measurer.ramdisk(ramdisks, piece)


def _crc(source: Source, layout: Layout, ranges: Sequence[tuple[int, int]]) -> int | None:
    if layout.size > MAX_EIF:
        return None
    crc = zlib.crc32(layout.header.raw[:-4])
    for start, end in ranges:
        for piece in pieces(source, start, end - start):
            crc = zlib.crc32(piece, crc)
    return crc


def _crc_in_sequence(source: Source, layout: Layout, sequence: InSequence) -> int | None:
    if sequence.fault is not None:
        return None
    return _crc(source, layout, [(start - SECTION.size, start + size) for _, start, size in sequence.sections])


def _find_signer(
    source: Source, layout: Layout, measured: Measurements | None, at: datetime, findings: list[Finding]
) -> Signer | None:
    part = next(iter(layout.of(SectionType.SIGNATURE)), None)
    if part is None:
        return None
    section = read_part(source, part, limit=MAX_SIGNATURE)
    try:
        signatures = read_signatures(section or b"")
        certificate = load_certificate(signatures[0].pem)
    except VeracruzError as error:
        if section is not None:  # else it is told as too long
            findings.append(Finding("signature-malformed", f"{part.place}: {error}"))
        return Signer(None, None, str(error))
    if len(signatures) > 1:
        findings.append(Finding("signature-unread", f"{part.place}: {len(signatures)} signatures; one is read"))
    findings += check_certificate(certificate, at)
    if measured is None:
        return Signer(certificate, None, "not verified: PCR0 is not known")
    algorithm, fault = _verify(signatures[0], certificate, measured.pcr0, findings)
    return Signer(certificate, algorithm, fault)


def _verify(
    signature: ImageSignature, certificate: x509.Certificate, pcr0: bytes, findings: list[Finding]
) -> tuple[Algorithm | None, str | None]:
    try:
        return verify_signature(signature, certificate, pcr0), None
    except VeracruzError as error:
        slug = "signature-malformed" if error.slug == "malformed-eif" else "signature-bad"
        findings.append(Finding(slug, f"signature: {error}"))
        return None, str(error)


def check_certificate(certificate: x509.Certificate, at: datetime) -> list[Finding]:
    """Return what is wrong with a signing certificate at a time; nothing asks who issued it: PCR8 is its hash."""
    found = []
    early, late = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if at > late:
        found.append(Finding("certificate-expired", f"certificate: expired on {late:%Y-%m-%d %H:%M} UTC"))
    if at < early:
        found.append(Finding("certificate-early", f"certificate: valid from {early:%Y-%m-%d %H:%M} UTC on"))
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return found
    if not usage.digital_signature:
        found.append(Finding("certificate-usage", "certificate: its key usage lacks digitalSignature"))
    return found
