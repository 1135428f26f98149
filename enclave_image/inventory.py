# SPDX-License-Identifier: MIT
"""What is inside an image: every component with version, licence and hash, every file and where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from attestation.measurements import Measurements, dump_measurements

from .architecture import Architecture
from .config import ImageConfig
from .eif import read_eif
from .errors import BuildFailed
from .given_kernel import GivenKernel
from .initramfs import File, Link, Node, only_executable, read_tree
from .kernel import INIT_SOURCES
from .licences import Bundled, DebianFacts, Licences, read_deb, read_wheel
from .lock import Archive, Lock, LockedPackage, LockedWheel, Role
from .recipe import Made

SCHEMA = "veracruz.manifest/1"
OURSELVES = "veracruz"
LINKED = {  # their static libraries are in /init
    Architecture.X86_64: ("libc6-dev", "libgcc-14-dev"),
    Architecture.AARCH64: ("libc6-dev:arm64", "libgcc-14-dev-arm64-cross"),
}
KERNEL_HEADERS = "linux-libc-dev"  # of the kernel's own source package: its copyright file, in a small package
PLATFORM, APPLICATION = 0, 1  # ramdisks
TOP = Path(__file__).parent.parent
INIT_SOURCE = ", ".join(path.relative_to(TOP).as_posix() for path in INIT_SOURCES)  # of the file /init


class Kind(StrEnum):
    """How a component comes to be in the image, or not."""

    DEBIAN = "debian"  # unpacked into the platform
    WHEEL = "wheel"  # likewise
    BUNDLED = "bundled"  # compiled into a wheel, as the wheel itself says
    KERNEL = "kernel"  # compiled from this source package, or the very file where the user gave one
    PATCH = "patch"  # applied to that source
    LINKED = "linked"  # its libraries are in /init
    OWN = "own"  # this project's code
    TOOL = "tool"  # took part in compiling and is not inside


@dataclass(frozen=True, slots=True)
class Component:
    """One of the things that the image is made of."""

    kind: Kind
    name: str
    version: str
    licences: tuple[str, ...]  # empty: no assertion
    licence_text: str  # where the words are
    sha256: str = ""  # hex, of the file as fetched; empty for what is in another's file
    size: int = 0  # bytes of that file
    filename: str = ""
    purl: str = ""
    source: str = ""  # Debian's source package
    source_version: str = ""
    security: bool = False  # taken from the security archive
    within: str = ""  # the wheel that bundles it


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One entry of a ramdisk."""

    path: str
    ramdisk: int
    kind: str  # file, directory, link, device
    mode: str  # octal
    size: int  # bytes
    sha256: str  # hex of a file's content, else empty
    target: str  # of a link
    component: str  # the name of the one that it comes from
    source: str  # where it has another name there: our source file


@dataclass(frozen=True, slots=True)
class Inventory:
    """All of it."""

    image: str
    image_sha256: str
    measurements: Measurements
    tool: str
    epoch: int  # seconds: the one time that appears
    suite: str
    components: tuple[Component, ...]
    files: tuple[FileRecord, ...]


def make_inventory(config: ImageConfig, lock: Lock, made: Made) -> Inventory:
    """Return what is in an image that was just made; every fact comes from the locked files themselves."""
    return Inventory(
        image=config.name, image_sha256=hashlib.sha256(made.image).hexdigest(),
        measurements=read_eif(made.image).measurements, tool=lock.tool, epoch=config.source_date_epoch,
        suite=config.suite, components=tuple(_components(config, lock, made.inputs, made.platform.given)),
        files=tuple(_files(lock, made)),
    )  # fmt: skip


def _components(
    config: ImageConfig, lock: Lock, inputs: Mapping[str, Path], given: GivenKernel | None
) -> Iterator[Component]:
    yield Component(Kind.OWN, OURSELVES, lock.tool, ("MIT",), "LICENSE", purl=f"pkg:pypi/{OURSELVES}@{lock.tool}")
    yield from _kernel_components(config, given)
    for package in lock.packages:
        kind = _package_kind(package, lock.architecture)
        if kind is Kind.KERNEL and given is not None:
            continue
        if kind is Kind.TOOL:  # not inside: named by hash, its licence is not looked for
            facts = DebianFacts(
                "", "", Licences((), f"usr/share/doc/{package.bare_name}/copyright in {package.filename}")
            )
        elif kind is Kind.KERNEL and KERNEL_HEADERS in inputs:  # the source itself is 150 MB and may not be here
            facts = read_deb(inputs[KERNEL_HEADERS], KERNEL_HEADERS)
        elif package.name in inputs:
            facts = read_deb(inputs[package.name], package.bare_name)
        else:
            raise BuildFailed(f"{package.name} is not in the cache, so its licence cannot be read")
        yield Component(
            kind, package.name, package.version, facts.licences.names, facts.licences.text, package.sha256,
            package.size, package.filename, _debian_purl(package, config.suite), facts.source, facts.source_version,
            package.archive is Archive.SECURITY,
        )  # fmt: skip
    for wheel in lock.wheels:
        licences, bundled = read_wheel(inputs[wheel.name])
        yield _wheel_component(wheel, licences)
        for item in bundled:
            yield _bundled_component(item, wheel)


def _kernel_components(config: ImageConfig, given: GivenKernel | None) -> Iterator[Component]:
    if given is not None:
        name = given.path.name
        text = "not known: the kernel was given, and is in no lock"
        yield Component(Kind.KERNEL, name, given.banner, (), text, given.sha256, len(given.image), name)
        return
    for patch in config.kernel_patches:  # a change to the kernel's source, under the kernel's licence
        yield Component(Kind.PATCH, patch.name, patch.sha256[:12], ("GPL-2.0-only",), patch.name, patch.sha256)


def _package_kind(package: LockedPackage, architecture: Architecture) -> Kind:
    if Role.ROOT in package.roles:
        return Kind.DEBIAN
    if Role.KERNEL in package.roles:
        return Kind.KERNEL
    return Kind.LINKED if package.name in LINKED[architecture] else Kind.TOOL


def _debian_purl(package: LockedPackage, suite: str) -> str:
    version = package.version.replace("+", "%2B").replace(":", "%3A")
    architecture = package.filename.rsplit("_", 1)[-1].removesuffix(".deb")
    return f"pkg:deb/debian/{package.bare_name}@{version}?arch={architecture}&distro={suite}"


def _wheel_component(wheel: LockedWheel, licences: Licences) -> Component:
    return Component(
        Kind.WHEEL, wheel.name, wheel.version, licences.names, licences.text, wheel.sha256, wheel.size, wheel.filename,
        f"pkg:pypi/{wheel.name}@{wheel.version}",
    )  # fmt: skip


def _bundled_component(item: Bundled, wheel: LockedWheel) -> Component:
    text = f"the SBOM in {wheel.filename}"
    return Component(
        Kind.BUNDLED, item.name, item.version, item.licences, text, purl=item.purl, within=wheel.name
    )  # fmt: skip


def _files(lock: Lock, made: Made) -> Iterator[FileRecord]:
    names = {entry.filename: entry.name for entry in lock.inputs}
    origins = {path: names[file] for path, file in json.loads(made.platform.origins.read_text()).items()}
    tree = only_executable("init", read_tree(made.platform.guest.root))
    for path, entry in tree.items():
        source = INIT_SOURCE if path == "init" else ""
        yield record(path, entry, ramdisk=PLATFORM, component=origins.get(path, OURSELVES), source=source)
    for path, entry in made.application.items():
        yield record(path, entry, ramdisk=APPLICATION, component=OURSELVES, source=find_source(path))


def find_source(path: str) -> str:
    """Return our source file of a path in the application ramdisk, nothing for a directory."""
    if not path.endswith(".pyc"):
        return ""
    inner = path.removeprefix("app/").removesuffix("c")
    return "enclave_image/runtime/start.py" if inner == "start.py" else inner


def record(
    path: str, entry: File | Link | Node | None, *, ramdisk: int, component: str, source: str = ""
) -> FileRecord:
    """Return the record of one entry, with the mode that its ramdisk gives it."""
    match entry:
        case File(data, executable):
            digest, mode = hashlib.sha256(data).hexdigest(), "0755" if executable else "0644"
            return FileRecord(path, ramdisk, "file", mode, len(data), digest, "", component, source)
        case Link(target):
            return FileRecord(path, ramdisk, "link", "0777", len(target.encode()), "", target, component, source)
        case Node(_, _, mode_bits):
            return FileRecord(path, ramdisk, "device", f"{mode_bits:04o}", 0, "", "", component, source)
        case None:
            return FileRecord(path, ramdisk, "directory", "0755", 0, "", "", component, source)


def dump_inventory(inventory: Inventory) -> dict[str, Any]:
    """Return the manifest as it is written: JSON, keys as the fields above, empty ones left out."""

    def row(value: Component | FileRecord) -> dict[str, Any]:
        return {key: item for key, item in asdict(value).items() if item not in ("", ()) or key == "licences"}

    return {
        "schema": SCHEMA, "image": inventory.image, "image_sha256": inventory.image_sha256,
        **dump_measurements(inventory.measurements), "tool": inventory.tool, "suite": inventory.suite,
        "components": [row(component) for component in inventory.components],
        "files": [row(file) for file in inventory.files],
    }  # fmt: skip
