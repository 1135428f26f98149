# SPDX-License-Identifier: MIT
"""Build an enclave image from a container image: the recipe, read from top to bottom."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attestation.console import say

from ..cache import Cache, using_cache
from ..config import ImageConfig
from ..eif import SectionType
from ..eif_writer import Built, write_image
from ..errors import UnfitContainer
from ..given_kernel import GivenKernel
from ..initramfs import File, Node, write_cpio
from ..kernel import FIRST_PROCESS
from ..lock import Lock, Role
from ..program import build_program, program_key, read_sources
from ..recipe import Platform, make_metadata, prepare_platform
from .layers import apply_layers, close
from .layout import Container, open_container
from .ramdisk import write_ramdisk
from .settings import Settings, read_settings

INIT_SOURCES = (Path(__file__).parent / "init.c", FIRST_PROCESS)
INIT_KIND = "container-init"  # of the cache


@dataclass(frozen=True, slots=True)
class FromContainer:
    """What was built, and from what."""

    built: Built
    digest: str  # sha256:HEX of the container image
    settings: Settings
    left_out: tuple[str, ...]  # device nodes below /dev
    attributes: tuple[str, ...]  # names of extended attributes that a ramdisk cannot hold


def build_container(
    config: ImageConfig, lock: Lock, source: Path, *, platform: str, out: Path, offline: bool = False,
    snapshot: str | None = None, kernel: GivenKernel | None = None,
) -> FromContainer:  # fmt: skip
    """Build the EIF that runs a container image on our kernel, write it to `out`.

    Its bytes are a function of the container's digest and the lock. Raises MalformedContainer, ContainerMismatch,
    UnfitContainer, and what a build of our own image raises.
    """
    runs = f"linux/{lock.architecture.debian}"
    if platform != runs and not platform.startswith(f"{runs}/"):
        raise UnfitContainer("the enclave's kernel is for another platform", expected=runs, actual=platform)
    with (
        using_cache(),
        open_container(source, platform=platform) as container,
        tempfile.TemporaryDirectory(prefix="veracruz-container-") as scratch,
    ):
        base, inputs = prepare_platform(config, lock, out=out, offline=offline, snapshot=snapshot, kernel=kernel)
        init = build_init(config, lock, inputs)
        say(f"unpacking {len(container.layers)} layers of {container.digest}")
        return _pack(container, Path(scratch), base, init, config, lock, out)


def build_init(config: ImageConfig, lock: Lock, inputs: Mapping[str, Path]) -> bytes:
    """Return the static /init of such images, compiled in the locked toolchain."""
    tools = lock.packages_for(Role.TOOLCHAIN)
    return build_program(
        Cache(), INIT_KIND, INIT_SOURCES, toolchain=[inputs[tool.name] for tool in tools],
        toolchain_hashes=[tool.sha256 for tool in tools], defines=_defines(config), architecture=lock.architecture,
    ).read_bytes()  # fmt: skip


def _defines(config: ImageConfig) -> list[str]:
    return [f'COMMAND_LINE="{config.command_line}"']


def find_needed_init(config: ImageConfig, lock: Lock) -> str:
    """Return the entry of the cache, `KIND/KEY`, in which that /init is."""
    hashes = [tool.sha256 for tool in lock.packages_for(Role.TOOLCHAIN)]
    key = program_key(
        INIT_KIND, read_sources(INIT_SOURCES), toolchain_hashes=hashes, defines=_defines(config),
        architecture=lock.architecture,
    )  # fmt: skip
    return f"{INIT_KIND}/{Cache.entry_name(key)}"


def make_boot_ramdisk(init: bytes) -> bytes:
    """Return the first ramdisk: the same for every container."""
    return write_cpio(
        {"dev/console": Node(5, 1, 0o600), "init": File(init, executable=True), "proc": None, "rootfs": None}
    )


def _pack(
    container: Container, scratch: Path, base: Platform, init: bytes, config: ImageConfig, lock: Lock, out: Path
) -> FromContainer:
    tree, opened = apply_layers(container, scratch)
    try:
        settings = read_settings(container.config, tree)
        with (scratch / "ramdisk").open("wb") as file:
            write_ramdisk(tree, settings.files(), file)
    finally:
        close(opened)
    base.guest.compress(scratch / "ramdisk", scratch / "packed", level=config.zstd_level)
    sections = (
        (SectionType.KERNEL, base.kernel),
        (SectionType.CMDLINE, config.command_line.encode()),
        (SectionType.METADATA, make_metadata(config, lock, base.given, container=container.digest)),
        (SectionType.RAMDISK, make_boot_ramdisk(init)),
        (SectionType.RAMDISK, (scratch / "packed").read_bytes()),
    )
    built = write_image(sections, out, architecture=lock.architecture)
    return FromContainer(built, container.digest, settings, tuple(tree.left_out), tuple(sorted(tree.attributes)))
