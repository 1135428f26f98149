# SPDX-License-Identifier: MIT
"""Finds out in a fraction of a second whether an accelerator runs a guest, by running the smallest one there is."""

from __future__ import annotations

import os
import selectors
import subprocess
import time

from enclave_image.architecture import Architecture

from .accel import Accel
from .probe_guest import WORD, probe_guest
from .qemu import Qemu, SealedFile

PATIENCE = 10.0  # seconds; the guest takes 0.2 where it runs, also under TCG
MAX_TALK = 16 * 1024  # bytes of what QEMU and the guest say
GIVES_UP = (b"internal error", b"emulation failure")  # QEMU's words; it stops the guest then, and waits for ever
MACHINES = {Architecture.X86_64: "microvm,acpi=off,rtc=on", Architecture.AARCH64: "virt,gic-version=3"}


def try_accelerator(
    qemu: Qemu, accel: Accel, patience: float = PATIENCE, *, architecture: Architecture = Architecture.X86_64
) -> str | None:
    """Run the probe guest of QEMU's architecture; return None if it said its word, else what happened, on one line."""
    image = SealedFile("probe", [probe_guest(architecture)])
    try:
        command = [
            str(qemu.path), "-M", MACHINES[architecture], "-accel", accel.value,
            "-cpu", "host" if accel is Accel.KVM else "max", "-m", "64M", "-nodefaults", "-no-user-config",
            "-no-reboot", "-nographic", "-serial", "stdio", "-monitor", "none", "-kernel", image.path,
        ]  # fmt: skip
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                pass_fds=[image.descriptor],
            )  # fmt: skip
        except OSError as error:
            return f"{qemu.path} does not start: {error.strerror}"
        with process:
            try:
                said, ended = _listen(process, patience)
            finally:
                process.kill()
    finally:
        image.close()
    if WORD in said:
        return None
    first = said.decode("utf-8", "replace").strip().partition("\n")[0][:200]
    if first:
        return first
    return "QEMU ended without a word" if ended else f"the guest said nothing in {patience:.0f} s"


def _listen(process: subprocess.Popen[bytes], patience: float) -> tuple[bytes, bool]:
    """Return what was said until the word came, it ended, gave up, or patience ran out; and whether it ended."""
    assert process.stdout is not None
    source = process.stdout.fileno()
    deadline = time.monotonic() + patience
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while WORD not in said and len(said) < MAX_TALK and not any(word in said for word in GIVES_UP):
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return said, False
            if not (data := os.read(source, 4096)):
                return said, True
            said += data
    return said, False
