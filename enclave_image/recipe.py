# SPDX-License-Identifier: MIT
"""Build an image: the recipe, read from top to bottom."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from attestation.console import say

from . import emulator
from .application_half import TREE, application_key, find_application
from .architecture import Architecture, demand_builder, fit_kernel
from .cache import Cache, using_cache
from .config import ImageConfig, cache_dir, find_mirrors, find_snapshot
from .eif import SectionType, write_eif
from .eif_measuring import Sections
from .eif_writer import Built, write_image
from .fetch import Snapshot, fetch_inputs, find_missing, input_path
from .given_kernel import GivenKernel
from .guest import Guest
from .initramfs import Tree, read_tree
from .kernel import build_init, build_kernel, init_key, kernel_key
from .lock import Lock, LockedPackage, Role, demand_tool
from .platform_half import ORIGINS, RAMDISK, ROOT, make_platform, platform_key
from .space import Plan, demand_room
from .step_sources import find_sources

PLATFORM_STEP = f"{__package__}.platform_half"
PLATFORM_KINDS = frozenset({"kernel", "init", "platform"})  # of cache entries that stand apart from our Python


@dataclass(frozen=True, slots=True)
class Platform:
    """The half of the image that our Python code does not touch."""

    kernel: bytes
    ramdisk: bytes
    guest: Guest  # unpacked: its interpreter compiles the other half
    origins: Path  # JSON: path in the ramdisk -> the file name of the input that it comes from
    given: GivenKernel | None  # the kernel, where it is not the lock's


@dataclass(frozen=True, slots=True)
class Made:
    """An image in memory, and what it was made of."""

    sections: Sections  # of the EIF
    platform: Platform
    application_root: Path  # its ramdisk's files, unpacked
    inputs: Mapping[str, Path]  # the locked inputs in the cache, by name
    architecture: Architecture

    @property
    def image(self) -> bytes:
        """The EIF."""
        return write_eif(self.sections, aarch64=self.architecture is Architecture.AARCH64)

    @property
    def application(self) -> Tree:
        """The files of the application's ramdisk."""
        return read_tree(self.application_root)


def build_image(
    config: ImageConfig,
    lock: Lock,
    *,
    out: Path,
    offline: bool = False,
    snapshot: str | None = None,
    kernel: GivenKernel | None = None,
    with_inputs: bool = True,
) -> tuple[Built, Made]:
    """Build the EIF that `config` and `lock` describe, write it to `out`; return its measurements and its parts.

    A `kernel` that was given takes the place of the one that they describe.
    """
    with using_cache():
        made = make_image(
            config, lock, out=out, offline=offline, snapshot=snapshot, kernel=kernel, with_inputs=with_inputs
        )
        return write_image(made.sections, out, architecture=lock.architecture), made


def make_image(
    config: ImageConfig,
    lock: Lock,
    *,
    out: Path | None = None,
    offline: bool = False,
    snapshot: str | None = None,
    kernel: GivenKernel | None = None,
    with_inputs: bool = True,
) -> Made:
    """Return the image that `config` and `lock` describe. The caller holds `using_cache`; `out` is where it will go.

    Without `with_inputs` they are neither fetched nor hashed where the cache has all that is made of them.
    """
    platform, inputs = prepare_platform(
        config, lock, out=out, offline=offline, snapshot=snapshot, kernel=kernel, with_inputs=with_inputs
    )
    application = find_application(Cache(), platform.guest, level=config.zstd_level)
    sections = (
        (SectionType.KERNEL, fit_kernel(platform.kernel, lock.architecture)),
        (SectionType.CMDLINE, config.command_line.encode()),
        (SectionType.METADATA, make_metadata(config, lock, kernel)),
        (SectionType.RAMDISK, platform.ramdisk),
        (SectionType.RAMDISK, (application / RAMDISK).read_bytes()),
    )
    return Made(sections, platform, application / TREE, inputs, lock.architecture)


def prepare_platform(
    config: ImageConfig, lock: Lock, *, out: Path | None, offline: bool, snapshot: str | None,
    kernel: GivenKernel | None = None, with_inputs: bool = True,
) -> tuple[Platform, Mapping[str, Path]]:  # fmt: skip
    """Return the platform, built unless the cache has it, and the locked inputs. The caller holds `using_cache`.

    Without `with_inputs` the inputs are neither fetched nor hashed where the cache has all that is made of them.
    """
    demand_builder()
    demand_tool(lock)
    cache = Cache()
    have_kernel = kernel is not None or cache.find("kernel", _kernel_key(config, lock)) is not None
    if with_inputs or not has_platform(cache, config, lock):
        inputs = _fetch(cache, config, lock, out=out, offline=offline, snapshot=snapshot, have_kernel=have_kernel)
    else:
        inputs = {entry.name: input_path(entry) for entry in lock.inputs}  # which nobody opens
    return _build_platform(cache, config, lock, inputs, kernel), inputs


def _kernel_key(config: ImageConfig, lock: Lock) -> str:
    (source,) = lock.packages_for(Role.KERNEL)
    toolchain = [package.sha256 for package in lock.packages_for(Role.TOOLCHAIN)]
    return kernel_key(
        source=source.sha256, toolchain=toolchain, config=config.kernel_config, patches=config.kernel_patches,
        epoch=config.source_date_epoch,
    )  # fmt: skip


def _platform_key(config: ImageConfig, lock: Lock, init: Path) -> str:
    inputs = [*(p.sha256 for p in lock.packages_for(Role.ROOT)), *(w.sha256 for w in lock.wheels)]
    for package in lock.packages_for(Role.EMULATOR):  # it ran what compiled and packed
        inputs.append(emulator.emulator_key(package.sha256, lock.architecture))
    trim = config.directory / "trim.list"
    return platform_key(inputs, trim=trim, init=init, level=config.zstd_level, sources=find_sources(PLATFORM_STEP))


def find_needed(config: ImageConfig, lock: Lock) -> frozenset[str]:
    """Return the entries of the cache, `KIND/KEY`, that a build of this configuration and lock would use."""
    cache = Cache()
    hashes = [package.sha256 for package in lock.packages_for(Role.TOOLCHAIN)]
    keys = {
        "kernel": _kernel_key(config, lock),
        "init": init_key(
            toolchain_hashes=hashes, command_line=config.command_line, architecture=lock.architecture
        ),
    }  # fmt: skip
    for package in lock.packages_for(Role.EMULATOR):
        keys[emulator.KIND] = emulator.emulator_key(package.sha256, lock.architecture)
    if (init := cache.find("init", keys["init"])) is not None and (init / "init").is_file():
        keys["platform"] = _platform_key(config, lock, init / "init")
        keys["application"] = application_key(cache.entry_name(keys["platform"]), config.zstd_level)
    return frozenset(f"{kind}/{cache.entry_name(key)}" for kind, key in keys.items())


def has_platform(cache: Cache, config: ImageConfig, lock: Lock) -> bool:
    """Return whether the cache has the kernel, /init and the platform: all that is made of inputs."""
    kinds = PLATFORM_KINDS | {emulator.KIND for _ in lock.packages_for(Role.EMULATOR)}
    wanted = [entry for entry in find_needed(config, lock) if entry.partition("/")[0] in kinds]
    return len(wanted) == len(kinds) and all((cache.base / entry).is_dir() for entry in wanted)


def _fetch(
    cache: Cache,
    config: ImageConfig,
    lock: Lock,
    *,
    out: Path | None,
    offline: bool,
    snapshot: str | None,
    have_kernel: bool,
) -> Mapping[str, Path]:
    cache_dir().mkdir(parents=True, exist_ok=True)
    source = frozenset({Role.KERNEL})
    wanted = [e for e in lock.inputs if not (have_kernel and isinstance(e, LockedPackage) and e.roles == source)]
    missing = find_missing(wanted)
    if not (missing and offline):  # else what is missing is told, whatever the room
        downloads = sum(entry.size for entry in missing)
        demand_room(Plan(downloads=downloads, kernel=not have_kernel, platform=not cache.has("platform")), out=out)
    service = Snapshot.named(find_snapshot(config, snapshot))
    mirrors = find_mirrors(config) if missing else {}  # asking apt takes longer than all else of an unchanged build
    return fetch_inputs(
        wanted, mirrors, snapshot=service, offline=offline, missing=missing, architecture=lock.architecture
    )


def _build_kernel(cache: Cache, config: ImageConfig, lock: Lock, inputs: Mapping[str, Path]) -> bytes:
    (source,) = lock.packages_for(Role.KERNEL)
    kernel = build_kernel(
        cache, _kernel_key(config, lock), source=inputs.get(source.name, Path()),
        toolchain=[inputs[package.name] for package in lock.packages_for(Role.TOOLCHAIN)],
        config=config.kernel_config, patches=config.kernel_patches, epoch=config.source_date_epoch,
    )  # fmt: skip
    return (kernel / lock.architecture.kernel_target).read_bytes()


def _build_platform(
    cache: Cache, config: ImageConfig, lock: Lock, inputs: Mapping[str, Path], given: GivenKernel | None
) -> Platform:
    kernel = given.image if given else _build_kernel(cache, config, lock, inputs)
    tools = lock.packages_for(Role.TOOLCHAIN)
    toolchain = [inputs[package.name] for package in tools]
    init = build_init(
        cache, toolchain=toolchain, toolchain_hashes=[p.sha256 for p in tools], command_line=config.command_line,
        architecture=lock.architecture,
    )  # fmt: skip
    runner = _find_emulator(cache, lock, inputs)
    packages, trim = lock.packages_for(Role.ROOT), config.directory / "trim.list"
    key = _platform_key(config, lock, init)
    if cache.find("platform", key) is None:
        with cache.make("platform", key) as making:
            say("unpacking, trimming and compiling the platform")
            make_platform(
                making.product, packages=[inputs[p.name] for p in packages],
                wheels=[inputs[w.name] for w in lock.wheels], trim=trim, init=init, level=config.zstd_level,
                architecture=lock.architecture, emulator=runner,
            )  # fmt: skip
    entry = cache.demand("platform", key)
    guest = Guest(entry / ROOT, lock.architecture, runner)
    return Platform(kernel, (entry / RAMDISK).read_bytes(), guest, entry / ORIGINS, given)


def _find_emulator(cache: Cache, lock: Lock, inputs: Mapping[str, Path]) -> Path | None:
    for package in lock.packages_for(Role.EMULATOR):
        return emulator.find_emulator(
            cache, inputs[package.name], sha256=package.sha256, architecture=lock.architecture
        )  # fmt: skip
    return None


def make_metadata(config: ImageConfig, lock: Lock, given: GivenKernel | None, *, container: str | None = None) -> bytes:
    """Return the metadata section: a hint that nothing measures. `container`: digest of what is put in for ours."""
    (source,) = lock.packages_for(Role.KERNEL)
    built = datetime.fromtimestamp(config.source_date_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps(
        {
            "ImageName": config.name if container is None else "container",
            "ImageVersion": metadata.version("veracruz") if container is None else container,
            "BuildMetadata": {
                "BuildTime": built,
                "BuildTool": "veracruz",
                "BuildToolVersion": metadata.version("veracruz"),
                "OperatingSystem": f"Debian {config.suite}",
                "KernelVersion": given.banner if given else source.version,
            },
            "DockerInfo": {},
            "CustomMetadata": {"GivenKernel": {"SHA256": given.sha256}} if given else None,
        },
        separators=(",", ":"),
    ).encode()
