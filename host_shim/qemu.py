# SPDX-License-Identifier: MIT
"""The `qemu` isolate: an image's kernel and ramdisks on stock QEMU, with our vsock backend beside it.

An image for x86-64 runs on the machine microvm, one for aarch64 on virt.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attestation.measurements import Measurements
from enclave_image.architecture import Architecture
from enclave_image.eif import Eif
from enclave_image.runtime.wire import PORT_API

from .accel import KVM, Accel, KvmVerdict, kvm_opens
from .children import Child, python_command
from .eif_signer import signer_of
from .errors import NoKvm, NoQemu, NotEnoughMemory, QemuTooOld
from .hardware import X86_64, Hardware, find_hardware
from .isolate import BesideUs, Evidence, Running, start_ready

OLDEST = (7, 2)
GUEST_CID = 4
EIF_SHARE = 4  # nitro-cli: an enclave has at least four times its image's size as memory
PROGRAM = X86_64.program
INSTALL = X86_64.install
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"  # a guest's way out of QEMU
CAUTION = "this host reads the isolate's memory: QEMU protects nothing, its evidence is for development"


@dataclass(frozen=True, slots=True)
class Qemu:
    """An installed QEMU that is new enough."""

    path: Path
    version: tuple[int, int]
    banner: str


def find_qemu(named: Path | None = None, hardware: Hardware = X86_64) -> Qemu:
    """Return the machine's QEMU, or the one named; raise NoQemu or QemuTooOld, with the command that mends it."""
    found, install = shutil.which(named or hardware.program), hardware.install
    if found is None:
        raise NoQemu(f"{named} is no program" if named else f"{hardware.program} is not installed", hint=install)
    try:
        done = subprocess.run(
            [found, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoQemu(f"{found} does not run", actual=error, hint=install) from error
    banner = done.stdout[:4096].decode("utf-8", "replace").partition("\n")[0]
    match = re.search(r"version (\d+)\.(\d+)", banner)
    if done.returncode != 0 or match is None:
        raise NoQemu(f"{found} does not tell its version", actual=done.stderr or banner, hint=install)
    version = int(match[1]), int(match[2])
    if version < OLDEST:
        raise QemuTooOld(
            f"{found} is too old", expected=f"{OLDEST[0]}.{OLDEST[1]} or later", actual=banner, hint=install
        )
    return Qemu(Path(found), version, banner)


@dataclass(frozen=True, slots=True)
class Machine:
    """The size of the guest."""

    memory_mib: int = 512
    cpus: int = 1


def check_memory(machine: Machine, image_size: int) -> None:
    """Raise NotEnoughMemory if the image does not fit the guest, or the guest this machine."""
    needed = -(-EIF_SHARE * image_size // 2**20)
    if machine.memory_mib < needed:
        raise NotEnoughMemory(
            "the isolate has too little memory for its image",
            expected=f"at least {needed} MiB (four times the image)",
            actual=f"{machine.memory_mib} MiB",
            hint=f"--memory {needed}",
        )
    available = _available_mib()
    if available is not None and machine.memory_mib > available:
        raise NotEnoughMemory(
            "this machine has too little free memory for the isolate",
            expected=f"{machine.memory_mib} MiB",
            actual=f"{available} MiB available",
            hint=f"stop something else, or give less with --memory (the image needs {needed})",
        )


def _available_mib() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) // 1024 if match else None


class SealedFile:
    """Bytes in memory that nobody can change any more, under a path for QEMU: what was measured is what boots."""

    def __init__(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(self.descriptor), "wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[file.write(view) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    @property
    def path(self) -> str:
        """The path in a process that inherited the descriptor."""
        return f"/proc/self/fd/{self.descriptor}"

    def close(self) -> None:
        """Give the memory back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class BootFiles:
    """An image's parts as QEMU takes them. Use it as a context."""

    def __init__(self, image: Eif) -> None:
        self.measurements = image.measurements
        self.signer = signer_of(image.signature)
        self.hardware = find_hardware(image)
        self.command_line = image.cmdline + self.hardware.appended
        self.kernel = SealedFile("kernel", [image.kernel])
        self.ramdisks = SealedFile("ramdisks", image.ramdisks)

    def __enter__(self) -> BootFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.close()
        self.ramdisks.close()


@dataclass(frozen=True, slots=True)
class QemuIsolate(BesideUs):
    """One boot configuration of one image."""

    qemu: Qemu
    files: BootFiles = field(repr=False)
    machine: Machine
    accelerator: Accel
    tentative: bool = False
    debug_mode: bool = False
    kind: str = "qemu"
    caution: str = CAUTION
    evidence: Evidence = Evidence.DEVELOPMENT
    port: int = PORT_API  # of the guest's; what the relay leads to

    @property
    def accel(self) -> str:
        """What runs the guest's instructions."""
        return self.accelerator.value

    @property
    def measurements(self) -> Measurements | None:
        """PCR0-2 of the image; None in debug mode."""
        return None if self.debug_mode else self.files.measurements

    @property
    def signer(self) -> bytes | None:
        """DER of the certificate that signed the image."""
        return self.files.signer

    def command(self, vsock: int) -> list[str]:
        """Return QEMU's command line; `vsock` is the descriptor that leads to the backend."""
        memory = f"{self.machine.memory_mib}M"
        return [
            str(self.qemu.path),
            "-M", self.files.hardware.machine,
            "-object", f"memory-backend-memfd,id=ram,size={memory},share=on",
            "-m", memory,
            "-accel", self.accelerator.value,
            "-cpu", "host" if self.accelerator is Accel.KVM else self.files.hardware.cpu,
            "-smp", str(self.machine.cpus),
            *surroundings(vsock),
            "-device", "vhost-user-vsock-device,chardev=vsock",
            "-kernel", self.files.kernel.path,
            "-initrd", self.files.ramdisks.path,
            "-append", os.fsdecode(self.files.command_line),
        ]  # fmt: skip

    async def start(self, base: Path, log: int) -> Running:
        """Start the backend, then QEMU on it."""
        return await start_machine(self.command, (self.files.kernel, self.files.ramdisks), base, log, port=self.port)


def surroundings(vsock: int) -> list[str]:
    """Return QEMU's words for what each of our machines has around it: its console here, `vsock`, and no more."""
    return [
        "-nodefaults", "-no-user-config", "-no-reboot", "-nographic",
        "-sandbox", SANDBOX,
        "-serial", "stdio", "-monitor", "none",
        "-chardev", f"socket,id=vsock,fd={vsock}",
    ]  # fmt: skip


async def start_machine(
    command: Callable[[int], Sequence[str]],
    files: Iterable[SealedFile],
    base: Path,
    log: int,
    *,
    port: int,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start the backend, then QEMU on it; `command` is told the descriptor that leads there, and names the files."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        backend = await start_backend(ours.fileno(), base, log, port)
        descriptors = [theirs.fileno(), *(file.descriptor for file in files)]
        try:
            return start_guest(
                command(theirs.fileno()), (backend,), descriptors, target=f"{base}_{port}", environment=environment
            )
        except BaseException:
            await backend.stop()
            raise


async def start_backend(vsock: int, base: Path, log: int, port: int) -> Child:
    """Start our vsock backend on a connected socket; the guest finds us, and we its `port`, at BASE_PORT."""
    return await start_ready(
        python_command(
            "host_shim.vhost_user", "--fd", str(vsock), "--base", str(base),
            "--listen", str(port), "--guest-cid", str(GUEST_CID),
        ),
        name="vsock backend", log=log, pass_fds=[vsock],
    )  # fmt: skip


def start_guest(
    command: Sequence[str],
    helpers: tuple[Child, ...] = (),
    pass_fds: Sequence[int] = (),
    *,
    target: str,
    environment: Mapping[str, str] | None = None,
) -> Running:
    """Start QEMU beside its helpers; raise NoQemu."""
    console, console_end = os.pipe()
    complaints, complaints_end = os.pipe()
    try:
        guest = Child(
            command, name="QEMU", stdout=console_end, stderr=complaints_end, pass_fds=pass_fds, environment=environment
        )
    except OSError as error:
        os.close(console)
        os.close(complaints)
        raise NoQemu(f"{command[0]} does not start: {error.strerror}", hint=INSTALL) from error
    finally:
        os.close(console_end)
        os.close(complaints_end)
    return Running(guest, helpers, console, complaints, target=target)


def choose_accelerators(
    wanted: str,
    verdict: KvmVerdict,
    runs: Callable[[], bool] = lambda: True,
    *,
    architecture: Architecture = Architecture.X86_64,
) -> Sequence[tuple[Accel, bool]]:
    """Return what to try in which order, each with whether it is tentative; `wanted` is auto, kvm or tcg.

    `runs` tells whether KVM runs the smallest guest; it is asked where the answer is not known yet.
    """
    own = platform.machine()
    if architecture != own:
        if wanted == Accel.KVM:
            raise NoKvm("KVM runs the instructions of its own host alone", expected=own, actual=architecture,
                        hint="--accel tcg")  # fmt: skip
        return [(Accel.TCG, False)]
    if wanted == Accel.TCG:
        return [(Accel.TCG, False)]
    if wanted == Accel.KVM:
        if not kvm_opens():
            raise NoKvm(
                f"{KVM} cannot be opened", hint="--accel tcg; or add this user to the group kvm, or load kvm's module"
            )
        if verdict.read() is not True and not runs():
            raise NoKvm("KVM is here, but does not run a guest", hint="--accel tcg; veracruz doctor says what it said")
        return [(Accel.KVM, False)]
    if not kvm_opens() or verdict.read() is False:
        return [(Accel.TCG, False)]
    if verdict.read() is None and not runs():
        verdict.write(False)
        return [(Accel.TCG, False)]
    return [(Accel.KVM, True), (Accel.TCG, False)]
