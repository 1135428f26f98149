# SPDX-License-Identifier: MIT
"""What QEMU has to pretend to be for an image: by the architecture of its kernel."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from enclave_image.architecture import Architecture, find_architecture
from enclave_image.eif import Eif

from .errors import ImageOfAnotherMachine

PANICS_BRIEFLY = b" panic=1"  # seconds; an image's own value may be far longer, and its user waits for nothing
ENDS_FOR_SURE = b" reboot=t"  # microvm sometimes survives `reboot=k`, never a triple fault (seen with QEMU 7.2 and 10)
# Linux counts the timer's ticks for a moment, and panics where TCG on a busy machine delivers too few (of ten boots at
# once on two cores, one).
TAKES_LATE_TICKS = b" no_timer_check"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What QEMU pretends to be for one architecture."""

    architecture: Architecture
    program: str
    package: str  # Debian's
    machine: str
    cpu: str  # under TCG
    appended: bytes  # to the image's command line; nothing measures it

    @property
    def install(self) -> str:
        """The command that brings the program."""
        return f"apt-get install --no-install-recommends {self.package}"


X86_64 = Hardware(
    Architecture.X86_64,
    "qemu-system-x86_64",  # never qemu-system-x86_64-microvm: it has no TCG
    "qemu-system-x86",
    "microvm,acpi=off,rtc=on,memory-backend=ram",  # without the clock a guest starts in 1970
    "max",
    PANICS_BRIEFLY + ENDS_FOR_SURE + TAKES_LATE_TICKS,
)
AARCH64 = Hardware(
    Architecture.AARCH64,
    "qemu-system-aarch64",
    "qemu-system-arm",
    "virt,gic-version=3,memory-backend=ram",
    "max,pauth-impdef=on",  # the cipher that the architecture names for return addresses is slow to emulate
    PANICS_BRIEFLY + b" console=ttyAMA0",  # virt has a PL011, no 8250
)


def find_hardware(image: Eif) -> Hardware:
    """Return what an image's kernel is for; x86-64 where no form is known, whose boot then tells."""
    return AARCH64 if find_architecture(image.kernel) is Architecture.AARCH64 else X86_64


def own_hardware() -> Hardware:
    """Return what KVM can run on this machine; x86-64 on one of neither architecture, which has TCG alone."""
    return AARCH64 if platform.machine() == Architecture.AARCH64 else X86_64


def check_kernel(image: Eif) -> None:
    """Raise ImageOfAnotherMachine for a kernel that a machine for x86-64 alone would start in vain."""
    if find_hardware(image) is not X86_64:
        raise ImageOfAnotherMachine(
            "the image is for another architecture", expected="a kernel for x86-64", actual="one for aarch64",
            hint="run it with --isolate qemu, or build it for x86-64: veracruz image build",
        )  # fmt: skip
