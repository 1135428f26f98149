# SPDX-License-Identifier: MIT
"""QEMU's machine `nitro-enclave`: its own reader of EIFs, its own registers, its own NSM; a second opinion on ours.

`scripts/build_qemu` builds it; VERACRUZ_QEMU_NITRO names another. Where there is none the tests that need it are
skipped and say so, unless VERACRUZ_DEMAND_QEMU_NITRO is set, as in continuous integration.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave_image.config import cache_dir
from host_shim.hardware import X86_64
from host_shim.qemu import PROGRAM

MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"
ROLE, PARENT = "arn:aws:iam::123456789012:role/parent", "i-0123456789abcdef0"  # PCR3 and PCR4 are made of these


def find_nitro_qemu() -> Path:
    """Return the program; skip the test, or fail it, where there is none."""
    named = os.environ.get("VERACRUZ_QEMU_NITRO")
    program = Path(named) if named else cache_dir() / "qemu-nitro/bin" / PROGRAM
    if program.is_file():
        return program
    reason = f"no QEMU with the machine nitro-enclave at {program}: scripts/build_qemu builds it in six minutes"
    if named or os.environ.get("VERACRUZ_DEMAND_QEMU_NITRO"):
        pytest.fail(reason)
    pytest.skip(reason)


def on_nitro_machine(program: Path, image: Path, words: str = "") -> Callable[[list[str]], list[str]]:
    """Return what turns the command of our `qemu` isolate into one that boots the file `image` on the machine.

    The guest has the same CPU, console, monitor and vsock backend; kernel, command line, ramdisks and registers are
    what QEMU itself makes of the file. `words` are appended to the command line, as a launcher may.
    """

    def change(command: list[str]) -> list[str]:
        flags = [word for word in command if word in ("-nodefaults", "-no-user-config", "-no-reboot", "-nographic")]
        options = _options(command, set(flags))
        for gone in ("-object", "-device", "-initrd"):  # the machine brings its own memory and devices
            del options[gone]
        machine = f"nitro-enclave,vsock=vsock,id={MODULE_ID},parent-role={ROLE},parent-id={PARENT}"
        options["-M"] = machine
        options["-kernel"] = str(image)
        options["-append"] = os.fsdecode(X86_64.appended).strip() + words
        return [str(program), *flags, *(word for pair in options.items() for word in pair)]

    return change


def _options(command: list[str], flags: set[str]) -> dict[str, str]:
    words = iter(command[1:])
    return {word: next(words) for word in words if word not in flags}
