# SPDX-License-Identifier: MIT
"""Each architecture has its flag and its form of kernel; the writer and the readers agree on both."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_image.architecture import TEXT_OFFSET, Architecture, find_architecture, fit_kernel
from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.eif import SectionType, load_eif
from enclave_image.eif_writer import write_image
from enclave_image.errors import BuildFailed
from enclave_image.lock import format_lock, load_lock, parse_lock
from enclave_image.recipe import prepare_platform

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


def test_a_lock_names_its_architecture_and_the_recipe_says_what_it_does_not_build() -> None:
    lock = replace(load_lock(DEFAULT_DIR / "enclave.lock"), architecture=ARM)
    assert parse_lock(format_lock(lock)) == lock
    with pytest.raises(BuildFailed, match="steps are for x86_64"):
        prepare_platform(load_config(), lock, out=None, offline=True, snapshot=None)
