# SPDX-License-Identifier: MIT
"""Compile the kernel and /init from locked source, inside the locked toolchain alone."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import tarfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from attestation.console import say

from .architecture import BUILDER, Architecture
from .cache import Cache
from .debian import open_data, write_tree
from .errors import BuildFailed
from .kernel_checks import check_kernel, find_kernel
from .kernel_config import KernelConfig, check_config
from .patches import Patch, apply_patch
from .program import build_program, program_key, read_sources
from .toolchain import PREFIX, check_log, compiler_for, make_sysroot, sandboxed

RECIPE = "kernel/1"  # part of the cache's key: change it when the steps below change their product
RUNTIME = Path(__file__).parent / "runtime"
FIRST_PROCESS = RUNTIME / "first_process.h"  # what every /init of ours includes
INIT_SOURCES = (RUNTIME / "init.c", FIRST_PROCESS)


def make_command(architecture: Architecture) -> list[str]:
    """Return make with what every step tells it; what runs in the build itself is the building machine's."""
    own = compiler_for(BUILDER)
    return [
        "make", "-C", "/src", "O=/build", f"ARCH={architecture.kernel_tree}",
        f"CROSS_COMPILE={architecture.triplet}-", f"CC={compiler_for(architecture)}", f"HOSTCC={own}",
        f"HOSTLD={PREFIX}ld", f"HOSTAR={PREFIX}ar", "AWK=mawk", "CONFIG_SHELL=/bin/sh",
    ]  # fmt: skip


def build_environment(epoch: int) -> dict[str, str]:
    """Return the variables that keep time, user and machine out of the product.

    The timestamp must be one that `date -d` parses: usr/gen_initramfs.sh falls back silently to the current time.
    """
    stamp = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return {
        "KBUILD_BUILD_TIMESTAMP": stamp, "KBUILD_BUILD_USER": "eif", "KBUILD_BUILD_HOST": "eif",
        "KBUILD_BUILD_VERSION": "1", "SOURCE_DATE_EPOCH": str(epoch),
    }  # fmt: skip


def unpack_source(package: Path, target: Path) -> None:
    """Unpack the kernel's source out of its Debian package into `target`, without its top directory."""
    with open_data(package) as tar:
        for member in tar:
            if member.isreg() and re.search(r"/linux-source-[0-9.]+\.tar\.xz$", member.name):
                stream = tar.extractfile(member)
                assert stream is not None
                with tarfile.open(fileobj=lzma.open(stream), mode="r|") as inner:
                    write_tree(_without_top(inner), target, keep=lambda name: True, origin=member.name)
                return
    raise BuildFailed(f"{package.name} holds no kernel source")


def _without_top(tar: tarfile.TarFile) -> tarfile.TarFile:
    original = tar.next

    def next_member() -> tarfile.TarInfo | None:
        member = original()
        if member is not None:
            member.name = member.name.partition("/")[2]
            if member.islnk():
                member.linkname = member.linkname.partition("/")[2]
        return member

    tar.next = next_member  # type: ignore[method-assign]
    return tar


def kernel_key(
    *, source: str, toolchain: Sequence[str], config: KernelConfig, patches: Sequence[Patch], epoch: int
) -> str:
    """Return the hash of all that the kernel is made of: inputs' SHA-256, patches, configuration, recipe."""
    fragment = hashlib.sha256(config.fragment).hexdigest()
    make = make_command(config.architecture)
    parts = [RECIPE, source, *sorted(toolchain), fragment, *(patch.sha256 for patch in patches), str(epoch), *make]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_kernel(
    cache: Cache,
    key: str,
    *,
    source: Path,
    toolchain: Sequence[Path],
    config: KernelConfig,
    patches: Sequence[Patch],
    epoch: int,
) -> Path:
    """Return a directory with the kernel under its form's name and `config`, compiled unless the cache has it."""
    if (found := cache.find("kernel", key)) is not None:
        return found
    with cache.make("kernel", key) as out:
        root, log = out.scratch / "root", cache.log("kernel", key)
        target, make = config.architecture.kernel_target, make_command(config.architecture)
        root.mkdir()
        say(
            f"compiling the kernel for {config.architecture}, configuration {config.name} "
            f"(once; about {'five' if config.architecture is BUILDER else 'ten'} minutes on two cores)"
        )
        make_sysroot(root, toolchain)
        unpack_source(source, root / "src")
        for patch in patches:
            apply_patch(patch, root / "src")
        (root / "build/fragment").write_bytes(config.fragment)
        env = build_environment(epoch)
        sandboxed(
            root, [*make, "allnoconfig"], what="kernel configuration", log=log,
            env={**env, "KCONFIG_ALLCONFIG": "/build/fragment"},
        )  # fmt: skip
        finished = (root / "build/.config").read_text()
        check_config(config, finished)
        start = time.monotonic()
        sandboxed(root, [*make, f"-j{os.cpu_count() or 1}", target], what="kernel", log=log, env=env)
        check_log(log)
        check_kernel(root / "build", config.architecture, environment=env)
        say(f"kernel compiled in {time.monotonic() - start:.0f} s")
        shutil.copyfile(find_kernel(root / "build", config.architecture), out.product / target)
        (out.product / "config").write_text(finished)
    return cache.demand("kernel", key)


def _init_defines(command_line: str) -> list[str]:
    return [f'COMMAND_LINE="{command_line}"']


def init_key(*, toolchain_hashes: Sequence[str], command_line: str, architecture: Architecture) -> str:
    """Return the hash of all that /init is made of."""
    return program_key(
        "init", read_sources(INIT_SOURCES), toolchain_hashes=toolchain_hashes, defines=_init_defines(command_line),
        architecture=architecture,
    )  # fmt: skip


def build_init(
    cache: Cache, *, toolchain: Sequence[Path], toolchain_hashes: Sequence[str], command_line: str,
    architecture: Architecture,
) -> Path:  # fmt: skip
    """Return the static /init, with the image's command line compiled in."""
    return build_program(
        cache, "init", INIT_SOURCES, toolchain=toolchain, toolchain_hashes=toolchain_hashes,
        defines=_init_defines(command_line), architecture=architecture,
    )  # fmt: skip
