# SPDX-License-Identifier: MIT
"""Finding QEMU and composing its command line; boots are in tests/boot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import cbor2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.measurements import measure_image
from enclave_image.eif import SectionType, read_eif, write_eif
from enclave_image.errors import MalformedEif
from host_shim import accel
from host_shim.accel import Accel, KvmVerdict
from host_shim.dev_pki import make_root
from host_shim.eif_signer import signer_of
from host_shim.errors import NoKvm, NoQemu, NotEnoughMemory, QemuTooOld
from host_shim.qemu import (
    BootFiles,
    Machine,
    Qemu,
    QemuIsolate,
    SealedFile,
    check_memory,
    choose_accelerators,
    find_qemu,
)

from ..enclave_image.eif_specimens import make_arm_kernel
from .test_dev_pki import AT

EIF = write_eif(
    [
        (SectionType.KERNEL, b"kernel"),
        (SectionType.CMDLINE, b"reboot=k quiet"),
        (SectionType.METADATA, b"{}"),
        (SectionType.RAMDISK, b"ramdisk 0"),
        (SectionType.RAMDISK, b"ramdisk 1"),
    ]
)


def install(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_no_qemu_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoQemu) as caught:
        find_qemu()
    assert caught.value.exit_code == 3
    assert caught.value.hint == "apt-get install --no-install-recommends qemu-system-x86"


@pytest.mark.parametrize("banner", ["QEMU emulator version 7.1.0", "QEMU emulator version 2.12.1 (Debian)"])
def test_refuses_a_qemu_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, banner: str) -> None:
    install(tmp_path, f"echo '{banner}'", monkeypatch)
    with pytest.raises(QemuTooOld, match=r"expected 7\.2 or later"):
        find_qemu()


@pytest.mark.parametrize("version", [(7, 2), (9, 0), (10, 0), (11, 0)])
def test_takes_a_qemu_that_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    install(tmp_path, f"echo 'QEMU emulator version {version[0]}.{version[1]}.2'", monkeypatch)
    assert find_qemu().version == version


@pytest.mark.parametrize("script", ["echo hello", "exit 1", "echo 'version 10.0' >&2; exit 127"])
def test_refuses_a_qemu_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    install(tmp_path, script, monkeypatch)
    with pytest.raises(NoQemu, match="does not tell its version"):
        find_qemu()


def test_what_was_measured_is_what_boots() -> None:
    with BootFiles(read_eif(EIF)) as files:
        isolate = QemuIsolate(Qemu(Path("/usr/bin/qemu"), (10, 0), ""), files, Machine(256, 2), Accel.TCG)
        command = isolate.command(7)
        options = dict(zip(command[1::2], command[2::2], strict=False))
        parts = {
            name: Path(command[command.index(name) + 1].replace("self", str(os.getpid()))).read_bytes()
            for name in ("-kernel", "-initrd")
        }
        assert parts == {"-kernel": b"kernel", "-initrd": b"ramdisk 0ramdisk 1"}
        assert command[command.index("-append") + 1] == "reboot=k quiet panic=1 reboot=t no_timer_check"
        assert options["-M"].startswith("microvm,acpi=off")
        assert command[command.index("-smp") + 1] == "2"
        assert "-no-reboot" in command
        expected = measure_image(kernel=b"kernel", cmdline=b"reboot=k quiet", ramdisks=[b"ramdisk 0", b"ramdisk 1"])
        assert isolate.measurements == expected
        debug = QemuIsolate(isolate.qemu, files, isolate.machine, Accel.TCG, debug_mode=True)
        assert debug.measurements is None


def test_an_image_for_arm_gets_a_machine_of_its_own_under_emulation(tmp_path: Path) -> None:
    arm = write_eif([(SectionType.KERNEL, make_arm_kernel()), (SectionType.CMDLINE, b"quiet"),
                     (SectionType.METADATA, b"{}"), (SectionType.RAMDISK, b"r")], aarch64=True)  # fmt: skip
    with BootFiles(read_eif(arm)) as files:
        assert files.hardware.program == "qemu-system-aarch64"
        command = QemuIsolate(Qemu(Path("/usr/bin/qemu"), (10, 0), ""), files, Machine(256, 2), Accel.TCG).command(7)
        assert command[command.index("-M") + 1].startswith("virt,")
        assert command[command.index("-append") + 1] == "quiet panic=1 console=ttyAMA0"
        verdict = KvmVerdict("QEMU 10", tmp_path)
        own = files.hardware.architecture
        assert choose_accelerators("auto", verdict, architecture=own) == [(Accel.TCG, False)]
        with pytest.raises(NoKvm, match="its own host alone"):
            choose_accelerators("kvm", verdict, architecture=own)


def test_boot_files_cannot_be_changed() -> None:
    sealed = SealedFile("test", [b"abc"])
    with pytest.raises(OSError, match="not permitted") as caught:
        os.write(sealed.descriptor, b"x")
    assert caught.value.errno == errno.EPERM
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(sealed.descriptor, 0)
    sealed.close()


def test_memory_must_hold_the_image_and_be_there() -> None:
    check_memory(Machine(64), 16 << 20)
    with pytest.raises(NotEnoughMemory, match="four times the image") as caught:
        check_memory(Machine(64), (16 << 20) + 1)
    assert caught.value.hint == "--memory 65"
    with pytest.raises(NotEnoughMemory, match="too little free memory"):
        check_memory(Machine(1 << 30), 1)


def test_kvm_is_tried_once_and_its_verdict_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "KVM", device)
    verdict = KvmVerdict("QEMU 10", tmp_path)
    assert verdict.read() is None
    assert choose_accelerators("auto", verdict) == [(Accel.KVM, True), (Accel.TCG, False)]
    verdict.write(False)
    assert choose_accelerators("auto", KvmVerdict("QEMU 10", tmp_path)) == [(Accel.TCG, False)]
    assert choose_accelerators("auto", KvmVerdict("QEMU 11", tmp_path))[0] == (Accel.KVM, True)
    verdict.write(True)
    assert choose_accelerators("auto", verdict)[0] == (Accel.KVM, True)
    assert choose_accelerators("kvm", verdict) == [(Accel.KVM, False)]
    assert choose_accelerators("tcg", verdict) == [(Accel.TCG, False)]


def test_without_kvm_auto_is_tcg_and_kvm_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "KVM", tmp_path / "none")
    verdict = KvmVerdict("QEMU 10", tmp_path)
    assert choose_accelerators("auto", verdict) == [(Accel.TCG, False)]
    with pytest.raises(NoKvm):
        choose_accelerators("kvm", verdict)


def test_a_kvm_that_runs_no_guest_is_told_before_anything_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (device := tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM", device)
    with pytest.raises(NoKvm, match="does not run a guest"):
        choose_accelerators("kvm", KvmVerdict("QEMU 10", tmp_path), lambda: False)


def test_a_damaged_verdict_is_none(tmp_path: Path) -> None:
    for content in (b"", b"[]", b'{"works": 1}', b"\xff"):
        (tmp_path / "kvm.json").write_bytes(content)
        assert KvmVerdict("QEMU 10", tmp_path).read() is None


def test_signer_is_the_certificate_of_the_first_signature() -> None:
    certificate = make_root(AT).certificate
    pem = certificate.public_bytes(Encoding.PEM)
    section = cbor2.dumps([{"signing_certificate": list(pem), "signature": [1, 2]}])
    assert signer_of(section) == certificate.public_bytes(Encoding.DER)
    assert signer_of(None) is None


@pytest.mark.parametrize(
    "section",
    [b"", b"\x80", b"\x81\xa0", cbor2.dumps([{"signing_certificate": [1], "signature": []}]), bytes(40000)],
)
def test_refuses_a_malformed_signature_section(section: bytes) -> None:
    with pytest.raises(MalformedEif):
        signer_of(section)
