# SPDX-License-Identifier: MIT
"""Why an isolate did not come up or went: read from its last console lines and from what ran it, by tables.

A cause is what its user can act on; the lines themselves are shown below it. First match wins, so what comes first in
a table is what brings the others about: a ramdisk that did not unpack ends in "No working init found".
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import escape

from . import nitro_told
from .errors import GuestOutOfMemory, ImageDoesNotBoot, IsolateDied, IsolateKilled, LaunchRefused

VMSTAT = Path("/proc/vmstat")
EXAMINED = 400  # lines of the console
MORE_MEMORY = "give it more with --memory MIB"
LOOK_AT_IMAGE = "veracruz image describe IMAGE.eif; if the file is damaged, build or fetch it again"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause in words, the next command, and the kind of error that it is."""

    cause: str
    hint: str | None = None
    kind: type[IsolateDied] = IsolateDied


Words = Callable[[re.Match[str]], Diagnosis]


def _plain(cause: str, hint: str | None, kind: type[IsolateDied] = IsolateDied) -> Words:
    return lambda match: Diagnosis(cause, hint, kind)


def _init_died(match: re.Match[str]) -> Diagnosis:
    """Linux tells init's end as wait(2) does: low 7 bits the signal, the next byte the exit code."""
    status = int(match[1], 16)
    number = status & 0x7F
    how = f"killed by {signal_name(number)}" if number else f"exit code {status >> 8 & 0xFF}"
    return Diagnosis(f"the image's /init died ({how})", None, ImageDoesNotBoot)


def _panic(match: re.Match[str]) -> Diagnosis:
    return Diagnosis(f"its kernel panicked: {escape(match[1].strip())}")


CONSOLE: tuple[tuple[re.Pattern[str], Words], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"[Ii]nitramfs unpacking failed: write error",
            _plain("its ramdisks did not fit into its memory when they were unpacked", MORE_MEMORY, GuestOutOfMemory),
        ),
        (
            r"compression method (\w+) not configured",
            lambda match: Diagnosis(
                f"its ramdisk is compressed by {match[1]}, which its kernel cannot unpack",
                "build the image with a kernel that can, or another compression", ImageDoesNotBoot,
            ),
        ),
        (
            r"[Ii]nitramfs unpacking failed|rootfs image is not initramfs|incomplete write \(",
            _plain("a ramdisk of the image did not unpack", LOOK_AT_IMAGE, ImageDoesNotBoot),
        ),
        (
            r"System is deadlocked on memory|Out of memory: Kill|Out of memory and no killable|invoked oom-killer",
            _plain("it ran out of memory inside", MORE_MEMORY, GuestOutOfMemory),
        ),
        (
            r"(?:Failed to execute|Starting init:) /init.*error -8",
            _plain(
                "the image's /init is no program for this machine (another architecture, or no program at all)",
                LOOK_AT_IMAGE, ImageDoesNotBoot,
            ),
        ),
        (
            r"No working init found|Requested init \S+ failed|VFS: Unable to mount root fs|Cannot open root device",
            _plain("the image has no /init that its kernel could start", LOOK_AT_IMAGE, ImageDoesNotBoot),
        ),
        (
            r"init: halt: no runtime",
            _plain("the image's runtime cannot be started: Python is missing in it", LOOK_AT_IMAGE, ImageDoesNotBoot),
        ),
        (
            r"init: halt: (.+)",
            lambda match: Diagnosis(f"its /init refused to go on: {escape(match[1].strip())}", None, ImageDoesNotBoot),
        ),
        (r"Attempted to kill init! exitcode=0x([0-9a-fA-F]{1,8})", _init_died),
        (r"Kernel panic - not syncing: (.+)", _panic),
    )
)  # fmt: skip


def _launch_refused(code: str, cause: str, hint: str) -> Diagnosis:
    kind = IsolateDied if code in nitro_told.PASSES else LaunchRefused
    return Diagnosis(f"{cause} (nitro-cli's {code})" if code else cause, hint, kind)


def _nitro_code(match: re.Match[str]) -> Diagnosis:
    return _launch_refused(match[1], *nitro_told.tell_code(match[1]))


# What runs the isolate says on stderr before it ends.
COMPLAINTS: tuple[tuple[re.Pattern[str], Words], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"Failed to open device file: .*NotFound|Failed to open device file: .*code: (?:2|6|19)\b",
            lambda match: _launch_refused("E19", *nitro_told.NO_DEVICE),
        ),
        (
            r"Failed to open device file: .*(?:PermissionDenied|code: 13)",
            lambda match: _launch_refused("E19", *nitro_told.NO_PERMISSION),
        ),
        (nitro_told.CODE.pattern, _nitro_code),
        (r"/dev/nitro_enclaves.*No such", lambda match: _launch_refused("", *nitro_told.NO_DEVICE)),
        (r"/dev/nitro_enclaves.*[Pp]ermission", lambda match: _launch_refused("", *nitro_told.NO_PERMISSION)),
        (
            r"linux kernel too old to load|invalid kernel header|Error loading uncompressed kernel"
            r"|could not load kernel",
            _plain("the image's kernel is no Linux kernel for x86-64", LOOK_AT_IMAGE, ImageDoesNotBoot),
        ),
        (
            r"initrd is too large|initrd.*too large|kernel.*too large",
            _plain("its ramdisks do not fit into its memory", MORE_MEMORY, GuestOutOfMemory),
        ),
        (
            r"cannot set up guest memory|Cannot allocate memory|unable to map backing store|mmap.*failed",
            _plain(
                "this machine did not give QEMU the memory",
                "free memory (free -m; ulimit -v), or give less with --memory MIB",
            ),
        ),
        (
            r"Could not access KVM kernel module: Permission denied",
            _plain("this user may not open /dev/kvm", "sudo usermod -aG kvm $USER, then log in anew; or --accel tcg"),
        ),
        (
            r"Could not access KVM kernel module",
            _plain("this machine has no KVM", "sudo modprobe kvm_intel (or kvm_amd); or --accel tcg"),
        ),
        (r"KVM internal error|kvm run failed|failed to set MSR|failed to initialize [Kk][Vv][Mm]",
            _plain("KVM does not work on this machine", "--accel tcg")),
        (
            r"invalid accelerator tcg|Type 'tcg-accel'.*not",
            _plain("this QEMU has no TCG", "apt-get install --no-install-recommends qemu-system-common"),
        ),
        (
            r"unsupported machine type",
            _plain("this QEMU lacks the machine that the isolate needs", "veracruz doctor tells what QEMU has"),
        ),
        (
            r"dynamic translator buffer",
            _plain(
                "QEMU was not given memory that may hold code (a limit, or a security module's rule)",
                "look at ulimit -v and at the audit log of SELinux or AppArmor",
            ),
        ),
        (
            r"[Nn]o space left on device",
            _plain("a file system is full", "df -h $TMPDIR /dev/shm, and free some space"),
        ),
        (
            r"CRC mismatch",
            _plain("QEMU's own reader found the image damaged", LOOK_AT_IMAGE, ImageDoesNotBoot),
        ),
    )
)  # fmt: skip

NOTHING_PRINTED = Diagnosis(
    "its kernel printed nothing: it is none for this machine, has no serial console, or never ran",
    "veracruz image describe IMAGE.eif (its command line needs console=ttyS0); --accel tcg rules KVM out",
)


def find_cause(console: Sequence[str], complaints: Sequence[str] = ()) -> Diagnosis | None:
    """Return the cause that the last lines tell, none if they tell none. What ran the guest knows better than it."""
    for table, lines in ((COMPLAINTS, complaints), (CONSOLE, console[-EXAMINED:])):
        for pattern, words in table:
            for line in lines:
                if (match := pattern.search(line)) is not None:
                    return words(match)
    return None


def find_killer(code: int, kills_before: int | None) -> Diagnosis | None:
    """Return who killed a process that ended by SIGKILL; `kills_before` is `count_oom_kills` at its start."""
    if code != -signal.SIGKILL:
        return None
    now = count_oom_kills()
    if kills_before is not None and now is not None and now > kills_before:
        return Diagnosis(
            "this machine ran out of memory, and the kernel's OOM killer ended a process meanwhile",
            "sudo dmesg | grep -i 'out of memory'; then stop something else, or give less with --memory MIB",
            IsolateKilled,
        )
    return Diagnosis("somebody on this machine killed it (SIGKILL)", None, IsolateKilled)


def count_oom_kills() -> int | None:
    """Return how many processes the kernel's OOM killer has ended since this machine started; None if untold."""
    try:
        match = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text("ascii", "replace"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None


def signal_name(number: int) -> str:
    """Return a signal's name, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
