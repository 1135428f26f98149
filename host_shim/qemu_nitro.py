# SPDX-License-Identifier: MIT
"""The `qemu-nitro` isolate: QEMU's own machine `nitro-enclave`, with its EIF loader, its registers and its NSM.

An independent check of images and registers. Its documents are unsigned, so a verifier refuses them unless it is told
the unsafe value; no participant sends anything there by accident.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from attestation.errors import UsageError
from attestation.measurements import Measurements
from enclave_image.config import cache_dir
from enclave_image.runtime.wire import PORT_API

from .accel import Accel
from .errors import NoNitroMachine
from .hardware import X86_64
from .isolate import BesideUs, Evidence, Running
from .qemu import (
    PROGRAM,
    Machine,
    Qemu,
    SealedFile,
    find_qemu,
    start_machine,
    surroundings,
)

MACHINE = "nitro-enclave"
VARIABLE = "VERACRUZ_QEMU_NITRO"
BUILD = "scripts/build_qemu (six minutes, once), or --qemu PATH of a QEMU 9.2 or later that has it"
ROLE_FORM = re.compile(r"arn:[a-z-]+:iam::\d{12}:role/[\w+=.@/-]{1,512}", re.ASCII)  # no comma: QEMU's separator
INSTANCE_FORM = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)
CAUTION = (
    "QEMU leaves this isolate's evidence unsigned: participants refuse it, `attest verify` too unless it is told the"
    " unsafe value; and this host reads the isolate's memory"
)


@dataclass(frozen=True, slots=True)
class Parent:
    """Of which role and instance the machine says that it is; PCR3 and PCR4 are made of these."""

    role: str | None = None
    instance_id: str | None = None

    def __post_init__(self) -> None:
        for value, form, what in (
            (self.role, ROLE_FORM, "--role: arn:PARTITION:iam::ACCOUNT:role/NAME"),
            (self.instance_id, INSTANCE_FORM, "--instance-id: i- and 8 to 17 hex digits"),
        ):
            if value is not None and not form.fullmatch(value):
                raise UsageError("the parent's identity has another form", expected=what, actual=value)

    @property
    def options(self) -> str:
        """The machine's options, from the first comma on."""
        role = f",parent-role={self.role}" if self.role else ""
        return role + (f",parent-id={self.instance_id}" if self.instance_id else "")


def find_qemu_nitro(named: Path | None = None) -> Qemu:
    """Return the QEMU that has the machine; raise NoNitroMachine with the command that mends it.

    It is the one named, that of the environment, the one that scripts/build_qemu made, or the system's own.
    """
    given = named or (Path(value) if (value := os.environ.get(VARIABLE)) else None)
    if given is not None:
        return _demand_machine(find_qemu(given))
    built = cache_dir() / "qemu-nitro/bin" / PROGRAM
    if built.is_file():
        return _demand_machine(find_qemu(built))
    if shutil.which(PROGRAM) is None:
        raise NoNitroMachine(f"there is no QEMU with the machine {MACHINE}", hint=BUILD)
    return _demand_machine(find_qemu())


def _demand_machine(qemu: Qemu) -> Qemu:
    try:
        done = subprocess.run(
            [qemu.path, "-M", "help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
        names = [line.partition(b" ")[0] for line in done.stdout[: 1 << 20].splitlines()]
    except (OSError, subprocess.TimeoutExpired):
        names = []
    if MACHINE.encode() not in names:
        raise NoNitroMachine(
            f"{qemu.path} lacks the machine {MACHINE}",
            expected="QEMU 9.2 or later, built with libcbor and gnutls", actual=qemu.banner, hint=BUILD,
        )  # fmt: skip
    return qemu


@dataclass(frozen=True, slots=True)
class QemuNitroIsolate(BesideUs):
    """One boot configuration of one image file."""

    qemu: Qemu
    image: SealedFile = field(repr=False)
    measured: Measurements
    machine: Machine
    accelerator: Accel
    parent: Parent = field(default_factory=Parent)
    tentative: bool = False
    kind: str = "qemu-nitro"
    caution: str = CAUTION
    evidence: Evidence = Evidence.UNSIGNED
    signer: bytes | None = None  # QEMU takes the certificate from the file itself
    port: int = PORT_API  # of the guest's; what the relay leads to

    @property
    def accel(self) -> str:
        """What runs the guest's instructions."""
        return self.accelerator.value

    @property
    def measurements(self) -> Measurements | None:
        """PCR0-2 of the image, as this machine computes them too."""
        return self.measured

    def command(self, vsock: int) -> list[str]:
        """Return QEMU's command line; `vsock` is the descriptor that leads to the backend."""
        return [
            str(self.qemu.path),
            "-M", f"{MACHINE},vsock=vsock{self.parent.options}",
            "-m", f"{self.machine.memory_mib}M",
            "-accel", self.accelerator.value,
            "-cpu", "host" if self.accelerator is Accel.KVM else "max",
            "-smp", str(self.machine.cpus),
            *surroundings(vsock),
            "-kernel", self.image.path,
            "-append", os.fsdecode(X86_64.appended).strip(),
        ]  # fmt: skip

    async def start(self, base: Path, log: int) -> Running:
        """Start the backend, then QEMU on it; the copies that QEMU makes of the image's parts lie with the sockets."""
        environment = {"TMPDIR": str(base.parent)}
        return await start_machine(self.command, (self.image,), base, log, port=self.port, environment=environment)
