# SPDX-License-Identifier: MIT
"""Build an image: the recipe, read from top to bottom."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from attestation.console import say
from attestation.files import write_whole
from attestation.measurements import Measurements

from .application import stage_application
from .cache import Cache, demand_space
from .config import ImageConfig, cache_dir, find_mirrors
from .eif import SectionType, read_eif, write_eif
from .errors import BuildFailed
from .fetch import fetch_inputs
from .initramfs import Tree, only_executable, read_tree, write_cpio
from .kernel import build_init, build_kernel, kernel_key
from .lock import Lock, LockedPackage, Role
from .rootfs import GUEST_TOOL, build_rootfs, guest_compress

RECIPE = "platform/1"  # part of the cache's key: change it when the steps change their product
SPACE_KERNEL = 2_600_000_000  # bytes: the kernel's source unpacked, its objects, the toolchain
SPACE_PLATFORM = 500_000_000  # bytes: inputs, the platform unpacked and packed


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gives."""

    measurements: Measurements
    size: int  # bytes of the EIF
    sha256: str  # hex, of the EIF
    changed: bool  # whether the file was written: false when it held these very bytes


@dataclass(frozen=True, slots=True)
class Platform:
    """The half of the image that our Python code does not touch."""

    kernel: bytes
    ramdisk: bytes
    root: Path  # unpacked: its interpreter compiles the other half


def build_image(config: ImageConfig, lock: Lock, *, out: Path, offline: bool = False) -> Built:
    """Build the EIF that `config` and `lock` describe, write it to `out`, return its measurements."""
    cache = Cache()
    inputs = _fetch(cache, config, lock, offline=offline)
    platform = _build_platform(cache, config, lock, inputs)
    application = _build_application(platform, config)
    image = write_eif(
        [
            (SectionType.KERNEL, platform.kernel),
            (SectionType.CMDLINE, config.command_line.encode()),
            (SectionType.METADATA, _make_metadata(config, lock)),
            (SectionType.RAMDISK, platform.ramdisk),
            (SectionType.RAMDISK, application),
        ]
    )
    return _write(image, out)


def _kernel_key(config: ImageConfig, lock: Lock) -> str:
    (source,) = lock.packages_for(Role.KERNEL)
    toolchain = [package.sha256 for package in lock.packages_for(Role.TOOLCHAIN)]
    return kernel_key(
        source=source.sha256, toolchain=toolchain, fragment=config.fragment, epoch=config.source_date_epoch
    )


def _fetch(cache: Cache, config: ImageConfig, lock: Lock, *, offline: bool) -> Mapping[str, Path]:
    have_kernel = cache.find("kernel", _kernel_key(config, lock)) is not None
    cache_dir().mkdir(parents=True, exist_ok=True)
    demand_space(cache_dir(), SPACE_PLATFORM if have_kernel else SPACE_KERNEL + SPACE_PLATFORM)
    source = frozenset({Role.KERNEL})
    wanted = [e for e in lock.inputs if not (have_kernel and isinstance(e, LockedPackage) and e.roles == source)]
    return fetch_inputs(wanted, find_mirrors(config), offline=offline)


def _build_platform(cache: Cache, config: ImageConfig, lock: Lock, inputs: Mapping[str, Path]) -> Platform:
    tools = lock.packages_for(Role.TOOLCHAIN)
    toolchain = [inputs[package.name] for package in tools]
    (source,) = lock.packages_for(Role.KERNEL)
    kernel = build_kernel(
        cache, _kernel_key(config, lock), source=inputs.get(source.name, Path()), toolchain=toolchain,
        fragment=config.fragment, epoch=config.source_date_epoch,
    )  # fmt: skip
    init = build_init(
        cache, toolchain=toolchain, toolchain_hashes=[p.sha256 for p in tools], command_line=config.command_line
    )
    packages, trim = lock.packages_for(Role.ROOT), config.directory / "trim.list"
    steps = [Path(__file__).parent / name for name in ("rootfs.py", "initramfs.py", "debian.py", GUEST_TOOL.name)]
    parts = [
        RECIPE, *(p.sha256 for p in packages), *(w.sha256 for w in lock.wheels), str(config.zstd_level),
        *(hashlib.sha256(path.read_bytes()).hexdigest() for path in (trim, init, *steps)),
    ]  # fmt: skip
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if cache.find("platform", key) is None:
        with cache.make("platform", key) as making:
            say("unpacking, trimming and compiling the platform")
            root = making.product / "root"
            root.mkdir()
            build_rootfs(
                root, packages=[inputs[p.name] for p in packages], wheels=[inputs[w.name] for w in lock.wheels],
                trim=trim, init=init,
            )  # fmt: skip
            tree = only_executable("init", read_tree(root))
            (making.product / "ramdisk").write_bytes(_pack(tree, root, config.zstd_level))
    entry = cache.demand("platform", key)
    return Platform((kernel / "bzImage").read_bytes(), (entry / "ramdisk").read_bytes(), entry / "root")


def _pack(tree: Tree, root: Path, level: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="veracruz-pack-") as scratch:
        archive, packed = Path(scratch) / "cpio", Path(scratch) / "cpio.zst"
        archive.write_bytes(write_cpio(tree))
        guest_compress(root, archive, packed, level=level)
        return packed.read_bytes()


def _build_application(platform: Platform, config: ImageConfig) -> bytes:
    with tempfile.TemporaryDirectory(prefix="veracruz-app-") as scratch:
        tree = stage_application(platform.root, Path(scratch))
    both = [name for name, entry in tree.items() if entry is not None and (platform.root / name).exists()]
    if both:  # the later ramdisk would shadow the earlier one under an equal PCR1
        raise BuildFailed("both ramdisks hold the same path", actual=", ".join(both))
    return _pack(tree, platform.root, config.zstd_level)


def _make_metadata(config: ImageConfig, lock: Lock) -> bytes:
    (source,) = lock.packages_for(Role.KERNEL)
    built = datetime.fromtimestamp(config.source_date_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps(
        {
            "ImageName": config.name,
            "ImageVersion": metadata.version("veracruz"),
            "BuildMetadata": {
                "BuildTime": built,
                "BuildTool": "veracruz",
                "BuildToolVersion": metadata.version("veracruz"),
                "OperatingSystem": f"Debian {config.suite}",
                "KernelVersion": source.version,
            },
            "DockerInfo": {},
            "CustomMetadata": None,
        },
        separators=(",", ":"),
    ).encode()


def _write(image: bytes, out: Path) -> Built:
    built = read_eif(image)  # our own reader is the first to accept it
    digest = hashlib.sha256(image).hexdigest()
    changed = not (out.exists() and out.stat().st_size == len(image) and out.read_bytes() == image)
    if changed:
        demand_space(out.parent, len(image))
        write_whole(out, image)
    return Built(built.measurements, len(image), digest, changed)
