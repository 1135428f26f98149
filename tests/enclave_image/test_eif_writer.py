# SPDX-License-Identifier: MIT
"""Images are written while they are measured, and only where they are not there already."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_image.application_half import application_key
from enclave_image.eif import Data, Eif, Section, SectionType, load_eif, read_eif, write_eif
from enclave_image.eif_measuring import WORTH_A_THREAD, measure_sections
from enclave_image.eif_writer import stream_image, write_image
from enclave_image.errors import MalformedEif, NoSpace

from .eif_specimens import make_kernel

Sections = list[tuple[SectionType, Data]]
CONTENTS = st.binary(max_size=40)


def make_sections(*ramdisks: bytes) -> Sections:
    return [
        (SectionType.KERNEL, make_kernel()), (SectionType.CMDLINE, b"quiet"), (SectionType.METADATA, b"{}"),
        *((SectionType.RAMDISK, ramdisk) for ramdisk in ramdisks),
    ]  # fmt: skip


@settings(max_examples=80)
@given(
    st.permutations([SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA, *[SectionType.RAMDISK] * 3]),
    st.lists(CONTENTS, min_size=6, max_size=6),
    st.integers(3, 6),
    st.sampled_from([0, 0, 0, WORTH_A_THREAD]),
)
def test_measures_in_any_order_as_the_readers_do(
    kinds: list[SectionType], contents: list[bytes], count: int, more: int
) -> None:
    sections = [(kind, data + bytes(more)) for kind, data in zip(kinds[:count], contents[:count], strict=True)]
    parts = tuple(Section(kind, 0, memoryview(data)) for kind, data in sections)
    assert measure_sections(sections) == Eif(4, parts, 0).measurements


def test_writes_the_image_and_tells_what_the_readers_read(tmp_path: Path) -> None:
    sections, out = make_sections(b"boot", b"application" * 300_000), tmp_path / "image.eif"
    built = write_image(sections, out)
    raw = out.read_bytes()
    assert raw == write_eif(sections)
    assert built.changed
    assert (built.size, built.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert built.measurements == load_eif(out).measurements
    assert os.listdir(tmp_path) == ["image.eif"]  # noqa: PTH208


def test_streams_the_same_bytes_to_an_open_file(tmp_path: Path) -> None:
    sections = make_sections(b"boot", b"application")
    with (tmp_path / "image.eif").open("wb") as file:
        measurements = stream_image(sections, file)
    raw = (tmp_path / "image.eif").read_bytes()
    assert raw == write_eif(sections)
    assert measurements == read_eif(raw).measurements


def test_leaves_a_file_of_these_very_bytes_alone(tmp_path: Path) -> None:
    sections, out = make_sections(b"boot", b"x" * 3_000_000), tmp_path / "image.eif"
    first = write_image(sections, out)
    before = out.stat()
    tmp_path.chmod(0o500)  # nothing can be written here
    try:
        again = write_image(sections, out)
    finally:
        tmp_path.chmod(0o700)
    after = out.stat()
    assert not again.changed
    assert (again.measurements, again.sha256) == (first.measurements, first.sha256)
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )


@pytest.mark.parametrize("place", [0, 600, -1])
def test_replaces_a_file_that_differs_in_one_byte(tmp_path: Path, place: int) -> None:
    sections, out = make_sections(b"boot", b"application"), tmp_path / "image.eif"
    raw = bytearray(write_eif(sections))
    raw[place] ^= 1
    out.write_bytes(raw)
    assert write_image(sections, out).changed
    assert out.read_bytes() == write_eif(sections)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (make_sections(), "no ramdisk"),
        (make_sections(b"")[1:], "kernel"),
        ([(SectionType.RAMDISK, b""), *make_sections()], "before the kernel"),
        (
            [(kind, b"a\0b" if kind is SectionType.CMDLINE else data) for kind, data in make_sections(b"")],
            "command line",
        ),
    ],
    ids=["no ramdisk", "no kernel", "order", "NUL"],
)
def test_writes_nothing_that_no_loader_takes(tmp_path: Path, sections: Sections, says: str) -> None:
    with pytest.raises(MalformedEif, match=says):
        write_image(sections, tmp_path / "image.eif")
    assert list(tmp_path.iterdir()) == []


def test_says_that_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10, "total": usage.f_blocks})())
    with pytest.raises(NoSpace):
        write_image(make_sections(b"boot"), tmp_path / "image.eif")


def test_another_platform_or_level_is_another_application() -> None:
    keys = {application_key("a" * 32, 9), application_key("b" * 32, 9), application_key("a" * 32, 10)}
    assert len(keys) == 3
    assert application_key("a" * 32, 9) in keys
