# SPDX-License-Identifier: MIT
"""From the last lines of a console, and of what ran the isolate, to a cause that its user can act on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from host_shim import diagnosis
from host_shim.diagnosis import count_oom_kills, find_cause, find_killer
from host_shim.errors import (
    GuestOutOfMemory,
    ImageDoesNotBoot,
    IsolateDied,
    IsolateKilled,
    IsolateRefused,
    IsolateSilent,
    LaunchRefused,
)
from host_shim.nitro_told import CODES, tell_code
from host_shim.post_mortem import tell_death, tell_halt, tell_silence

NO_INIT = "[    0.4] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel."
CONSOLE: list[tuple[list[str], str, type[IsolateDied]]] = [
    (
        ["Initramfs unpacking failed: invalid magic at start of compressed archive", NO_INIT],
        "did not unpack",
        ImageDoesNotBoot,
    ),
    (
        ["[0.1] rootfs image is not initramfs (no cpio magic); looks like an initrd", NO_INIT],
        "did not unpack",
        ImageDoesNotBoot,
    ),
    (["Initramfs unpacking failed: write error", NO_INIT], "did not fit into its memory", GuestOutOfMemory),
    (["Initramfs unpacking failed: compression method zstd not configured"], "compressed by zstd", ImageDoesNotBoot),
    ([NO_INIT], "no /init that its kernel could start", ImageDoesNotBoot),
    (["Failed to execute /init (error -8)", NO_INIT], "no program for this machine", ImageDoesNotBoot),
    (["Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"], "no /init", ImageDoesNotBoot),
    (
        ["Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b"],
        "killed by SIGSEGV",
        ImageDoesNotBoot,
    ),
    (["Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"], "exit code 1", ImageDoesNotBoot),
    (
        ["Out of memory: Killed process 88 (python3) total-vm:1kB", NO_INIT],
        "ran out of memory inside",
        GuestOutOfMemory,
    ),
    (["Kernel panic - not syncing: System is deadlocked on memory"], "ran out of memory inside", GuestOutOfMemory),
    (
        ["init: halt: the command line is not the image's"],
        "refused to go on: the command line is not",
        ImageDoesNotBoot,
    ),
    (["init: halt: no runtime"], "Python is missing", ImageDoesNotBoot),
    (
        ["Kernel panic - not syncing: Fatal exception in interrupt"],
        "panicked: Fatal exception in interrupt",
        IsolateDied,
    ),
]
COMPLAINTS: list[tuple[str, str, str, type[IsolateDied]]] = [
    ("qemu: linux kernel too old to load a ram disk", "no Linux kernel for x86-64", "image describe", ImageDoesNotBoot),
    (
        "qemu: cannot set up guest memory 'ram': Cannot allocate memory",
        "did not give QEMU the memory",
        "--memory",
        IsolateDied,
    ),
    ("Could not access KVM kernel module: Permission denied", "may not open /dev/kvm", "usermod -aG kvm", IsolateDied),
    ("Could not access KVM kernel module: No such file or directory", "has no KVM", "modprobe", IsolateDied),
    ("qemu: error: failed to set MSR 0x10a to 0x0", "KVM does not work", "--accel tcg", IsolateDied),
    ("qemu: -accel tcg: invalid accelerator tcg", "has no TCG", "qemu-system-common", IsolateDied),
    ("qemu: unsupported machine type", "lacks the machine", "veracruz doctor", IsolateDied),
    ("CRC mismatch", "found the image damaged", "image describe", ImageDoesNotBoot),
    ("[ E22 ] Insufficient CPUs available in the pool.", "fewer CPUs are set aside", "cpu_count", LaunchRefused),
    ("[ E36 ] Enclave boot failure.", "did not greet on port 9000", "--debug-mode", IsolateDied),
    ("[ E59 ] EIF signature checker error.", "certificate does not hold", "image describe", LaunchRefused),
    (
        "    Failed to open device file: Os { code: 2, kind: NotFound, message: x }",
        "no Nitro",
        "Enabled",
        LaunchRefused,
    ),
    (
        "    Failed to open device file: Os { code: 13, kind: PermissionDenied }",
        "may not open",
        "-aG ne",
        LaunchRefused,
    ),
    ("[ E99 ] No such error code", "an error that we do not know", "explain --error-code E99", LaunchRefused),
]


@pytest.mark.parametrize(("lines", "cause", "kind"), CONSOLE)
def test_the_console_tells_what_brought_the_rest_about(lines: list[str], cause: str, kind: type[IsolateDied]) -> None:
    found = find_cause(["[    0.0] Linux version 6.12", *lines, "reboot: Restarting system"])
    assert found is not None
    assert cause in found.cause
    assert found.kind is kind


@pytest.mark.parametrize(("line", "cause", "hint", "kind"), COMPLAINTS)
def test_what_ran_it_knows_better(line: str, cause: str, hint: str, kind: type[IsolateDied]) -> None:
    found = find_cause([NO_INIT], ["some talk", line])
    assert found is not None
    assert cause in found.cause
    assert hint in (found.hint or "")
    assert found.kind is kind


def test_of_nitro_clis_errors_the_first_is_the_cause() -> None:
    found = find_cause((), ["Start allocating memory...", "[ E27 ] Insufficient memory", "", "[ E39 ] Enclave process"])
    assert found is not None
    assert "(nitro-cli's E27)" in found.cause
    assert "memory_mib" in (found.hint or "")


def test_every_code_says_what_to_do() -> None:
    for code in CODES:
        cause, hint = tell_code(code)
        assert cause
        assert hint
        assert cause[0].islower()


def test_ordinary_lines_tell_nothing() -> None:
    assert find_cause(["Linux version 6.12", "init: ready", "Run /init as init process"], ["warning: x"]) is None
    assert find_cause([]) is None


def test_a_guests_words_reach_the_error_escaped_and_bounded() -> None:
    found = find_cause(["Kernel panic - not syncing: \x1b[2J" + "A" * 5000])
    assert found is not None
    assert "\x1b" not in found.cause
    assert len(found.cause) < 300


def test_who_killed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vmstat = tmp_path / "vmstat"
    monkeypatch.setattr(diagnosis, "VMSTAT", vmstat)
    assert count_oom_kills() is None
    vmstat.write_text("nr_free_pages 1\noom_kill 3\nx 1\n")
    assert count_oom_kills() == 3
    assert find_killer(-signal.SIGTERM, 3) is None
    assert find_killer(1, 3) is None
    by_hand, by_kernel = find_killer(-signal.SIGKILL, 3), find_killer(-signal.SIGKILL, 2)
    assert by_hand is not None
    assert by_kernel is not None
    assert "somebody" in by_hand.cause
    assert "OOM killer" in by_kernel.cause
    assert "dmesg" in (by_kernel.hint or "")
    unknown = find_killer(-signal.SIGKILL, None)
    assert unknown is not None
    assert "somebody" in unknown.cause


def test_the_error_leads_with_the_cause_and_ends_with_the_console(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text(f"Linux\nInitramfs unpacking failed: junk\n{NO_INIT}\n")
    error = tell_death(
        "one", 0, process="QEMU", awaited="first sign of life", console=console, complaints=["talk"], kills_before=None
    )
    first, *rest = str(error).splitlines()
    assert first == (
        "the isolate died before its first sign of life: a ramdisk of the image did not unpack;"
        " QEMU ended with exit code 0"
    )
    assert "  QEMU: talk" in rest
    assert rest[-1] == f"  console: {NO_INIT}"
    assert isinstance(error, ImageDoesNotBoot)
    assert error.repeats


def test_a_kernel_that_prints_nothing_is_told(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_bytes(b"")
    error = tell_silence("one", awaited="first sign of life", seconds=9, console=console, complaints=[])
    assert "no first sign of life within 9 s: its kernel printed nothing" in str(error)
    assert "console=ttyS0" in (error.hint or "")
    assert isinstance(error, IsolateSilent)
    console.write_text("Linux version 6.12\n")
    error = tell_silence("one", awaited="attestor", seconds=9, console=console, complaints=[])
    assert "printed nothing" not in str(error)
    assert "--boot-limit" in (error.hint or "")


def test_a_halt_that_would_repeat_is_of_its_own_kind(tmp_path: Path) -> None:
    from enclave_image.runtime.wire import Event

    kinds = {event: type(tell_halt(event, tmp_path / "none")) for event in Event if event.halts}
    assert kinds[Event.HALT_POLICY] is IsolateRefused
    assert kinds[Event.HALT_IMAGE] is IsolateRefused
    assert kinds[Event.HALT_CLOCK] is not IsolateRefused


def test_killed_from_outside_may_be_tried_again() -> None:
    assert not IsolateKilled.repeats
    assert not IsolateSilent.repeats
    assert GuestOutOfMemory.repeats
