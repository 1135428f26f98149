# SPDX-License-Identifier: MIT
"""The doctor: what is wrong with a machine is found and has a cure; a machine that is well has no problem."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import socket
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.errors import EXIT_ENVIRONMENT, EXIT_OK
from enclave_image.architecture import Architecture, find_architecture
from host_shim import accel, accel_probe, doctor, doctor_machine
from host_shim.accel import Accel
from host_shim.accel_probe import try_accelerator
from host_shim.cli import main
from host_shim.doctor import Finding, Level
from host_shim.hardware import AARCH64, X86_64, Hardware
from host_shim.probe_guest import WORD, probe_guest
from host_shim.qemu import Qemu, find_qemu

needs_arm_qemu = pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="no QEMU for aarch64 here")
needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here")
MACHINES = "microvm  microvm (i386)\n"
DEVICES = 'name "vhost-user-vsock-device", bus virtio-bus\n'


def find(findings: Iterator[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what == what]
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VERACRUZ_QEMU_NITRO", raising=False)
    return tmp_path


@pytest.fixture
def fake(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Qemu]:
    """Put a QEMU of a few words on the PATH."""

    def make(
        machines: str = MACHINES, devices: str = DEVICES, guest: str = WORD.decode(), after: str = "",
        hardware: Hardware = X86_64,
    ) -> Qemu:  # fmt: skip
        (folder := tmp_path / "bin").mkdir(exist_ok=True)
        path = folder / hardware.program
        path.write_text(
            f"#!{sys.executable}\nimport sys, time\nwords = sys.argv\n"
            "if '--version' in words: print('QEMU emulator version 9.2.1')\n"
            f"elif words[-2:] == ['-M', 'help']: print({machines!r})\n"
            f"elif words[-1] == 'help': print({devices!r})\n"
            f"else:\n    print({guest!r}, end='', flush=True)\n    {after or 'pass'}\n"
        )
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return find_qemu(None, hardware)

    return make


# The probe guest


@needs_qemu
def test_the_probe_guest_runs_under_tcg() -> None:
    assert try_accelerator(find_qemu(), Accel.TCG, patience=60.0) is None


@needs_arm_qemu
def test_the_probe_guest_for_aarch64_runs_under_tcg() -> None:
    qemu, arm = find_qemu(None, AARCH64), Architecture.AARCH64
    assert try_accelerator(qemu, Accel.TCG, patience=60.0, architecture=arm) is None


@needs_arm_qemu
def test_the_probe_guest_for_aarch64_ends_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    mute = probe_guest(Architecture.AARCH64).replace(WORD, bytes(len(WORD)))
    monkeypatch.setattr(accel_probe, "probe_guest", lambda _: mute)
    told = try_accelerator(find_qemu(None, AARCH64), Accel.TCG, 60.0, architecture=Architecture.AARCH64)
    assert told == "QEMU ended without a word"


def test_the_probe_guest_for_aarch64_has_the_form_that_a_loader_takes() -> None:
    guest = probe_guest(Architecture.AARCH64)
    assert find_architecture(guest) is Architecture.AARCH64
    assert int.from_bytes(guest[16:24], "little") == len(guest)  # else its text offset would be a guess


@needs_qemu
def test_a_guest_that_never_speaks_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = probe_guest().replace(b"\xac\xee\xe2\xfc", b"\xf4\xeb\xfd\xf4")  # hlt, for ever, instead of the word
    monkeypatch.setattr(accel_probe, "probe_guest", lambda _: silent)
    assert try_accelerator(find_qemu(), Accel.TCG, patience=1.0) == "the guest said nothing in 1 s"


def test_an_accelerator_that_gives_up_is_told_by_its_words(fake: Callable[..., Qemu]) -> None:
    qemu = fake(guest="KVM internal error. Suberror: 1\nEAX=0\x1b[2J\n", after="time.sleep(60)")
    assert try_accelerator(qemu, Accel.KVM) == "KVM internal error. Suberror: 1"


def test_a_qemu_that_ends_without_a_word(fake: Callable[..., Qemu]) -> None:
    assert try_accelerator(fake(guest=""), Accel.TCG) == "QEMU ended without a word"


def test_a_qemu_that_talks_for_ever_is_cut_off(fake: Callable[..., Qemu]) -> None:
    qemu = fake(guest="noise", after="\n    while True: print('noise' * 100, flush=True)")
    told = try_accelerator(qemu, Accel.TCG)
    assert told is not None
    assert len(told) <= 200


def test_a_qemu_that_does_not_start(tmp_path: Path) -> None:
    assert "does not start" in str(try_accelerator(Qemu(tmp_path / "none", (9, 2), ""), Accel.TCG))


# QEMU and its accelerators


def test_no_qemu_is_a_problem_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = doctor_machine.examine_qemu()
    assert finding.level is Level.PROBLEM
    assert "apt-get install" in str(finding.mend)


def test_a_qemu_that_has_all(fake: Callable[..., Qemu], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(machines=MACHINES + "nitro-enclave  AWS Nitro Enclave\n")
    (device := tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM", device)
    findings = list(doctor_machine.examine_qemu())
    assert {finding.what for finding in findings} == {"qemu", "nitro-enclave", "tcg", "kvm"}
    assert {finding.level for finding in findings} == {Level.OK}


@pytest.mark.parametrize(("machine", "hardware"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_the_doctor_looks_at_the_qemu_of_its_own_machine(
    fake: Callable[..., Qemu], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, hardware: Hardware
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (device := tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM", device)
    qemu = fake(machines="microvm  microvm\nvirt  virt\n", hardware=hardware)
    findings = list(doctor_machine.examine_qemu())
    assert str(qemu.path) in find(iter(findings), "qemu").found
    assert [find(iter(findings), what).level for what in ("tcg", "kvm")] == [Level.OK] * 2
    fake(machines="none\n", hardware=hardware)
    lacking = find(doctor_machine.examine_qemu(), hardware.machine.partition(",")[0])
    assert f"apt-get install {hardware.package}" in str(lacking.mend)


def test_a_qemu_without_the_machine_or_the_device(fake: Callable[..., Qemu]) -> None:
    fake(machines="pc\n")
    assert find(doctor_machine.examine_qemu(), "microvm").level is Level.PROBLEM
    fake(devices="")
    assert find(doctor_machine.examine_qemu(), "vsock device").level is Level.PROBLEM


def test_a_qemu_without_nitro_enclave_is_a_note(fake: Callable[..., Qemu]) -> None:
    fake()
    finding = find(doctor_machine.examine_qemu(), "nitro-enclave")
    assert (finding.level, "scripts/build_qemu" in str(finding.mend)) == (Level.NOTE, True)


def test_the_qemu_that_was_built_for_nitro_enclave_is_found_beside_the_systems(
    fake: Callable[..., Qemu], home: Path
) -> None:
    built = home / "cache/veracruz/qemu-nitro/bin"
    built.mkdir(parents=True)
    fake(machines=MACHINES + "nitro-enclave  AWS Nitro Enclave\n").path.rename(built / "qemu-system-x86_64")
    fake()
    finding = find(doctor_machine.examine_qemu(), "nitro-enclave")
    assert (finding.level, str(built) in finding.found) == (Level.OK, True)


def test_tcg_that_runs_no_guest_is_a_problem_and_kvm_a_note(
    fake: Callable[..., Qemu], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(guest="no module accel-tcg\n")
    (device := tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM", device)
    findings = list(doctor_machine.examine_qemu())
    assert find(iter(findings), "tcg").level is Level.PROBLEM
    kvm = find(iter(findings), "kvm")
    assert kvm.level is Level.NOTE
    assert "no module accel-tcg" in kvm.found


def test_no_kvm_is_a_note(fake: Callable[..., Qemu], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake()
    monkeypatch.setattr(accel, "KVM", tmp_path / "none")
    assert find(doctor_machine.examine_qemu(), "kvm").level is Level.NOTE


# The rest of the machine


def test_little_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_meminfo", lambda: iter([("MemAvailable", 600 * 1024)]))
    finding = find(doctor.examine_memory(), "memory")
    assert (finding.level, finding.found) == (Level.PROBLEM, "600 MiB available")


def test_meminfo_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    (path := tmp_path / "meminfo").write_text("MemAvailable:   12 kB\nHugePages_Free:  3\nodd\nOdd: x kB\n")
    assert dict(doctor.read_meminfo(path)) == {"MemAvailable": 12, "HugePages_Free": 3}


def test_a_state_directory_that_others_may_write(home: Path) -> None:
    folder = home / "state" / "veracruz"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    finding = find(doctor.examine_files(), "state")
    assert finding.level is Level.PROBLEM
    assert "chmod 700" in str(finding.mend)


def test_a_damaged_record_is_named(home: Path) -> None:
    folder = home / "state" / "veracruz" / "enclaves" / "broken"
    folder.mkdir(parents=True, mode=0o700)
    (home / "state" / "veracruz").chmod(0o700)
    (folder / "state.json").write_text("{")
    notes = [finding for finding in doctor.examine_files() if finding.level is Level.NOTE]
    assert ["broken" in str(finding.mend) for finding in notes if finding.what == "state"] == [True]


def test_too_little_disk_is_a_note(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(0, 0, 5 << 20))
    finding = find(doctor.examine_files(), "cache")
    assert (finding.level, "5 MiB free" in finding.found) == (Level.NOTE, True)


def test_few_open_files_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    finding = find(doctor.examine_limits(), "open files")
    assert (finding.level, "ulimit -n" in str(finding.mend)) == (Level.NOTE, True)


def test_a_clock_before_this_version_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "RELEASED", datetime(9000, 1, 1, tzinfo=UTC))
    assert find(doctor.examine_clock(), "clock").level is Level.PROBLEM


@pytest.mark.parametrize(("told", "level"), [(True, Level.OK), (None, Level.OK), (False, Level.NOTE)])
def test_a_clock_that_nobody_sets_is_a_note(monkeypatch: pytest.MonkeyPatch, told: bool | None, level: Level) -> None:
    monkeypatch.setattr(doctor, "clock_synchronised", lambda: told)
    assert find(doctor.examine_clock(), "clock").level is level


def test_the_kernel_tells_of_its_clock() -> None:
    assert doctor.clock_synchronised() in (True, False)


def test_no_vsock_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    assert find(doctor.examine_vsock(), "vsock").level is Level.NOTE


def test_an_enclave_host_without_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nitro_enclaves").touch()
    monkeypatch.setattr(doctor, "read_meminfo", lambda: iter([("HugePages_Free", 4), ("Hugepagesize", 2048)]))
    findings = list(doctor.examine_nitro(tmp_path))
    assert find(iter(findings), "nitro").level is Level.OK
    pages = find(iter(findings), "hugepages")
    assert (pages.level, pages.found.startswith("8 MiB free")) == (Level.PROBLEM, True)
    assert "allocator" in str(pages.mend)


def test_a_host_without_enclaves_has_one_note(tmp_path: Path) -> None:
    assert [finding.level for finding in doctor.examine_nitro(tmp_path)] == [Level.NOTE]


def test_a_package_of_the_same_name_that_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = type(sys)("attestation")
    other.__file__ = str(tmp_path / "attestation" / "__init__.py")
    monkeypatch.setitem(sys.modules, "attestation", other)
    finding = find(doctor.examine_python(), "packages")
    assert (finding.level, "not ours" in finding.found) == (Level.PROBLEM, True)


def test_this_machine_can_shut_a_build_in() -> None:
    (finding,) = doctor_machine.examine_sandbox()
    assert finding.what == "sandbox"
    assert finding.level in (Level.OK, Level.NOTE)


# The verb


def test_the_verb_prints_every_finding_with_its_cure(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == (EXIT_ENVIRONMENT if told["problems"] else EXIT_OK)
    assert {"python", "libraries", "memory", "cache", "clock"} <= {finding["what"] for finding in told["findings"]}
    assert all(finding["mend"] or finding["level"] == "ok" for finding in told["findings"])


def test_a_problem_is_exit_code_3(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: Callable[..., Qemu]
) -> None:
    fake(machines="pc\n")
    assert main(["doctor"]) == EXIT_ENVIRONMENT
    out = capsys.readouterr().out
    assert "problem microvm" in out
    assert out.splitlines()[-1].endswith("to mend before isolates run here")


def test_kvm_that_runs_no_guest_is_not_tried_by_enclave_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (device := tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM", device)
    from host_shim.qemu import choose_accelerators

    verdict = accel.KvmVerdict("QEMU 9", tmp_path)
    asked: list[bool] = []

    def runs() -> bool:
        asked.append(True)
        return False

    assert choose_accelerators("auto", verdict, runs) == [(Accel.TCG, False)]
    assert choose_accelerators("auto", verdict, runs) == [(Accel.TCG, False)]
    assert asked == [True]  # once: the verdict is kept
