# SPDX-License-Identifier: MIT
"""Each architecture has its flag and its form of kernel; the writer and the readers agree on both."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from attestation.errors import EXIT_ENVIRONMENT, EXIT_USAGE, UsageError
from enclave_image import emulator, guest, recipe
from enclave_image.architecture import TEXT_OFFSET, Architecture, find_architecture, fit_kernel, read_banner
from enclave_image.cache import Cache
from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.config_options import lock_beside
from enclave_image.eif import SectionType, load_eif
from enclave_image.eif_writer import write_image
from enclave_image.errors import BuildFailed, MalformedConfig
from enclave_image.given_kernel import load_given_kernel
from enclave_image.guest import Guest
from enclave_image.kernel_config import load_kernel_config, parse_fragment
from enclave_image.lock import Lock, Role, format_lock, load_lock, parse_lock
from host_shim.cli import main

from .eif_specimens import make_arm_kernel, make_kernel

X86, ARM = Architecture.X86_64, Architecture.AARCH64


def test_kernels_are_told_by_their_form() -> None:
    assert find_architecture(make_kernel()) is X86
    assert find_architecture(make_arm_kernel()) is ARM
    for other in (b"", b"\x1f\x8b", bytes(1024), make_arm_kernel()[:63]):
        assert find_architecture(other) is None


def test_a_text_offset_of_0_becomes_2_mib_and_any_other_stays() -> None:
    fitted = fit_kernel(make_arm_kernel(0), ARM)
    assert struct.unpack_from("<Q", fitted, 8) == (TEXT_OFFSET,)
    assert fitted[:8] + bytes(8) + fitted[16:] == make_arm_kernel(0)
    assert fit_kernel(make_arm_kernel(0x80000), ARM) == make_arm_kernel(0x80000)
    assert fit_kernel(make_kernel(), X86) == make_kernel()


@pytest.mark.parametrize(
    ("kernel", "architecture", "says"),
    [
        (make_arm_kernel(), X86, "expected an x86 bzImage, got an uncompressed arm64 Image"),
        (make_kernel(), ARM, "expected an uncompressed arm64 Image, got an x86 bzImage"),
        (gzip.compress(make_arm_kernel()), ARM, "got a compressed file"),
        (b"MZ\0\0zimg" + bytes(1000), ARM, "got a compressed file"),
        (b"", X86, "no kernel known"),
    ],
    ids=["arm for x86", "x86 for arm", "gzip", "EFI zboot", "nothing"],
)
def test_refuses_a_kernel_that_the_architectures_loader_does_not_take(
    kernel: bytes, architecture: Architecture, says: str
) -> None:
    with pytest.raises(BuildFailed, match=says):
        fit_kernel(kernel, architecture)


@pytest.mark.parametrize(("architecture", "kernel", "flags"), [(X86, make_kernel(), 0), (ARM, make_arm_kernel(0), 1)])
def test_the_writer_sets_the_flag_and_measures_what_it_wrote(
    architecture: Architecture, kernel: bytes, flags: int, tmp_path: Path
) -> None:
    out = tmp_path / "image.eif"
    sections = [
        (SectionType.KERNEL, kernel), (SectionType.CMDLINE, b"quiet"), (SectionType.METADATA, b"{}"),
        (SectionType.RAMDISK, b"boot"), (SectionType.RAMDISK, b"application"),
    ]  # fmt: skip
    built = write_image(sections, out, architecture=architecture)
    assert out.read_bytes()[6:8] == bytes([0, flags])
    image = load_eif(out)
    assert image.measurements == built.measurements
    assert bytes(image.kernel) == fit_kernel(kernel, architecture)


def test_what_an_arm_kernel_says_of_itself_is_found_in_it() -> None:
    text = b"6.12.117 (eif@eif) (gcc 14) #1 SMP 2026-01-01 00:00:00"
    assert read_banner(make_arm_kernel() + b"Linux version " + text + b"\n\0") == text.decode()
    for without in (make_arm_kernel(), make_arm_kernel() + b"Linux version \x1b[31m\n", b""):
        assert read_banner(without) == "unknown"


def test_a_given_kernel_has_the_form_of_the_architecture(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(make_arm_kernel() + b"Linux version 6.1 (a@b)\n")
    assert load_given_kernel(path, ARM).banner == "6.1 (a@b)"
    with pytest.raises(UsageError, match="as in a bzImage"):
        load_given_kernel(path, X86)
    path.write_bytes(make_kernel())
    with pytest.raises(UsageError, match="expected an uncompressed arm64 Image"):
        load_given_kernel(path, ARM)


# --- the configuration and its lock ---


def test_each_architecture_has_its_words_of_the_one_configuration() -> None:
    x86, arm = load_config(), load_config(architecture=ARM)
    assert (x86.root, x86.wheels, x86.kernel_source) == (arm.root, arm.wheels, arm.kernel_source)
    assert set(x86.toolchain) < set(arm.toolchain)
    assert "gcc-14-aarch64-linux-gnu" in arm.toolchain
    assert (x86.emulator, arm.emulator) == ("", "qemu-user")
    assert "i8042" in x86.command_line
    assert "i8042" not in arm.command_line


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[aarch64]\n", "[riscv64]\n", "nothing is said of aarch64"),
        ('emulator = "qemu-user"\n', "", "aarch64.emulator"),
        ('emulator = "qemu-user"\n', "emulator = 7\n", "aarch64.emulator"),
        ("[aarch64]\n", "[aarch64]\nwheels = []\n", "a table of command_line, toolchain, emulator"),
    ],
)
def test_refuses_a_table_that_is_not_of_its_form(tmp_path: Path, old: str, new: str, says: str) -> None:
    shutil.copytree(DEFAULT_DIR, tmp_path / "config")
    file = tmp_path / "config/image.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(MalformedConfig, match=says):
        load_config(tmp_path / "config", architecture=ARM)


def test_a_kernels_option_may_be_of_one_architecture() -> None:
    files = {
        "kernel.fragment": b"CONFIG_A=y  # why\nCONFIG_B=1  # [x86_64] why\nCONFIG_B=2  # [aarch64] why\n",
        "kernel-minimal.fragment": b"CONFIG_A=n  # [x86_64] why\n",
    }
    read = files.__getitem__
    assert load_kernel_config("default", X86, read).fragment == b"CONFIG_A=y\nCONFIG_B=1\n"
    assert load_kernel_config("default", ARM, read).fragment == b"CONFIG_A=y\nCONFIG_B=2\n"
    assert load_kernel_config("minimal", X86, read).fragment == b"CONFIG_A=n\nCONFIG_B=1\n"
    assert load_kernel_config("minimal", ARM, read).fragment == b"CONFIG_A=y\nCONFIG_B=2\n"


@pytest.mark.parametrize(
    "text",
    [
        "CONFIG_A=y  # [riscv64] why\n",
        "CONFIG_A=y  # [aarch64] why\nCONFIG_A=n  # why\n",
        "CONFIG_A=y  # why\nCONFIG_A=n  # [x86_64] why\n",
        "CONFIG_A=y  # [x86_64] why\nCONFIG_A=n  # [x86_64] why\n",
    ],
)
def test_refuses_an_option_that_is_said_twice_or_of_nothing_known(text: str) -> None:
    with pytest.raises(MalformedConfig, match=r"kernel\.fragment:[12]"):
        parse_fragment("kernel.fragment", text.encode())


def test_the_shipped_locks_are_each_for_their_architecture() -> None:
    x86, arm = (load_lock(lock_beside(DEFAULT_DIR, architecture)) for architecture in (X86, ARM))
    assert (x86.architecture, arm.architecture) == (X86, ARM)
    root = {package.name: package for package in arm.packages_for(Role.ROOT)}
    assert {package.bare_name for package in root.values()} == {p.name for p in x86.packages_for(Role.ROOT)}
    assert all(name.endswith(":arm64") for name in root)
    assert all(package.filename.endswith(("_arm64.deb", "_all.deb")) for package in root.values())
    foreign = {p.name for p in arm.packages_for(Role.TOOLCHAIN) if p.filename.endswith("_arm64.deb")}
    assert foreign == {"libc6:arm64", "libc6-dev:arm64"}, "what /init is linked with, no program"
    assert [package.name for package in arm.packages_for(Role.EMULATOR)] == ["qemu-user"]
    assert [(w.name, w.version) for w in arm.wheels] == [(w.name, w.version) for w in x86.wheels]
    assert parse_lock(format_lock(arm)) == arm


def test_the_shipped_locks_are_of_one_day() -> None:
    """A package that is behind in one of them alone would be a fix that half the enclaves lack."""
    x86, arm = (load_lock(lock_beside(DEFAULT_DIR, architecture)) for architecture in (X86, ARM))
    assert x86.releases == arm.releases
    versions = {package.name: package.version for package in x86.packages}
    ours = {p.name: p.version for p in arm.packages if p.bare_name in versions}
    assert ours == {name: versions[name.partition(":")[0]] for name in ours}
    assert len(ours) > 40


def test_a_lock_has_an_emulator_where_the_building_machine_needs_one_and_nowhere_else() -> None:
    arm = load_lock(lock_beside(DEFAULT_DIR, ARM))
    with pytest.raises(MalformedConfig, match="role emulator; expected 0, got 1"):
        parse_lock(format_lock(replace(arm, architecture=X86)))
    with pytest.raises(MalformedConfig, match="role emulator; expected 1, got 0"):
        parse_lock(format_lock(replace(load_lock(lock_beside(DEFAULT_DIR, X86)), architecture=ARM)))


def test_a_lock_of_another_architecture_is_refused_before_anything_is_fetched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--lock", str(lock_beside(DEFAULT_DIR, ARM)), "--out", str(tmp_path / "out.eif"), "--offline"]
    assert main(["image", "build", *words]) == EXIT_USAGE
    assert "expected x86_64, got aarch64" in (said := capsys.readouterr().err)
    assert "--architecture aarch64" in said


@pytest.mark.parametrize("verb", ["reproduce", "audit"])
def test_an_image_for_another_processor_is_not_held_against_this_ones_lock(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = tmp_path / "arm.eif"
    data = (
        (SectionType.KERNEL, make_arm_kernel()), (SectionType.CMDLINE, b"x"), (SectionType.METADATA, b"{}"),
        (SectionType.RAMDISK, b"ramdisk"),
    )  # fmt: skip
    write_image(data, image, architecture=ARM)
    assert main(["image", verb, str(image), "--offline"]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert f"{image} is for another processor; expected x86_64, got aarch64" in said
    assert "--architecture aarch64" in said


def test_a_machine_that_cannot_run_the_toolchain_is_refused_before_anything_is_fetched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["image", "build", "--out", str(tmp_path / "out.eif")]) == EXIT_ENVIRONMENT
    assert "images are built on x86-64 alone" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.deb"))


def test_the_platform_is_of_its_emulator_too(tmp_path: Path) -> None:
    def key(lock: Lock) -> str:
        return recipe._platform_key(load_config(architecture=lock.architecture), lock, tmp_path / "init")

    (tmp_path / "init").write_bytes(b"init")
    arm = load_lock(lock_beside(DEFAULT_DIR, ARM))
    other = tuple(replace(p, sha256="0" * 64) if Role.EMULATOR in p.roles else p for p in arm.packages)
    assert key(arm) != key(replace(arm, packages=other))


# --- the image's own programs ---


def test_the_guests_interpreter_runs_under_the_emulator_of_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(guest, "run", lambda words, **_: commands.append([str(word) for word in words]))
    Guest(tmp_path, ARM, tmp_path / "qemu-aarch64").python(["compile", "/x"], what="a test")
    Guest(tmp_path).python(["compile", "/x"], what="a test")
    arm, x86 = commands
    assert arm[:2] == [f"{tmp_path}/qemu-aarch64", f"{tmp_path}/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"]
    assert x86[0] == f"{tmp_path}/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    assert arm[-3:] == x86[-3:]


def test_a_package_without_the_emulator_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(emulator, "unpack", lambda *_, **__: None)
    with pytest.raises(BuildFailed, match="holds no emulator for aarch64"):
        emulator.find_emulator(Cache(), tmp_path / "qemu-user.deb", sha256="00", architecture=ARM)
