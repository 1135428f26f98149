# SPDX-License-Identifier: MIT
"""Take an image apart into files that cannot harm whoever looks at them.

Nothing that the image says becomes a link, a device, an owner, a time or a set-id bit, and nothing is written outside
the new directory: links and devices stand in a listing. The directory appears whole, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import EnvironmentLacks, UsageError

from .cache import demand_space
from .cpio_reader import Budget, Entry
from .decompression import Packing
from .eif import MAX_SIGNATURE, SectionType
from .eif_inspection import Inspection
from .eif_layout import Part, Source, pieces
from .errors import MalformedEif
from .ramdisk_files import FileRecord, Index, index_ramdisk, open_ramdisk
from .signature_section import read_signatures

MAX_DEPTH = 64  # directories in one another
_COLLISIONS = (
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EILSEQ, errno.EPERM, errno.EMLINK,
)  # fmt: skip
_REFUSED_PARTS = ("", ".", "..")


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was written: files by their path below the directory, with their size; and what was not, with the reason."""

    files: dict[str, int]
    left_out: dict[str, str]


def extract(source: Source, found: Inspection, out: Path, *, files: bool) -> Extracted:
    """Write an image's sections, and with `files` the files of its ramdisks, to the new directory `out`.

    Raises UsageError where it exists, MalformedEif where sections overlap, MalformedRamdisk where one is damaged.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out} exists", expected="a new directory")
    if found.layout.overlapping:
        raise MalformedEif("sections overlap: there is nothing definite to extract", hint="veracruz image describe")
    try:
        demand_space(out.parent, found.layout.size)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name[:64]}.", dir=out.parent))
    except OSError as error:
        raise EnvironmentLacks(f"cannot write in {out.parent}: {error.strerror}") from error
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
        raise EnvironmentLacks(f"cannot write {out}: {error.strerror}") from error
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
    (folder / name).mkdir()
    root = os.open(folder / name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        writer = _Writer(root, name, index, result)
        for path, record in sorted(index.items()):
            if stat.S_ISDIR(record.mode):
                writer.add_folder(path)
        with open_ramdisk(source, part, Budget()) as members:
            for entry, data in members:
                if entry.is_file:
                    writer.add_file(entry, data)
    finally:
        os.close(root)


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


def escape_path(path: str) -> str:
    """Return a path safe for a terminal, whole."""
    return path.encode("unicode_escape", "surrogatepass").decode("ascii") or "/"


class _Writer:
    """Write below one directory, step by step by descriptors that follow no link."""

    def __init__(self, root: int, name: str, index: Index, result: Extracted) -> None:
        self._root = root
        self._name = name
        self._index = index
        self._result = result
        self._first: dict[tuple[int, int, int, int], str] = {}  # a file of several names -> the one that is written
        self._linked: dict[str, tuple[int, int, int, int]] = {}  # the reverse

    def _refuse(self, path: str, why: str) -> None:
        self._result.left_out[f"{self._name}/{escape_path(path)}"] = why

    def _open_folder(self, steps: list[str]) -> int:
        """Return a descriptor of a directory, made if it is not there; raise OSError."""
        descriptor = os.dup(self._root)
        try:
            for step in steps:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(step, 0o755, dir_fd=descriptor)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                below = os.open(step, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _steps(self, path: str) -> list[str] | None:
        steps = path.split("/")
        if any(step in _REFUSED_PARTS or "\0" in step for step in steps) or len(steps) > MAX_DEPTH:
            self._refuse(path, "a path that leads out, or too deep")
            return None
        return steps

    def add_folder(self, path: str) -> None:
        """Make a directory."""
        steps = self._steps(path) if path else None
        if steps is None:
            return
        try:
            os.close(self._open_folder(steps))
        except OSError as error:
            self._refuse_or_raise(path, error)

    def add_file(self, entry: Entry, data: Iterator[bytes]) -> None:
        """Write a file; the last entry of a path counts, as for the kernel."""
        record = self._index[entry.path]
        steps = self._steps(entry.path)
        if steps is None or not record.is_file:
            return
        try:
            folder = self._open_folder(steps[:-1])
            try:
                self._write(folder, steps[-1], entry, data)
            finally:
                os.close(folder)
        except OSError as error:
            self._refuse_or_raise(entry.path, error)
            return
        self._result.files[f"{self._name}/{escape_path(entry.path)}"] = record.size

    def _write(self, folder: int, name: str, entry: Entry, data: Iterator[bytes]) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        replaced = self._linked.pop(entry.path, None)
        if replaced is not None:
            del self._first[replaced]
        first = self._first.get(entry.link) if entry.link else None
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if first is not None:  # all names of a file are one file here too: copies could be many times the image
            os.link(first, name, src_dir_fd=self._root, dst_dir_fd=folder, follow_symlinks=False)
            if not entry.size:
                return
            flags |= os.O_TRUNC
        else:
            flags |= os.O_CREAT | os.O_EXCL
            if entry.link:
                self._first[entry.link] = entry.path
                self._linked[entry.path] = entry.link
        mode = 0o755 if entry.mode & 0o111 else 0o644
        with os.fdopen(os.open(name, flags, mode, dir_fd=folder), "wb") as file:
            for piece in data:
                file.write(piece)

    def _refuse_or_raise(self, path: str, error: OSError) -> None:
        if error.errno not in _COLLISIONS:
            raise error
        self._refuse(path, f"another entry, or this system, is in its way: {error.strerror}")
