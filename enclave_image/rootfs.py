# SPDX-License-Identifier: MIT
"""The platform: Debian's Python and the wheels, unpacked without maintainer scripts, trimmed, stripped, compiled."""

from __future__ import annotations

import fnmatch
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from .architecture import Architecture
from .debian import clean_name, unpack
from .errors import BuildFailed, MalformedConfig
from .guest import Guest
from .toolchain import check_libraries

PACKAGES = "usr/lib/python3/dist-packages"
DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "app")  # mount points, and where the application goes
PT_LOAD = 1
MAX_TRIM = 256 * 1024  # bytes of a trim list

# What the runtime imports, imported once in the build by the image's own interpreter.
SMOKE_MODULES = (
    "asyncio", "concurrent.futures", "ctypes", "email", "hashlib", "http.client", "json", "logging", "mmap", "pathlib",
    "secrets", "selectors", "socket", "ssl", "subprocess", "tempfile", "threading", "traceback", "typing",
    "urllib.parse", "cbor2", "h11", "wasmtime", "cryptography.x509", "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.serialization",
)  # fmt: skip


def load_trim(path: Path) -> Callable[[str], bool]:
    """Return `keep(path)` for a trim list: false for what one of its patterns matches."""
    raw = path.read_bytes()
    if len(raw) > MAX_TRIM:
        raise MalformedConfig(f"{path} is too long", expected=f"at most {MAX_TRIM} bytes", actual=len(raw))
    lines = [line.strip() for line in raw.decode().splitlines()]
    patterns = [fnmatch.translate(line) for line in lines if line and not line.startswith("#")]
    matcher = re.compile("|".join(patterns) or r"(?!)")
    return lambda name: not matcher.match(name)


def unpack_wheel(path: Path, root: Path, *, keep: Callable[[str], bool]) -> None:
    """Write a wheel's files below the image's package directory."""
    with zipfile.ZipFile(path) as wheel:
        for info in wheel.infolist():
            name = f"{PACKAGES}/{clean_name(info.filename)}"
            if info.is_dir() or not keep(name):
                continue
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wheel.read(info))
            target.chmod(0o755 if target.name.endswith(".so") else 0o644)


def strip_elf(raw: bytes) -> bytes:
    """Return an ELF64 file without section headers and all that stands behind its last segment (symbols)."""
    if raw[:6] != b"\x7fELF\x02\x01" or len(raw) < 64:
        return raw
    table = int.from_bytes(raw[32:40], "little")
    size, count = int.from_bytes(raw[54:56], "little"), int.from_bytes(raw[56:58], "little")
    end = table + size * count
    for index in range(count):
        at = table + index * size
        offset, length = (int.from_bytes(raw[at + k : at + k + 8], "little") for k in (8, 32))
        if int.from_bytes(raw[at : at + 4], "little") == PT_LOAD:
            end = max(end, offset + length)
    head = bytearray(raw[:64])
    head[40:48] = bytes(8)  # e_shoff
    head[58:64] = bytes(6)  # e_shentsize is ignored without headers; e_shnum, e_shstrndx
    return bytes(head) + raw[64:end]


def build_rootfs(
    guest: Guest, *, packages: Sequence[Path], wheels: Sequence[Path], trim: Path, init: Path
) -> dict[str, str]:
    """Make the platform's file tree in the guest's empty root; raise BuildFailed where it would not run.

    Returns the file name of the package or wheel that each path was unpacked from.
    """
    root, keep, origins = guest.root, load_trim(trim), dict[str, str]()
    for package in packages:
        unpack(package, root, keep=_noting(keep, package.name, origins))
    for wheel in wheels:
        unpack_wheel(wheel, root, keep=_noting(keep, wheel.name, origins))
    _place_loader(root, guest.architecture)
    for name in DIRECTORIES:
        (root / name).mkdir()
    (root / "init").write_bytes(init.read_bytes())
    (root / "init").chmod(0o755)
    _strip_all(root)
    check_libraries(root, (guest.architecture.libraries,))
    _check_links(root)
    guest.python(["compile", root], what="bytecode compilation")
    _drop_empty_directories(root)
    guest.python(["smoke", root / PACKAGES, *SMOKE_MODULES], what="the image's own import test")
    return origins


def _place_loader(root: Path, architecture: Architecture) -> None:
    """Let programs find the loader where the ABI has it, whatever of this the packages bring."""
    directory = architecture.loader_directory
    (root / directory).symlink_to(f"usr/{directory}")
    (root / "usr" / directory).mkdir(exist_ok=True)
    loader = root / "usr" / directory / architecture.loader
    if not loader.is_symlink():
        loader.symlink_to(f"../lib/{architecture.triplet}/{architecture.loader}")


def _noting(keep: Callable[[str], bool], origin: str, origins: dict[str, str]) -> Callable[[str], bool]:
    """Return `keep` that notes what it keeps; of two packages with one path the later has it, as on disk."""

    def kept(name: str) -> bool:
        if not keep(name):
            return False
        origins[name] = origin
        return True

    return kept


def _strip_all(root: Path) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            raw = path.read_bytes()
            if raw[:4] == b"\x7fELF":
                path.write_bytes(strip_elf(raw))


def _check_links(root: Path) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            target = PurePosixPath(path.readlink().as_posix())
            inside = root / target.relative_to("/") if target.is_absolute() else path.parent / target
            if not inside.exists():
                raise BuildFailed(f"a link in the image leads nowhere: {path.relative_to(root)}", actual=target)


def _drop_empty_directories(root: Path) -> None:
    keep = {root / name for name in DIRECTORIES}
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and path not in keep and not any(path.iterdir()):
            path.rmdir()
