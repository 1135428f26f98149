# SPDX-License-Identifier: MIT
"""Read Debian packages without dpkg: the ar container, its data.tar.xz, and the archive's Packages index."""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildFailed

AR_MAGIC = b"!<arch>\n"  # ar(5)
AR_HEADER = 60  # bytes; ar(5)
MAX_MEMBER = 512 * 1024 * 1024  # bytes of one file inside a package; linux-source's tarball has 151 MB


@dataclass(frozen=True, slots=True)
class PoolFile:
    """One binary package as the archive's index lists it."""

    name: str
    version: str
    path: str  # below the mirror's root: pool/...
    size: int  # bytes
    sha256: str  # hex


def read_ar_member(path: Path, prefix: str) -> tuple[str, bytes]:
    """Return the name and the bytes of the first member of an ar archive whose name starts with `prefix`."""
    with path.open("rb") as stream:
        if stream.read(len(AR_MAGIC)) != AR_MAGIC:
            raise BuildFailed(f"{path.name} is no Debian package", expected="an ar archive")
        while header := stream.read(AR_HEADER):
            if len(header) != AR_HEADER or header[58:60] != b"`\n":
                raise BuildFailed(f"{path.name} is no Debian package", expected="an ar member header")
            name = header[:16].decode("ascii", "replace").strip().rstrip("/")
            size = int(header[48:58])
            if name.startswith(prefix):
                return name, stream.read(size)
            stream.seek(size + size % 2, io.SEEK_CUR)
    raise BuildFailed(f"{path.name} has no member {prefix}*")


def open_data(path: Path) -> tarfile.TarFile:
    """Open the file tree of a .deb (data.tar.xz: the only form in trixie)."""
    name, data = read_ar_member(path, "data.tar")
    if name != "data.tar.xz":
        raise BuildFailed(f"{path.name}: unknown compression", expected="data.tar.xz", actual=name)
    stream = lzma.open(io.BytesIO(data))  # noqa: SIM115 -- the tar reads it to its end
    return tarfile.open(fileobj=stream, mode="r|")


def clean_name(name: str) -> str:
    """Return a tar member's path below the root, without leading "./"; raise for one that leaves it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BuildFailed("a package's path leaves its root", actual=name)
    return "/".join(parts)


def unpack(path: Path, root: Path, *, keep: Callable[[str], bool]) -> None:
    """Write the files, directories and symbolic links of a .deb for which `keep(path)` holds below `root`.

    Maintainer scripts never run. Owner, times and set-id bits are dropped; a device or a fifo is an error.
    """
    with open_data(path) as tar:
        write_tree(tar, root, keep=keep, origin=path.name)


def write_tree(tar: tarfile.TarFile, root: Path, *, keep: Callable[[str], bool], origin: str) -> None:
    """Write a tar's files, directories, links below `root`; modes become 0755 or 0644."""
    for member in tar:
        name = clean_name(member.name)
        if not name or not keep(name):
            continue
        target = root / name
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
        elif member.issym():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(member.linkname)
        elif member.islnk():
            source = root / clean_name(member.linkname)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode & 0o777)
        elif member.isreg():
            if member.size > MAX_MEMBER:
                raise BuildFailed(f"{origin}: {name} is too large", expected=f"at most {MAX_MEMBER} bytes")
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = tar.extractfile(member)
            assert stream is not None
            with target.open("wb") as out:
                while chunk := stream.read(1 << 20):
                    out.write(chunk)
            target.chmod(0o755 if member.mode & 0o111 else 0o644)
        else:
            raise BuildFailed(f"{origin}: {name} is neither file, directory nor link")


def parse_packages(index: str) -> Iterator[PoolFile]:
    """Yield the packages of a Packages index (deb822)."""
    for stanza in index.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Filename|Size|SHA256): (.*)$", stanza, re.MULTILINE))
        if len(fields) == 5:
            yield PoolFile(
                fields["Package"], fields["Version"], fields["Filename"], int(fields["Size"]), fields["SHA256"]
            )


def version_key(version: str) -> tuple[int, list[tuple[str, int]], list[tuple[str, int]]]:
    """Return a sort key that orders as dpkg does (Debian policy 5.6.12): epoch, upstream's version, revision."""
    epoch, _, rest = version.rpartition(":")
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch or 0), _order(upstream), _order(revision)


def _order(text: str) -> list[tuple[str, int]]:
    """Alternate words and numbers; in a word '~' sorts before its end, letters before the rest."""
    parts = []
    for word, number in re.findall(r"(\D*)(\d*)", text):
        key = "".join("\x01" if c == "~" else c if c.isalpha() else chr(ord(c) + 256) for c in word) + "\x02"
        parts.append((key, int(number or 0)))
    return parts
