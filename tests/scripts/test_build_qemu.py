# SPDX-License-Identifier: MIT
"""scripts/build_qemu without building one: what is pinned, what counts as built, what is said where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from enclave_image.cache import Cache
from enclave_image.errors import InputUnavailable, MalformedConfig

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = importlib.util.spec_from_file_location("qemu_build", TOP / "scripts/qemu_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "qemu_build", module)
    spec.loader.exec_module(module)
    return module


def put(script: ModuleType, text: str) -> Path:
    """Put a program of this text where a build would."""
    program = Cache().base / "qemu" / script.key(script.load_pins())[:32] / "bin" / script.PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def find(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOP / "scripts/qemu_build.py", "--find"], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip


def test_the_lock_pins_one_version_of_three_files(script: ModuleType) -> None:
    pins = script.load_pins()
    assert [entry.filename.rsplit(".", 2)[-1] for entry in pins.files] == ["dsc", "xz", "xz"]
    assert {entry.version for entry in pins.files} == {pins.version}
    plain = pins.version.partition(":")[2]
    assert all(plain.partition("-")[0] in entry.path for entry in pins.files)


def test_says_how_to_build_one_where_there_is_none(tmp_path: Path) -> None:
    done = find(tmp_path)
    assert done.returncode == 3
    assert "no QEMU with the machine nitro-enclave" in done.stderr
    assert "hint: scripts/build_qemu" in done.stderr
    assert done.stdout == ""


def test_finds_what_was_built_and_gives_it_a_stable_name(script: ModuleType, tmp_path: Path) -> None:
    program = put(script, "echo 'nitro-enclave        AWS Nitro Enclave'")
    done = find(tmp_path)
    assert done.stdout == f"{program}\n"
    assert (tmp_path / "veracruz/qemu-nitro/bin" / script.PROGRAM).resolve() == program
    assert find(tmp_path).stdout == done.stdout


@pytest.mark.parametrize("text", ["exit 127", "echo microvm", "kill -9 $$"])
def test_what_runs_no_more_or_lacks_the_machine_does_not_count(script: ModuleType, tmp_path: Path, text: str) -> None:
    put(script, text)
    assert find(tmp_path).returncode == 3


def test_another_version_or_system_is_another_entry(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = script.load_pins()
    first = script.key(pins)
    monkeypatch.setattr(script.platform, "freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "99"})
    assert script.key(pins) != first


@pytest.mark.parametrize(
    ("old", "new"),
    [("veracruz.qemu/1", "veracruz.qemu/2"), ("sha256 = ", "md5 = "), ("[meson]", "[mason]"), ("size = ", "size = = ")],
)
def test_refuses_a_malformed_lock(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str
) -> None:
    lock = tmp_path / "qemu.lock"
    lock.write_text(script.LOCK.read_text().replace(old, new))
    monkeypatch.setattr(script, "LOCK", lock)
    with pytest.raises(MalformedConfig, match=r"qemu\.lock"):
        script.load_pins()


def test_names_the_package_that_has_the_firmware(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FIRMWARE_DIRS", (Path("/nowhere"),))
    with pytest.raises(InputUnavailable, match=r"no qboot\.rom") as caught:
        script.find_firmware("qboot.rom")
    assert "qemu-system-x86" in str(caught.value.hint)
