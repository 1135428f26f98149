# SPDX-License-Identifier: MIT
"""Compile one static program of C for the guest, inside the locked toolchain alone.

Its sources are the file that is compiled, then the headers that it includes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from attestation.console import say

from .architecture import BUILDER, Architecture
from .cache import Cache
from .config import DEFAULT_DIR, find_mirrors, load_config
from .fetch import fetch_inputs
from .lock import Role, load_lock
from .toolchain import check_log, compiler_for, make_sysroot, sandboxed

RECIPE = "2"  # part of the cache's key: change it when the steps below change their product
FLAGS = (
    "-std=c11", "-Os", "-static", "-Wall", "-Wextra", "-Werror", "-ffile-prefix-map=/build=.", "-Wl,--build-id=none",
    "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-s",
)  # fmt: skip


def _flags(defines: Sequence[str]) -> list[str]:
    return [*FLAGS, *(f"-D{define}" for define in defines)]


def read_sources(paths: Sequence[Path]) -> dict[str, bytes]:
    """Return the text of each file by its name."""
    return {path.name: path.read_bytes() for path in paths}


def program_key(
    name: str, sources: Mapping[str, bytes], *, toolchain_hashes: Sequence[str], defines: Sequence[str] = (),
    architecture: Architecture = BUILDER,
) -> str:  # fmt: skip
    """Return the hash of all that a program is made of."""
    digests = [f"{file} {hashlib.sha256(text).hexdigest()}" for file, text in sources.items()]
    parts = [f"{name}/{RECIPE}", *sorted(toolchain_hashes), *digests, compiler_for(architecture), *_flags(defines)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_program(
    cache: Cache, name: str, paths: Sequence[Path], *, toolchain: Sequence[Path], toolchain_hashes: Sequence[str],
    defines: Sequence[str] = (), architecture: Architecture = BUILDER,
) -> Path:  # fmt: skip
    """Return the executable `name`, compiled from its sources unless the cache has it; raises BuildFailed."""
    flags, sources = _flags(defines), read_sources(paths)  # read once: the key is that of what is compiled
    key = program_key(name, sources, toolchain_hashes=toolchain_hashes, defines=defines, architecture=architecture)
    if (found := cache.find(name, key)) is None:
        with cache.make(name, key) as out:
            root, log = out.scratch / "root", cache.log(name, key)
            root.mkdir()
            say(f"compiling /{name}")
            make_sysroot(root, toolchain)
            for file, text in sources.items():
                (root / "build" / file).write_bytes(text)
            command = [compiler_for(architecture), *flags, "-o", f"/build/{name}", f"/build/{paths[0].name}"]
            sandboxed(root, command, what=f"/{name}", log=log)
            check_log(log)
            shutil.copyfile(root / f"build/{name}", out.product / name)
        found = cache.demand(name, key)
    return found / name


def build_guest_program(name: str, source: Path) -> bytes:
    """Return a static x86-64 executable for tests and benchmarks, by the default image's toolchain."""
    lock = load_lock(DEFAULT_DIR / "enclave.lock")
    tools = lock.packages_for(Role.TOOLCHAIN)
    inputs = fetch_inputs(tools, find_mirrors(load_config()))
    return build_program(
        Cache(), name, [source], toolchain=[inputs[tool.name] for tool in tools],
        toolchain_hashes=[tool.sha256 for tool in tools],
    ).read_bytes()  # fmt: skip
