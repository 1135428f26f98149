# SPDX-License-Identifier: MIT
"""`veracruz image describe` as a user meets it: any origin, any damage, bounded, escaped."""

from __future__ import annotations

import json
import os
import re
import struct
import tracemalloc
from pathlib import Path

import pytest

from attestation.measurements import load_measurements, signer_pcr
from enclave_image.eif import SectionType, read_eif, write_eif
from enclave_image.eif_tool.inspection import inspect
from enclave_image.eif_tool.layout import open_source
from host_shim.cli import main

from .eif_specimens import (
    AT,
    CMDLINE,
    GOOD,
    IDENTITY,
    KERNEL,
    METADATA,
    SECTIONS,
    SPECIMENS,
    flipped_signature,
    look,
    make_arm_kernel,
    make_certificate,
    patched,
    replaced,
    sign,
    signed,
    with_crc,
    without,
)

Capture = pytest.CaptureFixture[str]


def described(tmp_path: Path, raw: bytes, capsys: Capture, *words: str) -> tuple[int, str]:
    path = tmp_path / "image.eif"
    path.write_bytes(raw)
    code = main(["image", "describe", str(path), *words])
    return code, capsys.readouterr().out


def test_says_what_an_image_holds(tmp_path: Path, capsys: Capture) -> None:
    code, out = described(tmp_path, GOOD, capsys)
    assert code == 0
    measured = read_eif(GOOD).measurements
    assert out.startswith(f"image.eif: EIF version 4, x86_64, {len(GOOD):,} bytes\n")
    assert re.search(r"^ 0  kernel +560 +1,024  [0-9a-f]{16}\.\.  bzImage, 6\.12\.0-test$", out, re.MULTILINE)
    assert f"\nPCR0  {measured.pcr0.hex()}\nPCR1  {measured.pcr1.hex()}\nPCR2  {measured.pcr2.hex()}\n\n" in out
    assert "\ncmdline    reboot=k panic=30 console=ttyS0\n" in out
    assert "\nname       specimen 1 " in out
    assert "\nsignature  none\n" in out
    assert "\nloads in   veracruz, qemu, nitro-cli\n" in out
    assert "\nnote: unsigned: " in out
    assert "warning:" not in out


def test_json_is_a_measurements_file_under_nitro_clis_names(tmp_path: Path, capsys: Capture) -> None:
    code, out = described(tmp_path, signed(sign()), capsys, "--json")
    data = json.loads(out)
    assert data["Measurements"].keys() == {"HashAlgorithm", "PCR0", "PCR1", "PCR2", "PCR8"}
    assert load_measurements(out.encode()) == (read_eif(GOOD).measurements,)
    assert data["sections"][0].keys() == {"type", "offset", "size", "sha384"}
    assert data["loaders"]["qemu"] == {"takes": True, "why": None}
    assert code in (0, 1)


def test_names_the_signer_and_verifies() -> None:
    found = look(signed(sign()))
    assert found.signer is not None
    assert found.signer.algorithm is not None
    assert found.signer.algorithm.name == "ES384"
    assert found.pcr8 == signer_pcr(found.signer.der or b"")


def test_a_bad_signature_is_an_error_finding_and_exit_1(tmp_path: Path, capsys: Capture) -> None:
    code, out = described(tmp_path, flipped_signature(), capsys)
    assert code == 1
    assert "\nsignature  does not hold: " in out
    assert "\nerror: signature-bad: " in out
    assert re.search(r"^ +nitro-cli  no: signature-bad$", out, re.MULTILINE)
    assert "PCR8  " in out  # loaders measure the certificate all the same


def test_describes_images_of_other_versions_and_architectures() -> None:
    second = look(patched(4, ">H", 2, raw=without(METADATA)))
    third = look(patched(4, ">H", 3, raw=write_eif([s for s in [*SECTIONS, (SectionType.SIGNATURE, sign())]
                                                    if s[0] is not METADATA])))  # fmt: skip
    for found, version in ((second, 2), (third, 3)):
        assert found.layout.header.version == version
        assert {one.slug for one in found.findings if one.weight != "note"} == {"version-old"}
        assert [verdict.takes for verdict in found.loaders] == [False, False, True]
        assert found.measurements == read_eif(GOOD).measurements
    arm = look(write_eif([(k, make_arm_kernel() if k is KERNEL else d) for k, d in SECTIONS], aarch64=True))
    assert arm.layout.header.architecture == "aarch64"
    assert arm.contents.kernel == "arm64 Image"
    assert [verdict.takes for verdict in arm.loaders] == [True, False, True]


HOSTILE = b"\x1b]0;owned\x07\x1b[31m\r\n\xff"


def test_nothing_hostile_reaches_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    text = HOSTILE.decode("latin-1")
    identity = json.dumps({"ImageName": text, "BuildMetadata": {"BuildTime": text, "BuildTool": text}, text: text})
    certificate = make_certificate(name=text.replace("\x07", "")[:40])
    for raw in (
        replaced(CMDLINE, HOSTILE), replaced(METADATA, identity.encode()), signed(sign(certificate=certificate)),
        replaced(KERNEL, SECTIONS[0][1].replace(b"6.12.0-test", HOSTILE[:11])),
    ):  # fmt: skip
        for words in ([], ["--json"]):
            _, out = described(tmp_path, raw, capsys, *words)
            assert all(character.isprintable() or character == "\n" for character in out)
            assert out.isascii()


@pytest.mark.parametrize(
    "value",
    ["[" * 500 + "]" * 500, '{"a":' * 900 + "1" + "}" * 900, "NaN", "1e999", "1" * 5000, '"\\ud800"'],
    ids=["arrays", "objects", "NaN", "infinite", "long", "surrogate"],
)
def test_metadata_that_json_can_hardly_hold_end_in_words(tmp_path: Path, capsys: Capture, value: str) -> None:
    raw = replaced(METADATA, (json.dumps(IDENTITY)[:-1] + f', "x": {value}}}').encode())
    for words in ([], ["--json"]):
        code, out = described(tmp_path, raw, capsys, *words)
        assert code == 0
        assert ("metadata-malformed" in out) is ("ud800" not in value)
    json.loads(out, parse_constant=pytest.fail)


@pytest.mark.parametrize("form", SPECIMENS)
def test_every_specimen_ends_in_words_and_an_agreed_exit_code(tmp_path: Path, capsys: Capture, form: str) -> None:
    specimen = SPECIMENS[form]
    path = tmp_path / "image.eif"
    path.write_bytes(specimen.make())
    code = main(["image", "describe", str(path)])
    captured = capsys.readouterr()
    if specimen.slug is None:
        assert code == 2
        assert captured.err.startswith(f"error: {path}: ")
        assert "hint: " in captured.err
    else:
        assert code == (1 if "\nerror: " in captured.out else 0)
        assert captured.out.count("\n\n") >= 3
        assert "Traceback" not in captured.err
    assert main(["image", "describe", str(path), "--json"]) == code
    json.loads(capsys.readouterr().out)


def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    """Sparse: a ramdisk of 64 MiB of zeros."""
    size = 64 << 20
    head = write_eif([*SECTIONS[:4], (SectionType.RAMDISK, b"")])
    raw = patched(len(head) - 8, ">Q", size, raw=patched(0x11C + 32, ">Q", size, raw=head))
    path = tmp_path / "large.eif"
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + size)
    tracemalloc.start()
    try:
        with open_source(path) as source:
            found = inspect(source, at=AT)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert found.layout.parts[4].size == size
    assert "crc-mismatch" in {finding.slug for finding in found.findings}


def test_many_findings_of_one_kind_are_counted(tmp_path: Path, capsys: Capture) -> None:
    code, out = described(tmp_path, SPECIMENS["33 sections"].make(), capsys)
    assert code == 1
    assert out.count("error: section-type: ") == 3
    assert "\nand 24 more of section-type: --json has them all\n" in out
    _, out = described(tmp_path, SPECIMENS["33 sections"].make(), capsys, "--json")
    assert [one["slug"] for one in json.loads(out)["findings"]].count("section-type") == 27


def test_what_overlaps_is_not_hashed_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    raw = bytearray(GOOD)
    for index in range(1, 5):
        raw[0x1C + 8 * index : 0x24 + 8 * index] = raw[0x1C:0x24]
        raw[0x11C + 8 * index : 0x124 + 8 * index] = raw[0x11C:0x124]
    code, out = described(tmp_path, with_crc(raw), capsys)
    assert code == 1
    assert "not computed" in out
    assert "overlap: " in out
    code, out = described(tmp_path, with_crc(raw), capsys, "--json")
    assert json.loads(out)["sections"][0]["sha384"] is None


@pytest.mark.timeout(30)  # a TiB takes hours
def test_what_is_larger_than_any_image_is_not_hashed_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    raw = bytearray(GOOD)
    last = struct.unpack_from(">Q", raw, 0x1C + 8 * 3)[0]  # the second ramdisk's, which becomes a TiB of nothing
    struct.pack_into(">Q", raw, 0x11C + 8 * 3, 1 << 40)
    struct.pack_into(">Q", raw, last + 4, 1 << 40)
    path = tmp_path / "endless.eif"
    path.write_bytes(raw)
    os.truncate(path, last + 12 + (1 << 40))
    assert main(["image", "describe", str(path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["sections"][3]["size"] == 1 << 40
    assert {section["sha384"] for section in told["sections"]} == {None}
    assert told["header"]["crc32_computed"] is None
    assert not any(name.startswith("PCR") for name in told.get("Measurements", {}))
    assert [row["slug"] for row in told["findings"] if row["slug"] in ("too-large", "crc-mismatch")] == ["too-large"]
    for words in (["describe", str(path)], ["extract", str(path), "--out", str(tmp_path / "out")]):
        assert main(["image", *words]) != 0
        said = capsys.readouterr()
        assert "the file is larger than 4294967296 bytes" in said.out + said.err
    assert main(["image", "diff", str(path), str(path)]) == 2
    assert "nothing definite to compare" in capsys.readouterr().err


def test_reads_a_pipe(tmp_path: Path, capsys: Capture) -> None:
    import threading

    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(GOOD,))
    writer.start()
    try:
        assert main(["image", "describe", str(path)]) == 0
    finally:
        writer.join(20)
    assert "PCR0" in capsys.readouterr().out
