# SPDX-License-Identifier: MIT
"""The `nitro` isolate: an enclave of AWS Nitro, kept by nitro-cli; or by QEMU 11's accelerator where there is none.

The enclave is nitro-cli's: it lives on when our supervisor dies, and is found again by the name that it was given.
Its parent's ports 9001 and 9003 are ours, on the kernel's vsock; nitro-cli answers 9000 itself (run-enclave returns
only then), and the module inside is the real one, so that 9002 is not served.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from attestation.measurements import Measurements
from enclave_image.runtime.wire import PORT_API

from .children import Child, python_command
from .errors import NoNitro, NotEnoughMemory
from .isolate import Evidence, Running
from .nitro_cli import TELL_ALL, run_command
from .nitro_guest import NitroGuest
from .parent_seat import Seat, VsockSeat
from .qemu import EIF_SHARE, PROGRAM, Qemu, find_qemu, start_guest
from .record import Outside

LEAST_MEMORY = 64  # MiB
FIRST_CID = 1024  # of those that we choose
CONSOLE_PORT = 10_000  # added to the CID, at the hypervisor's CID 0; in debug mode only
ACCEL_FROM = (11, 0)  # QEMU's `-M nitro -accel nitro`
CAUTION = (
    "this start of a real enclave was only ever tested against a simulated nitro-cli: check the evidence's PCRs with"
    " `veracruz attest verify`"
)
DEBUG_CAUTION = "debug mode: the enclave's PCR0-2 are zero and this host reads its console; participants refuse it"


class NitroHost(Protocol):
    """How this machine reaches an enclave; tests put Unix sockets in its place."""

    def seat(self, name: str, cid: int) -> Seat:
        """Return where the enclave finds its parent."""

    def target(self, name: str, cid: int, port: int) -> str:
        """Return where the relay reaches a port of the enclave."""

    def console(self, name: str, cid: int) -> Sequence[str]:
        """Return the arguments of the console's reader."""


class VsockHost:
    """The kernel's vsock."""

    def seat(self, name: str, cid: int) -> Seat:
        """Return the parent's ports on vsock."""
        return VsockSeat(cid)

    def target(self, name: str, cid: int, port: int) -> str:
        """Return the port's address."""
        return f"vsock:{cid}:{port}"

    def console(self, name: str, cid: int) -> Sequence[str]:
        """Return the hypervisor's port for this enclave."""
        return ("--vsock", f"0:{CONSOLE_PORT + cid}")


@dataclass(frozen=True, slots=True)
class Launcher:
    """What starts enclaves here: nitro-cli, or a QEMU that can."""

    nitro_cli: str | None = None
    qemu: Qemu | None = None


def find_launcher(nitro_cli: Path | None = None, qemu: Path | None = None) -> Launcher:
    """Return what starts enclaves; raise NoNitro with what mends it. A QEMU is taken if named, or without nitro-cli."""
    found = None if qemu is not None and nitro_cli is None else shutil.which(nitro_cli or "nitro-cli")
    if found is not None:
        return Launcher(nitro_cli=str(Path(found).absolute()))
    install = "sudo dnf install aws-nitro-enclaves-cli; or --nitro-cli PATH, or QEMU 11 with its nitro accelerator"
    if nitro_cli is not None:
        raise NoNitro(f"{nitro_cli} is no program", hint=install)
    if qemu is None and shutil.which(PROGRAM) is None:
        raise NoNitro("nitro-cli is not installed", hint=install)
    candidate = find_qemu(qemu)
    if candidate.version < ACCEL_FROM:
        raise NoNitro(
            "nitro-cli is not installed, and this QEMU has no nitro accelerator",
            expected=f"QEMU {ACCEL_FROM[0]} or later", actual=candidate.banner, hint=install,
        )  # fmt: skip
    return Launcher(qemu=candidate)


def check_nitro_memory(memory_mib: int | None, image_size: int) -> int:
    """Return the least memory in MiB for an image; raise NotEnoughMemory if less was asked, before nitro-cli does."""
    needed = max(
        LEAST_MEMORY, EIF_SHARE * -(-image_size // 2**20)
    )  # as nitro-cli rounds it: whole MiB, then times four
    if memory_mib is not None and memory_mib < needed:
        raise NotEnoughMemory(
            "the enclave has too little memory for its image",
            expected=f"at least {needed} MiB (four times the image)", actual=f"{memory_mib} MiB",
            hint=f"--memory {needed}",
        )  # fmt: skip
    return needed


def cid_of(name: str) -> int:
    """Return the CID of an enclave that we name: known before it starts, so that no other is taken for it."""
    return FIRST_CID + int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % ((1 << 31) - FIRST_CID)


@dataclass(frozen=True, slots=True)
class NitroIsolate:
    """One enclave's configuration; each start is another enclave, with a name and a CID of its own."""

    launcher: Launcher
    image: Path
    measured: Measurements = field(repr=False)
    signer: bytes | None
    memory_mib: int
    cpus: int
    cid: int | None = None
    debug_mode: bool = False
    port: int = PORT_API  # of the enclave's; what the relay leads to
    host: NitroHost = field(default_factory=VsockHost)
    kind: str = "nitro"
    accel: str | None = None
    tentative: bool = False
    adopted: bool = False
    evidence: Evidence = Evidence.AWS

    @property
    def caution(self) -> str:
        """What its user must know."""
        return f"{DEBUG_CAUTION}; {CAUTION}" if self.debug_mode else CAUTION

    @property
    def measurements(self) -> Measurements | None:
        """PCR0-2 of the image; None in debug mode."""
        return None if self.debug_mode else self.measured

    def _names(self, base: Path) -> tuple[str, int]:
        name = base.parent.name  # of the sockets' directory: new in each boot, and in state.json before the start
        return name, self.cid or cid_of(name)

    def seat(self, base: Path) -> Seat:
        """Return the parent's ports for this enclave alone."""
        return self.host.seat(*self._names(base))

    def outside(self, base: Path) -> Outside | None:
        """Return under which name nitro-cli will know it; QEMU's dies with us."""
        name, cid = self._names(base)
        return Outside(self.launcher.nitro_cli, name, cid) if self.launcher.nitro_cli else None

    async def start(self, base: Path, log: int) -> Running:
        """Start it through nitro-cli, or as a child of QEMU's."""
        name, cid = self._names(base)
        if self.launcher.nitro_cli is not None:
            command = run_command(
                self.launcher.nitro_cli, image=str(self.image), cpus=self.cpus, memory_mib=self.memory_mib,
                cid=cid, name=name, debug_mode=self.debug_mode,
            )  # fmt: skip
            return start_by_nitro_cli(self, command, name, cid, log)
        return start_guest(self.qemu_command(cid), target=self.host.target(name, cid, self.port))

    def qemu_command(self, cid: int) -> list[str]:
        """Return QEMU's command line: the whole file is the kernel, and the console is there in debug mode."""
        assert self.launcher.qemu is not None
        debug = "on" if self.debug_mode else "off"
        return [
            str(self.launcher.qemu.path), "-M", "nitro", "-accel", f"nitro,debug-mode={debug},enclave-cid={cid}",
            "-m", f"{self.memory_mib}M", "-smp", str(self.cpus), "-nographic", "-no-user-config",
            "-kernel", str(self.image),
        ]  # fmt: skip


def start_by_nitro_cli(isolate: NitroIsolate, command: Sequence[str], name: str, cid: int, log: int) -> Running:
    """Run nitro-cli, and beside it the console's reader, which needs no heartbeat to begin."""
    tool = isolate.launcher.nitro_cli
    assert tool is not None
    answer, answer_end = os.pipe()
    complaints, complaints_end = os.pipe()
    try:
        starter = Child(command, name="nitro-cli", stdout=answer_end, stderr=complaints_end, environment=TELL_ALL)
    except OSError as error:
        for descriptor in (answer, complaints, complaints_end):
            os.close(descriptor)
        raise NoNitro(f"{tool} does not start: {error.strerror}") from error
    finally:
        os.close(answer_end)
    guest = NitroGuest(tool, name, complaints=complaints_end, starter=starter, answer=answer)
    console, extras = read_console(isolate.host, name, cid, log, debug_mode=isolate.debug_mode)
    return Running(guest, (), console, complaints, extras, isolate.host.target(name, cid, isolate.port), guest.started)


def read_console(host: NitroHost, name: str, cid: int, log: int, *, debug_mode: bool) -> tuple[int, tuple[Child, ...]]:
    """Return a descriptor with the console's bytes, and what reads them; outside debug mode it is empty."""
    console, console_end = os.pipe()
    try:
        if not debug_mode:
            return console, ()
        words = python_command("host_shim.console_reader", *host.console(name, cid))
        return console, (Child(words, name="console reader", stdout=console_end, stderr=log),)
    finally:
        os.close(console_end)
