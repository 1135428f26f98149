# SPDX-License-Identifier: MIT
"""Take an image apart into files that cannot harm whoever looks at them.

Nothing that the image says becomes a link, a device, an owner, a time or a set-id bit, and nothing is written outside
the new directory: links and devices stand in a listing. The directory appears whole, or not at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attestation.errors import EnvironmentLacks, UsageError
from attestation.files import not_writable, room_hint

from ..cache import demand_space
from ..eif import MAX_SIGNATURE, SectionType
from ..errors import MalformedEif
from .cpio_reader import Budget
from .decompression import Packing
from .file_writer import Extracted, Writer, escape_path
from .inspection import Inspection
from .layout import Part, Source, pieces
from .ramdisk_files import FileRecord, Index, index_ramdisk, open_ramdisk
from .signature_section import read_signatures


def extract(source: Source, found: Inspection, out: Path, *, files: bool) -> Extracted:
    """Write an image's sections, and with `files` the files of its ramdisks, to the new directory `out`.

    Raises UsageError where it exists, MalformedEif where nothing was hashed, MalformedRamdisk where one is damaged.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out} exists", expected="a new directory")
    if why := found.layout.unbounded:
        raise MalformedEif(f"{why}: there is nothing definite to extract", hint="veracruz image describe")
    try:
        demand_space(out.parent, found.layout.size)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name[:64]}.", dir=out.parent))
    except OSError as error:
        raise not_writable(out.parent, error) from error
    result = Extracted({}, {})
    try:
        _write_sections(source, found, scratch, result)
        if files:
            budget = Budget()
            for part in found.layout.of(SectionType.RAMDISK):
                _write_ramdisk(source, part, scratch, budget, result)
        scratch.chmod(0o755)
        scratch.rename(out)
    except OSError as error:
        raise EnvironmentLacks(f"cannot write {out}: {error.strerror}", hint=room_hint(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def _section_name(part: Part, packing: Packing | None) -> str:
    match part.type:
        case SectionType.METADATA:
            suffix = ".json"
        case SectionType.SIGNATURE:
            suffix = ".cbor"
        case SectionType.RAMDISK:
            suffix = packing.suffix if packing else ".bin"
        case SectionType.CMDLINE:
            suffix = ".txt"
        case _:
            suffix = ".bin"
    return f"{part.index:02}-{part.name.replace(' ', '-')}{suffix}"


def _write_sections(source: Source, found: Inspection, folder: Path, result: Extracted) -> None:
    for part in found.layout.parts:
        name = _section_name(part, found.contents.packings.get(part.index))
        with (folder / name).open("xb") as file:
            for piece in pieces(source, part.start, part.size):
                file.write(piece)
        result.files[name] = part.size
        if part.type == SectionType.SIGNATURE and found.signer is not None and found.signer.certificate is not None:
            pem = read_signatures(source.read(part.start, min(part.size, MAX_SIGNATURE)))[0].pem
            name = f"{part.index:02}-certificate.pem"
            (folder / name).write_bytes(pem)
            result.files[name] = len(pem)


def _write_ramdisk(source: Source, part: Part, folder: Path, budget: Budget, result: Extracted) -> None:
    index = index_ramdisk(source, part, budget)
    demand_space(folder, sum(record.size for record in index.values() if record.is_file))
    name = f"{part.index:02}-ramdisk"
    listing = "".join(f"{line}\n" for line in list_files(index)).encode()
    (folder / f"{name}.list").write_bytes(listing)
    result.files[f"{name}.list"] = len(listing)
    with _directory(folder / name) as root, _directory(folder / f"{name}.held") as held:
        writer = Writer(root, held, name=name, index=index, result=result)
        for path, record in sorted(index.items()):
            if stat.S_ISDIR(record.mode):
                writer.add_folder(path)
        with open_ramdisk(source, part, Budget()) as members:
            for entry, data in members:
                if entry.is_file:
                    writer.add_file(entry, data)
        writer.finish()
    (folder / f"{name}.held").rmdir()


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def list_files(index: Index) -> Iterator[str]:
    """Yield a line for each path: type and mode, owner, size, SHA-256, path, target or device numbers."""
    for path, record in sorted(index.items()):
        yield f"{describe_file(record)}  {escape_path(path)}{_tail(record)}"


def describe_file(record: FileRecord) -> str:
    """Return what is to be said of a path but its name, in columns."""
    mode = stat.filemode(record.mode)
    return f"{mode}  {record.uid}:{record.gid}  {record.size:>10}  {record.sha256[:64] or '-':<64}"


def _tail(record: FileRecord) -> str:
    if record.target:
        return f" -> {escape_path(record.target)}"
    return f" (device {record.device[0]}:{record.device[1]})" if record.device != (0, 0) else ""
