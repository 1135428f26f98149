# SPDX-License-Identifier: MIT
"""What can be said of an enclave image file that is not as it should be: each finding's slug, weight and meaning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from attestation.errors import escape


class Weight(StrEnum):
    """How much a finding matters."""

    ERROR = "error"  # damaged, or a signature that does not hold: `describe` exits with 1
    WARNING = "warning"  # legal for some loader, but wrong
    NOTE = "note"  # as many good images are; know it when you rely on one


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of finding; `refused` says whether our strict reader, and so `enclave run`, refuses the file for it."""

    weight: Weight
    refused: bool
    meaning: str


_E, _W, _N = Weight.ERROR, Weight.WARNING, Weight.NOTE

RULES: dict[str, Rule] = {
    "version-internal": Rule(_E, True, "versions 0 and 1 were never public: no loader takes them"),
    "version-old": Rule(_W, True, "versions 2 and 3 lack metadata (2: signatures too); QEMU and we want 4"),
    "version-unknown": Rule(_W, True, "a version that nobody has published"),
    "reserved-nonzero": Rule(_W, True, "a reserved field or flag of the header is set"),
    "section-count": Rule(_E, True, "the header counts fewer than 2 or more than 32 sections"),
    "slots-nonzero": Rule(_W, True, "a slot of the table after the last section is not zero"),
    "section-truncated": Rule(_E, True, "a section, or its header, ends after the file"),
    "section-type": Rule(_E, True, "a section's type is none of 1 to 5"),
    "section-flags": Rule(_W, True, "a section's flags, all reserved, are not zero"),
    "section-empty": Rule(_W, False, "a section without data"),
    "section-version": Rule(_W, False, "a section that the header's version does not know yet"),
    "size-stale": Rule(_W, True, "the table and the section's own header disagree on its size"),
    "gap": Rule(_W, True, "bytes before a section that belong to none: readers of the table skip them, others do not"),
    "overlap": Rule(_W, True, "a section begins inside an earlier one, or the table is not in the file's order"),
    "trailing-bytes": Rule(_W, True, "bytes after the last section"),
    "too-large": Rule(_W, True, "the file is larger than 4 GiB"),
    "crc-mismatch": Rule(_E, True, "the CRC-32 in the header is not the file's"),
    "readers-differ": Rule(_E, True, "one who reads in sequence sees other sections than one who reads the table"),
    "section-missing": Rule(_E, True, "no kernel, no command line or no ramdisk"),
    "section-duplicate": Rule(_W, True, "a second section of a type that there is one of"),
    "metadata-missing": Rule(_W, True, "no metadata, which version 4 demands"),
    "metadata-malformed": Rule(_W, False, "metadata that nitro-cli cannot read"),
    "metadata-endless": Rule(_W, False, "metadata above 256 KiB, which are not shown"),
    "ramdisk-before-kernel": Rule(_W, True, "a ramdisk stands before the kernel"),
    "ramdisk-single": Rule(_N, False, "only one ramdisk: PCR1 equals PCR0, and PCR2 is that of nothing"),
    "ramdisk-format": Rule(_W, False, "a ramdisk begins with neither cpio nor a compression that Linux knows"),
    "kernel-format": Rule(_W, False, "the kernel is neither an x86 bzImage nor an arm64 Image"),
    "kernel-architecture": Rule(_W, False, "the header's flag names another architecture than the kernel is for"),
    "kernel-text-offset": Rule(_W, False, "an arm64 Image with text_offset 0, which has to be 2 MiB for Nitro"),
    "cmdline-nul": Rule(_W, True, "a NUL in the command line: measured, but the kernel stops reading there"),
    "cmdline-long": Rule(_W, False, "a command line above 2,048 bytes, of which the kernel cuts off the end"),
    "cmdline-endless": Rule(_W, True, "a command line above 4,096 bytes"),
    "cmdline-unprintable": Rule(_W, False, "control or non-ASCII characters in the command line"),
    "boundaries-unmeasured": Rule(_N, False, "PCR0 hashes the sections' data end to end, without lengths"),
    "unsigned": Rule(_N, False, "no signature, so PCR8 will be zero"),
    "signature-endless": Rule(_E, True, "a signature section above 32,768 bytes"),
    "signature-malformed": Rule(_E, False, "a signature section of another form than AWS's"),
    "signature-bad": Rule(_E, False, "the signature is not the certificate's over this image's PCR0"),
    "signature-unread": Rule(_W, False, "signatures after the first, which nobody reads"),
    "certificate-expired": Rule(_W, False, "the signing certificate has expired: nitro-cli starts no such image"),
    "certificate-early": Rule(_W, False, "the signing certificate is not valid yet"),
    "certificate-usage": Rule(_W, False, "the signing certificate's key usage excludes signing"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found; `text` is ours, with untrusted values escaped."""

    slug: str
    text: str

    def __post_init__(self) -> None:
        if self.slug not in RULES:
            raise ValueError(f"no such finding: {self.slug}")

    @property
    def weight(self) -> Weight:
        """How much it matters."""
        return RULES[self.slug].weight

    @property
    def refused(self) -> bool:
        """Whether our strict reader refuses the file for it."""
        return RULES[self.slug].refused


def differs(slug: str, what: str, *, expected: object, actual: object) -> Finding:
    """Return a finding that says what was expected and what came."""
    return Finding(slug, f"{what}: expected {escape(expected)}, got {escape(actual)}")
