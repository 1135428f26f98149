# SPDX-License-Identifier: MIT
"""The doctor's look at what runs guests and builds images: QEMU, its accelerators, the build's sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import enclave_image.sandbox
from attestation.errors import VeracruzError
from enclave_image.architecture import Architecture

from . import accel
from .accel import Accel, kvm_opens
from .accel_probe import try_accelerator
from .doctor import Finding, Level, ok
from .hardware import own_hardware
from .qemu import Qemu, find_qemu
from .qemu_nitro import find_qemu_nitro
from .vhost_user.host import HOST

HELP_LIMIT = 256 * 1024  # bytes of a QEMU's help that are looked at
HELP_TIME = 20.0  # seconds


def examine_qemu() -> Iterator[Finding]:
    """QEMU: there, new enough, with the machine and the device that isolates need, and with what it runs guests."""
    if os.uname().machine != HOST:
        what = (
            "the isolates qemu and qemu-nitro run on x86-64 hosts alone: our vsock backend relies on their memory order"
        )
        yield Finding("vsock backend", Level.NOTE, what, "use `--isolate nitro`, or `process` to try things out")
    hardware = own_hardware()
    machine, architecture = hardware.machine.partition(",")[0], hardware.architecture
    try:
        qemu = find_qemu(None, hardware)
    except VeracruzError as error:
        yield Finding("qemu", Level.PROBLEM, str(error), error.hint)
        return
    yield ok("qemu", f"{qemu.banner} at {qemu.path}")
    install = f"install the distribution's whole QEMU for {architecture}: apt-get install {hardware.package}"
    if machine not in _help(qemu, "-M"):
        yield Finding(machine, Level.PROBLEM, f"this QEMU has no machine `{machine}`", install)
        return
    if "vhost-user-vsock-device" not in _help(qemu, "-device"):
        yield Finding("vsock device", Level.PROBLEM, "this QEMU has no `vhost-user-vsock-device`", install)
    yield _examine_nitro_machine()
    if (wrong := try_accelerator(qemu, Accel.TCG, architecture=architecture)) is not None:
        yield Finding("tcg", Level.PROBLEM, f"a guest does not run: {wrong}", install)
    else:
        yield ok("tcg", "a guest runs")
    yield _examine_kvm(qemu, architecture)


def _examine_nitro_machine() -> Finding:
    try:
        found = find_qemu_nitro()
    except VeracruzError as error:
        return Finding("nitro-enclave", Level.NOTE, str(error), f"only `--isolate qemu-nitro` needs it: {error.hint}")
    return ok("nitro-enclave", f"{found.banner} at {found.path}")


def _examine_kvm(qemu: Qemu, architecture: Architecture) -> Finding:
    slower = "isolates run under TCG, several times slower"
    if not accel.KVM.exists():
        return Finding("kvm", Level.NOTE, f"no {accel.KVM}: {slower}", "enable virtualisation, or load kvm's module")
    if not kvm_opens():
        mend = "add this user to the group kvm, and log in again"
        return Finding("kvm", Level.NOTE, f"{accel.KVM} cannot be opened by this user: {slower}", mend)
    if (wrong := try_accelerator(qemu, Accel.KVM, architecture=architecture)) is not None:
        mend = "nothing to do here: nested virtualisation of the host below does not carry guests"
        return Finding("kvm", Level.NOTE, f"opens, but a guest does not run ({wrong}): {slower}", mend)
    return ok("kvm", "a guest runs")


def _help(qemu: Qemu, option: str) -> str:
    """Return what QEMU says of an option; nothing where it does not answer."""
    machine = [] if option == "-M" else ["-M", "none"]
    try:
        done = subprocess.run(
            [str(qemu.path), *machine, option, "help"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=HELP_TIME, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:HELP_LIMIT].decode("utf-8", "replace")


def examine_sandbox() -> Iterator[Finding]:
    """Whether `image build` can shut a compiler in: as a user by namespaces, as root by chroot too."""
    with tempfile.TemporaryDirectory(prefix="veracruz-doctor-") as name:
        root = Path(name)
        (root / "dev").mkdir()
        command = [sys.executable, "-I", str(enclave_image.sandbox.__file__), str(root), "--", "/nothing"]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Finding("sandbox", Level.NOTE, f"cannot be tried: {error}", None)
            return
    if done.returncode == enclave_image.sandbox.EXIT_NO_SANDBOX:
        mend = (
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu) or kernel.unprivileged_userns_clone=1; "
            "or build as root"
        )
        yield Finding("sandbox", Level.NOTE, "no user namespaces for this user: it cannot build images", mend)
    else:
        yield ok("sandbox", f"a build can be shut in (as {'root' if os.geteuid() == 0 else 'a user'})")
