# SPDX-License-Identifier: MIT
"""Write an image to its file and measure it meanwhile; leave a file that holds these very bytes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from attestation.files import PIECE, replacing
from attestation.measurements import Measurements

from .architecture import Architecture, fit_kernel
from .cache import demand_space
from .eif import Data, Section, SectionType, check_order, lay_out_eif
from .eif_measuring import Sections, measure_sections


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gives."""

    measurements: Measurements
    size: int  # bytes of the EIF
    sha256: str  # hex, of the EIF
    changed: bool  # whether the file was written: false when it held these very bytes


def write_image(sections: Sections, out: Path, *, architecture: Architecture = Architecture.X86_64) -> Built:
    """Write the EIF of these sections to `out` unless it is there already, byte for byte.

    Raises BuildFailed for another architecture's kernel, MalformedEif for sections that no loader takes, NoSpace.
    """
    sections = [(k, fit_kernel(bytes(data), architecture) if k is SectionType.KERNEL else data) for k, data in sections]
    check_order([Section(kind, 0, memoryview(data)) for kind, data in sections])
    with ThreadPoolExecutor(1, thread_name_prefix="measure") as pool:
        measuring = pool.submit(measure_sections, sections)
        parts = lay_out_eif(sections, aarch64=architecture is Architecture.AARCH64)
        size = sum(len(part) for part in parts)
        digest = hashlib.sha256()
        if changed := not _holds(out, parts, size):
            demand_space(out.parent, size)
            with replacing(out) as file:
                write_parts(parts, file, digest)
        else:
            for part in parts:
                digest.update(part)
        return Built(measuring.result(), size, digest.hexdigest(), changed)


def stream_image(sections: Sections, file: BinaryIO) -> Measurements:
    """Write the EIF of these sections to an open file, measuring it meanwhile; nothing is synced."""
    with ThreadPoolExecutor(1, thread_name_prefix="measure") as pool:
        measuring = pool.submit(measure_sections, sections)
        write_parts(lay_out_eif(sections), file, hashlib.sha256())
        return measuring.result()


def write_parts(parts: Sequence[Data], file: BinaryIO, digest: hashlib._Hash) -> None:
    """Write parts one after the other, hashing them as they go."""
    for part in parts:
        digest.update(part)
        file.write(part)


def _pieces(parts: Sequence[Data]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]


def _holds(out: Path, parts: Sequence[Data], size: int) -> bool:
    """Return whether a file holds exactly these parts; the size tells most others without reading."""
    try:
        if out.stat().st_size != size:
            return False
        with out.open("rb") as file:
            return all(file.read(len(piece)) == piece for piece in _pieces(parts))
    except OSError:
        return False
