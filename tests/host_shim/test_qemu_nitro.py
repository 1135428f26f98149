# SPDX-License-Identifier: MIT
"""The `qemu-nitro` isolate: which QEMU it takes, how the machine is started, what it says of itself.

Booted for real in tests/boot/test_isolates.py, where such a QEMU was built.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from attestation.errors import UsageError
from attestation.measurements import ZERO_PCR, Measurements
from host_shim.accel import Accel
from host_shim.errors import NoNitroMachine, NoQemu
from host_shim.isolate import Evidence
from host_shim.qemu import PROGRAM, Machine, Qemu, SealedFile
from host_shim.qemu_nitro import VARIABLE, Parent, QemuNitroIsolate, find_qemu_nitro

WITH = "microvm   microvm (i386)\nnitro-enclave        AWS Nitro Enclave"
WITHOUT = "microvm   microvm (i386)\nnot-nitro-enclave   nitro-enclave"


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/usr/bin:/bin")


def install(path: Path, machines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = -M ]; then echo "{machines}"; else echo "QEMU emulator version 10.0.2"; fi\n'
    )
    path.chmod(0o755)
    return path


def test_takes_the_one_named_then_the_environments_then_the_one_built_then_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = install(tmp_path / "path" / PROGRAM, WITH)
    assert find_qemu_nitro().path == system
    built = install(tmp_path / "cache/veracruz/qemu-nitro/bin" / PROGRAM, WITH)
    assert find_qemu_nitro().path == built
    told = install(tmp_path / "told", WITH)
    monkeypatch.setenv(VARIABLE, str(told))
    assert find_qemu_nitro().path == told
    named = install(tmp_path / "named", WITH)
    assert find_qemu_nitro(named).path == named


def test_one_that_lacks_the_machine_is_told_with_what_builds_one(tmp_path: Path) -> None:
    install(tmp_path / "path" / PROGRAM, WITHOUT)
    with pytest.raises(NoNitroMachine, match="lacks the machine nitro-enclave") as caught:
        find_qemu_nitro()
    assert "scripts/build_qemu" in (caught.value.hint or "")
    with pytest.raises(NoQemu, match="is no program"):
        find_qemu_nitro(tmp_path / "none")


def test_none_at_all_names_the_same_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(NoNitroMachine) as caught:
        find_qemu_nitro()
    assert "scripts/build_qemu" in (caught.value.hint or "")


def test_the_machine_gets_the_whole_file_and_the_parents_identity() -> None:
    image = SealedFile("image", [b"eif"])
    zero = Measurements(ZERO_PCR, ZERO_PCR, ZERO_PCR)
    parent = Parent("arn:aws:iam::123456789012:role/parent", "i-0123456789abcdef0")
    qemu = Qemu(Path("/q"), (10, 0), "QEMU 10")
    isolate = QemuNitroIsolate(qemu, image, zero, Machine(256, 2), Accel.TCG, parent)
    command = isolate.command(7)
    options = dict(itertools.pairwise(command))
    assert options["-M"] == (
        "nitro-enclave,vsock=vsock,parent-role=arn:aws:iam::123456789012:role/parent,parent-id=i-0123456789abcdef0"
    )
    assert options["-kernel"] == image.path
    assert options["-chardev"] == "socket,id=vsock,fd=7"
    assert "-initrd" not in command  # it would change PCR0 and PCR2
    assert isolate.evidence is Evidence.UNSIGNED
    assert "unsigned" in isolate.caution
    image.close()


@pytest.mark.parametrize(
    "parent",
    [
        ("arn:aws:iam::123456789012:role/x,debug=on", None), ("role", None), ("", None),
        (None, "i-0123,machine=x"), (None, "i-XYZ"), (None, "i-0123456789abcdef0\n"),
    ],
)  # fmt: skip
def test_the_parents_identity_cannot_carry_options_of_qemus(parent: tuple[str | None, str | None]) -> None:
    with pytest.raises(UsageError, match="parent's identity"):
        Parent(*parent)
