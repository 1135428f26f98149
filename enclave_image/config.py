# SPDX-License-Identifier: MIT
"""`image.toml`: what goes into an image, by name; and where the machine's mirrors and cache are."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attestation.files import read_limited, user_folder

from .architecture import BUILDER, Architecture
from .errors import InputUnavailable, MalformedConfig
from .kernel_config import DEFAULT, KernelConfig, load_kernel_config
from .lock import Archive
from .patches import MAX_PATCH, Patch, load_patch

SCHEMA = "veracruz.image/1"
DEFAULT_DIR = Path(__file__).parent / "default"
MAX_CONFIG = 256 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What `image.toml` says."""

    name: str
    suite: str  # of Debian
    command_line: str
    zstd_level: int
    source_date_epoch: int  # seconds; the one time that appears in a product
    kernel_source: str  # a package's name
    toolchain: tuple[str, ...]
    root: tuple[str, ...]
    wheels: tuple[str, ...]  # name==version
    debian_mirrors: tuple[str, ...]
    security_mirrors: tuple[str, ...]
    snapshot: str  # the address of a snapshot service, or nothing
    kernel_config: KernelConfig
    kernel_patches: tuple[Patch, ...]  # in the order in which they are applied
    directory: Path
    files: tuple[Path, ...]  # all that was read: image.toml and what stands beside it
    architecture: Architecture = BUILDER
    emulator: str = ""  # a package's name: what runs the image's own programs where the building machine cannot


_STRINGS = ("name", "suite", "command_line", "kernel_source")
_LISTS = ("toolchain", "root", "wheels")
_OF_ARCHITECTURE = ("command_line", "toolchain", "emulator")  # in a table of its own; toolchain adds to the common one


def _strings(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise MalformedConfig(f"image.toml: {place}", expected="a list of strings", actual=value)
    return tuple(value)


def _patches(value: Any, directory: Path) -> tuple[Patch, ...]:
    form = "[[kernel_patches]] with file and sha256"
    if not isinstance(value, list):
        raise MalformedConfig("image.toml: kernel_patches", expected=form, actual=value)
    patches = []
    for index, row in enumerate(value):
        place = f"image.toml: kernel_patches[{index}]"
        if not isinstance(row, dict) or set(row) != {"file", "sha256"}:
            raise MalformedConfig(place, expected=form, actual=row)
        file, sha256 = row["file"], row["sha256"]
        if not isinstance(file, str) or not re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]*", file):
            raise MalformedConfig(f"{place}.file", expected="a plain path beside image.toml", actual=file)
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise MalformedConfig(f"{place}.sha256", expected="64 hex digits", actual=sha256)
        raw = read_limited(directory / file, limit=MAX_PATCH, what="patch")
        patches.append(load_patch(directory / file, raw, sha256=sha256))
    return tuple(patches)


def _apply(table: dict[str, Any], architecture: Architecture, place: str) -> str:
    """Let an architecture's own table have its say; return the emulator's package, nothing where none is needed."""
    own = {other: table.pop(other, None) for other in Architecture}
    for other, words in own.items():
        if words is not None and not (isinstance(words, dict) and words.keys() <= set(_OF_ARCHITECTURE)):
            raise MalformedConfig(
                f"{place}: {other}", expected=f"a table of {', '.join(_OF_ARCHITECTURE)}", actual=words
            )
    words = own[architecture]
    if architecture is BUILDER and not words:
        return ""
    if words is None:
        raise MalformedConfig(f"{place}: nothing is said of {architecture}", expected=f"a table [{architecture}]")
    table["command_line"] = words.get("command_line", table.get("command_line"))
    more = _strings(words.get("toolchain", []), f"{architecture}.toolchain")
    table["toolchain"] = [*_strings(table.get("toolchain", []), "toolchain"), *more]
    emulator = words.get("emulator", "")
    if not isinstance(emulator, str) or bool(emulator) == (architecture is BUILDER):
        raise MalformedConfig(f"{place}: {architecture}.emulator", expected="a package's name", actual=emulator)
    return emulator


def load_config(
    directory: Path = DEFAULT_DIR, *, architecture: Architecture = BUILDER, kernel_config: str | None = None
) -> ImageConfig:
    """Read `image.toml` and what stands beside it; raise UsageError, MalformedConfig or InputMismatch.

    `kernel_config` names another kernel configuration than `image.toml` does.
    """
    path = directory / "image.toml"
    hint = f"--config names a directory such as {DEFAULT_DIR}"
    read_files: list[Path] = []

    def read(name: str) -> bytes:
        read_files.append(directory / name)
        return read_limited(directory / name, limit=MAX_CONFIG, what="configuration", hint=hint)

    files = {name: read(name) for name in ("image.toml", "trim.list")}
    try:
        table = tomllib.loads(files["image.toml"].decode())
    except ValueError as error:
        raise MalformedConfig(f"{path} is no TOML", actual=error) from error
    if table.pop("schema", None) != SCHEMA:
        raise MalformedConfig(f"{path}: schema", expected=SCHEMA)
    mirrors = table.pop("mirrors", {})
    if not isinstance(mirrors, dict):
        raise MalformedConfig(f"{path}: mirrors", expected="a table", actual=mirrors)
    if not mirrors.keys() <= {"debian", "debian-security", "snapshot"}:
        raise MalformedConfig(
            f"{path}: mirrors", expected="debian, debian-security, snapshot", actual=", ".join(sorted(mirrors))
        )
    snapshot = mirrors.get("snapshot", "")
    if not isinstance(snapshot, str):
        raise MalformedConfig(f"{path}: mirrors.snapshot", expected="an address", actual=snapshot)
    patches = _patches(named := table.pop("kernel_patches", []), directory)
    read_files += [directory / row["file"] for row in named]
    emulator = _apply(table, architecture, str(path))
    chosen = table.pop("kernel_config", DEFAULT)
    try:
        texts = {name: table.pop(name) for name in _STRINGS}
        lists = {name: _strings(table.pop(name), name) for name in _LISTS}
        level, epoch = table.pop("zstd_level"), table.pop("source_date_epoch")
    except KeyError as error:
        raise MalformedConfig(f"{path}: {error.args[0]} is missing") from error
    if table:
        raise MalformedConfig(f"{path}: unknown keys", actual=sorted(table))
    for name, text in texts.items():
        if not isinstance(text, str) or not text or not text.isascii() or not text.isprintable():
            raise MalformedConfig(f"{path}: {name}", expected="one line of text", actual=text)
    if not all(type(number) is int for number in (level, epoch)) or not 1 <= level <= 19 or not 0 < epoch < 1 << 32:
        raise MalformedConfig(
            f"{path}: zstd_level or source_date_epoch", expected="1..19, seconds", actual=(level, epoch)
        )
    if not isinstance(chosen, str):
        raise MalformedConfig(f"{path}: kernel_config", expected="a name", actual=chosen)
    kernel = load_kernel_config(kernel_config or chosen, architecture, read)
    return ImageConfig(
        name=texts["name"], suite=texts["suite"], command_line=texts["command_line"],
        kernel_source=texts["kernel_source"], toolchain=lists["toolchain"], root=lists["root"], wheels=lists["wheels"],
        zstd_level=level, source_date_epoch=epoch, directory=directory,
        files=tuple(read_files), kernel_config=kernel, kernel_patches=patches,
        debian_mirrors=_strings(mirrors.get("debian", []), "mirrors.debian"),
        security_mirrors=_strings(mirrors.get("debian-security", []), "mirrors.debian-security"),
        snapshot=snapshot, architecture=architecture, emulator=emulator,
    )  # fmt: skip


def cache_dir() -> Path:
    """Return where downloaded and built things live."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def _apt_sources() -> list[str]:
    """Return the addresses of this machine's own Debian sources, as apt knows them."""
    try:
        done = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split("|", 1) for line in done.stdout.splitlines() if "|" in line]
    return [uri for origin, uri in rows if origin in ("Debian", "") and re.match(r"https?://", uri)]


def find_mirrors(config: ImageConfig) -> dict[Archive, tuple[str, ...]]:
    """Return the mirrors to ask, in order: the environment's, `image.toml`'s, the machine's own.

    VERACRUZ_DEBIAN_MIRROR and VERACRUZ_SECURITY_MIRROR name a tree's root (above dists/ and pool/). A tree of the
    security archive is told by its path, as Debian's own sources name it.
    """
    own = list(dict.fromkeys(uri.rstrip("/") for uri in _apt_sources()))
    security = [uri for uri in own if "security" in urlsplit(uri).path or "security" in (urlsplit(uri).hostname or "")]
    plain = [uri for uri in own if uri not in security]
    named = {
        Archive.DEBIAN: [os.environ.get("VERACRUZ_DEBIAN_MIRROR", ""), *config.debian_mirrors, *plain],
        Archive.SECURITY: [os.environ.get("VERACRUZ_SECURITY_MIRROR", ""), *config.security_mirrors, *security],
    }
    return {archive: tuple(dict.fromkeys(uri.rstrip("/") for uri in uris if uri)) for archive, uris in named.items()}


def find_snapshot(config: ImageConfig, named: str | None = None) -> str:
    """Return the snapshot service's address, without a slash at its end: the option's, the environment's, the file's.

    Empty where none is named: no address is built in.
    """
    return (named or os.environ.get("VERACRUZ_SNAPSHOT", "") or config.snapshot).rstrip("/")


def demand_mirror(mirrors: dict[Archive, tuple[str, ...]], archive: Archive) -> tuple[str, ...]:
    """Return an archive's mirrors; raise InputUnavailable with the way to name one."""
    found = mirrors[archive]
    if not found:
        variable = "VERACRUZ_DEBIAN_MIRROR" if archive is Archive.DEBIAN else "VERACRUZ_SECURITY_MIRROR"
        raise InputUnavailable(
            f"no mirror of {archive} is known: apt names none here",
            hint=f"name one: {variable}=URL, or [mirrors] in image.toml",
        )
    return found
