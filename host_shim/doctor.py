# SPDX-License-Identifier: MIT
"""What this machine has of what isolates need: each finding says what was found, and what mends it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from attestation.errors import VeracruzError
from enclave_image.config import cache_dir

from .state import Isolates, make_private, make_sockets, remove_sockets, state_home

MIB = 1 << 20
BUILD_DISK = 4096  # MiB; a first build with its kernel (README)
LEAST_MEMORY = 1024  # MiB; an isolate of 512 and QEMU's own
LEAST_FILES = 1024  # open files; a connection takes two, and four more while it moves much
OUR_PACKAGES = ("attestation", "enclave_image", "host_shim")
LIBRARIES = ("cryptography", "cbor2", "pycose", "wasmtime", "h11")
STA_UNSYNC = 0x0040  # adjtimex(2)
RELEASED = datetime(2026, 11, 1, tzinfo=UTC)  # no true clock is before this version


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # something is slower, or not to be had, and the rest works
    PROBLEM = "problem"  # isolates will not run, or evidence will not verify


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `mend` is what to do where it is not as it should be."""

    what: str
    level: Level
    found: str
    mend: str | None = None


Examination = Callable[[], Iterator[Finding]]


def ok(what: str, found: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(what, Level.OK, found)


def examine_python() -> Iterator[Finding]:
    """The interpreter, our own packages, and the libraries they need."""
    yield ok("python", f"{sys.version.split()[0]} at {sys.executable}")
    place = Path(__file__).resolve().parent.parent
    for name in OUR_PACKAGES:
        found = Path(getattr(importlib.import_module(name), "__file__", None) or "nowhere").resolve()
        if not found.is_relative_to(place):
            mend = "another distribution has this name: use an environment that holds veracruz alone"
            yield Finding("packages", Level.PROBLEM, f"{name} is {found}, not ours", mend)
    missing = []
    for name in LIBRARIES:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("libraries", Level.PROBLEM, f"missing: {', '.join(missing)}", "pip install 'veracruz[host]'")
    else:
        yield ok("libraries", ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES))


def examine_memory() -> Iterator[Finding]:
    """Memory for an isolate, and for a first build."""
    kinds = dict(read_meminfo())
    available = kinds.get("MemAvailable", 0) // 1024
    if available < LEAST_MEMORY:
        mend = f"free some: an isolate of 512 MiB and QEMU take {LEAST_MEMORY} MiB"
        yield Finding("memory", Level.PROBLEM, f"{available} MiB available", mend)
    else:
        yield ok("memory", f"{available} MiB available")


def read_meminfo(path: Path = Path("/proc/meminfo")) -> Iterator[tuple[str, int]]:
    """Yield proc_meminfo(5)'s names and numbers (kB, or pages for huge pages)."""
    for line in path.read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            yield name, int(rest.split()[0])


def examine_files() -> Iterator[Finding]:
    """Where state, cache and sockets lie, and whether there is room."""
    try:
        make_private(state_home())
        yield ok("state", str(state_home()))
    except VeracruzError as error:
        yield Finding("state", Level.PROBLEM, str(error), error.hint)
    for one in Isolates().damaged():
        yield Finding("state", Level.NOTE, one.problem, one.cure)
    try:
        remove_sockets(make_sockets())
        yield ok("sockets", "a short private directory can be made")
    except VeracruzError as error:
        yield Finding("sockets", Level.PROBLEM, str(error), error.hint)
    cache = cache_dir()
    place = cache
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free // MIB
    if not os.access(place, os.W_OK):
        yield Finding("cache", Level.PROBLEM, f"{place} is not writable", "set XDG_CACHE_HOME to a directory of yours")
    elif free < BUILD_DISK:
        mend = f"a first build needs about {BUILD_DISK} MiB: free some, or set XDG_CACHE_HOME"
        yield Finding("cache", Level.NOTE, f"{free} MiB free at {cache}", mend)
    else:
        yield ok("cache", f"{cache}, {free} MiB free")


def examine_limits() -> Iterator[Finding]:
    """Limits on this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        mend = f"ulimit -n {LEAST_FILES}, or LimitNOFILE= in its unit"
        yield Finding("open files", Level.NOTE, f"at most {soft}: few connections at once", mend)
    else:
        yield ok("open files", f"at most {soft} (could be {hard})")


def examine_clock() -> Iterator[Finding]:
    """The clock: evidence is refused by one that is minutes off."""
    now = datetime.now(UTC)
    if now < RELEASED:
        yield Finding("clock", Level.PROBLEM, f"{now:%Y-%m-%d %H:%M} UTC is before this version", "set the clock")
        return
    synchronised = clock_synchronised()
    if synchronised is False:
        mend = "install a time service (systemd-timesyncd, chrony); evidence is valid for three hours, from the second"
        yield Finding("clock", Level.NOTE, f"{now:%Y-%m-%d %H:%M:%S} UTC, not synchronised", mend)
    else:
        state = "synchronised" if synchronised else "cannot tell whether it is synchronised"
        yield ok("clock", f"{now:%Y-%m-%d %H:%M:%S} UTC, {state}")


def clock_synchronised() -> bool | None:
    """Whether the kernel says that its clock follows another's (adjtimex(2)); None where it does not tell."""
    words = (ctypes.c_long * 64)()  # struct timex: `modes` first, 0 to read alone; `status` is the sixth word
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(words))
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    return not words[5] & 0xFFFFFFFF & STA_UNSYNC


def examine_vsock() -> Iterator[Finding]:
    """The kernel's vsock, which Nitro needs and QEMU does not."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
        yield ok("vsock", "the kernel has it")
    except OSError as error:
        mend = "only `--isolate nitro` needs it: modprobe vsock"
        yield Finding("vsock", Level.NOTE, f"not to be had: {error.strerror}", mend)


def examine_nitro(devices: Path = Path("/dev")) -> Iterator[Finding]:
    """What an EC2 host with enclaves has; on others it is one note."""
    device = devices / "nitro_enclaves"
    if not device.exists():
        mend = "only `--isolate nitro` needs it: an EC2 instance with enclaves enabled"
        yield Finding("nitro", Level.NOTE, f"no {device}", mend)
        return
    if not os.access(device, os.R_OK | os.W_OK):
        mend = "add this user to the group ne, and log in again"
        yield Finding("nitro", Level.PROBLEM, f"{device} cannot be opened by this user", mend)
    else:
        yield ok("nitro", str(device))
    if shutil.which("nitro-cli") is None:
        yield Finding("nitro-cli", Level.NOTE, "not installed", "install the package aws-nitro-enclaves-cli")
    else:
        yield ok("nitro-cli", str(shutil.which("nitro-cli")))
    kinds = dict(read_meminfo())
    free = kinds.get("HugePages_Free", 0) * kinds.get("Hugepagesize", 2048) // 1024
    if free < 512:
        mend = "raise memory_mib in the allocator's configuration (allocator.yaml) and restart nitro-enclaves-allocator"
        yield Finding("hugepages", Level.PROBLEM, f"{free} MiB free: an enclave's memory is taken from them", mend)
    else:
        yield ok("hugepages", f"{free} MiB free")
