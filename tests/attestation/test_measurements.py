# SPDX-License-Identifier: MIT
"""Register arithmetic against published vectors, and the measurements file."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from attestation.errors import MalformedInput
from attestation.limits import MAX_MEASUREMENTS_FILE
from attestation.measurements import (
    ZERO_PCR,
    Measurements,
    Measurer,
    dump_measurements,
    extend,
    instance_pcr,
    load_measurements,
    measure_image,
    role_pcr,
    signer_pcr,
)

from .documents import IMAGE, OTHER_IMAGE

REGISTERS: dict[str, Any] = {f"PCR{index}": value.hex() for index, value in enumerate(IMAGE.registers)}


def test_role_has_the_published_value_of_pcr3() -> None:
    assert role_pcr("arn:aws:iam::123456789012:role/Webserver").hex() == (
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6"
    )


def test_image_with_one_ramdisk_has_the_published_pcr2_and_equal_pcr0_and_pcr1() -> None:
    image = measure_image(kernel=b"kernel", cmdline=b"cmdline", ramdisks=[b"ramdisk"])
    assert image.pcr0 == image.pcr1
    assert image.pcr2.hex() == (
        "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
    )


def test_image_registers_are_the_documented_hashes() -> None:
    def register(content: bytes) -> bytes:
        return hashlib.sha384(bytes(48) + hashlib.sha384(content).digest()).digest()

    image = measure_image(kernel=b"K", cmdline=b"C", ramdisks=[b"0", b"1", b"2"])
    assert image == Measurements(register(b"KC012"), register(b"KC0"), register(b"12"))


def test_measurer_gives_the_same_whatever_the_chunks() -> None:
    measurer = Measurer()
    for chunk in (b"ker", b"nel"):
        measurer.kernel(memoryview(chunk))
    measurer.cmdline(b"console=ttyS0")
    measurer.ramdisk(0, b"bo")
    measurer.ramdisk(0, b"ot")
    measurer.ramdisk(1, b"application")
    assert measurer.measurements() == IMAGE


def test_boundaries_within_the_boot_half_are_not_measured() -> None:
    assert measure_image(kernel=b"kernelconsole=", cmdline=b"ttyS0", ramdisks=[b"boot", b"application"]) == IMAGE


def test_moving_bytes_between_ramdisks_changes_pcr1_and_pcr2_but_not_pcr0() -> None:
    moved = measure_image(kernel=b"kernel", cmdline=b"console=ttyS0", ramdisks=[b"boota", b"pplication"])
    assert moved.pcr0 == IMAGE.pcr0
    assert moved.pcr1 != IMAGE.pcr1
    assert moved.pcr2 != IMAGE.pcr2


def test_instance_is_hashed_raw_and_signer_with_an_inner_hash() -> None:
    assert instance_pcr("i-0") == hashlib.sha384(bytes(48) + b"i-0").digest()
    assert signer_pcr(b"der") == extend(ZERO_PCR, hashlib.sha384(b"der").digest())


def test_extend_refuses_a_register_of_another_size() -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        extend(bytes(32), b"data")


@pytest.mark.parametrize("registers", [(b"", b"", b""), (bytes(48), bytes(48), bytes(47)), (bytes(48), bytes(48), "")])
def test_measurements_are_three_registers_of_48_bytes(registers: tuple[Any, Any, Any]) -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        Measurements(*registers)


def test_any_zero_register_is_debug_mode() -> None:
    assert not IMAGE.debug
    assert Measurements(IMAGE.pcr0, ZERO_PCR, IMAGE.pcr2).debug


def test_load_reads_what_dump_writes() -> None:
    assert load_measurements(json.dumps(dump_measurements(IMAGE)).encode()) == (IMAGE,)


def test_load_reads_the_output_of_nitro_cli_describe_eif() -> None:
    raw = {
        "EifVersion": 4,
        "Measurements": {"HashAlgorithm": "Sha384 { ... }", **REGISTERS, "PCR8": "ab" * 48},
        "IsSigned": True,
        "CheckCRC": True,
        "ImageName": "hello",
        "Metadata": {"BuildTime": "2026-11-01T12:00:00Z"},
    }
    assert load_measurements(json.dumps(raw).encode()) == (IMAGE,)


def test_load_reads_several_images() -> None:
    raw = [dump_measurements(IMAGE), {"EnclaveID": "i-0-enc0", **dump_measurements(OTHER_IMAGE)}]
    assert load_measurements(json.dumps(raw).encode()) == (IMAGE, OTHER_IMAGE)


def test_load_takes_capital_hex_digits() -> None:
    raw = {"Measurements": {name: value.upper() for name, value in REGISTERS.items()}}
    assert load_measurements(json.dumps(raw).encode()) == (IMAGE,)


def _file(**changes: Any) -> bytes:
    registers = {**REGISTERS, **changes}
    return json.dumps({"Measurements": {k: v for k, v in registers.items() if v is not None}}).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b" " * (MAX_MEASUREMENTS_FILE + 1), "too long"),
        (b"[]", "wrong number"),
        (b"[" + b",".join([_file()] * 65) + b"]", "wrong number"),
        (b"7", "wrong type"),
        (b"{}", "missing; expected Measurements"),
        (b'{"Measurements": null}', "Measurements: wrong type"),
        (b'{"Measurements": {"PCR0": "00", "PCR0": "00"}}', "duplicate key"),
        (b'{"Measurements": {}, "Measurements": {}}', "duplicate key"),
        (_file(PCR0=None), "missing; expected PCR0"),
        (_file(PCR2=None), "missing; expected PCR2"),
        (_file(PCR3="ab" * 48), "PCR3: unknown key"),
        (_file(PCR1="ab"), "Measurements.PCR1: wrong length; expected 96 hex digits, got 2"),
        (_file(PCR1="zz" * 48), "Measurements.PCR1: wrong form"),
        (_file(PCR1=" " + "ab" * 47 + " "), "Measurements.PCR1: wrong form"),
        (_file(PCR1="\u0661" * 96), "Measurements.PCR1: wrong form"),
        (_file(PCR1=7), "Measurements.PCR1: wrong type"),
        (_file(PCR2="00" * 48), "Measurements.PCR2: zero"),
        (_file(HashAlgorithm="Sha256 { ... }"), "another algorithm"),
        (_file(HashAlgorithm=384), "HashAlgorithm: wrong type"),
        (b"[" + _file() + b", {}]", r"\[1\]: a key is missing"),
    ],
)
def test_load_refuses_and_names_the_place(raw: bytes, message: str) -> None:
    with pytest.raises(MalformedInput, match=message):
        load_measurements(raw)
