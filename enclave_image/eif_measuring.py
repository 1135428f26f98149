# SPDX-License-Identifier: MIT
"""Measure an image whose sections are in memory: what registers share is hashed once, the rest side by side.

The same registers as `attestation.measurements` computes; that core knows no threads. hashlib lets go of the
interpreter's lock while it hashes, so a second thread is a second core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from attestation.measurements import ZERO_PCR, Buffer, Measurements, extend

from .eif import Data, SectionType

WORTH_A_THREAD = 1 << 20  # bytes; below it a thread costs what it spares
Sections = Sequence[tuple[SectionType, Data]]  # in file order


def measure_sections(sections: Sections) -> Measurements:
    """Return PCR0, PCR1 and PCR2 of an image of these sections, contents in file order.

    PCR0 and PCR1 begin with the same bytes: one hash, copied where they part. PCR2 is hashed beside them.
    """
    application = _find_application(sections)
    later = [sections[index][1] for index in sorted(application)]
    if sum(len(part) for part in later) < WORTH_A_THREAD:
        registers = (*_hash_boot(sections, application), _hash(later))
    else:
        with ThreadPoolExecutor(1, thread_name_prefix="pcr2") as pool:
            hashing = pool.submit(_hash, later)
            registers = (*_hash_boot(sections, application), hashing.result())
    return Measurements(*(extend(ZERO_PCR, content.digest()) for content in registers))


def _find_application(sections: Sections) -> frozenset[int]:
    """Return the places of the ramdisks after the first: what PCR2 covers and PCR1 does not."""
    ramdisks = [index for index, (kind, _) in enumerate(sections) if kind is SectionType.RAMDISK]
    return frozenset(ramdisks[1:])


def _hash(parts: Sequence[Buffer]) -> Any:
    digest = hashlib.sha384()
    for part in parts:
        digest.update(part)
    return digest


def _hash_boot(sections: Sections, application: frozenset[int]) -> tuple[Any, Any]:
    """Return the hashes whose values extend PCR0 and PCR1."""
    image, boot = hashlib.sha384(), None
    for index, (kind, data) in enumerate(sections):
        if kind not in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK):
            continue
        if index in application and boot is None:
            boot = image.copy()
        image.update(data)
        if boot is not None and index not in application:
            boot.update(data)
    return image, image if boot is None else boot
