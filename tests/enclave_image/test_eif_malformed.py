# SPDX-License-Identifier: MIT
"""Every malformed form gets an answer from both readers, the same in docs/eif.md; they agree on what is refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attestation.errors import VeracruzError
from enclave_image.eif import MAX_SECTIONS, SectionType, read_eif, write_eif
from enclave_image.eif_tool.findings import RULES, Finding
from enclave_image.eif_tool.layout import BytesSource, read_layout
from enclave_image.errors import MalformedEif

from .eif_specimens import (
    GOOD,
    HEADER,
    SECTIONS,
    SPECIMENS,
    look,
    make_certificate,
    make_row,
    sign,
    signed,
    with_crc,
)

DOCS = (Path(__file__).resolve().parents[2] / "docs/eif.md").read_text()


@pytest.mark.parametrize("form", SPECIMENS)
def test_the_strict_reader_refuses_what_it_should(form: str) -> None:
    specimen = SPECIMENS[form]
    raw = specimen.make()
    if specimen.refusal is None:
        assert read_eif(raw).size == len(raw)
    else:
        with pytest.raises(MalformedEif, match=specimen.refusal):
            read_eif(raw)


@pytest.mark.parametrize("form", SPECIMENS)
def test_the_tolerant_reader_says_what_is_wrong(form: str) -> None:
    specimen = SPECIMENS[form]
    if specimen.slug is None:
        with pytest.raises(MalformedEif):
            look(specimen.make())
    else:
        assert specimen.slug in {finding.slug for finding in look(specimen.make()).findings}


@pytest.mark.parametrize("form", SPECIMENS)
def test_the_documentation_has_the_answer(form: str) -> None:
    assert make_row(form) in DOCS.splitlines()


def test_the_documentation_has_no_other_rows_and_every_finding() -> None:
    forms = re.findall(r"^\| ([^|]+) \| (?:refused|taken) \|", DOCS, re.MULTILINE)
    assert sorted(forms) == sorted(SPECIMENS)
    for slug, rule in RULES.items():
        assert f"| `{slug}` | {rule.weight} | {rule.meaning} |" in DOCS.splitlines()


def test_a_good_image_has_no_warning() -> None:
    for raw in (GOOD, signed(sign())):
        found = look(raw)
        assert {finding.slug for finding in found.findings} <= {"boundaries-unmeasured", "unsigned"}
        assert not found.broken
        assert all(verdict.takes for verdict in found.loaders)
        assert found.measurements == read_eif(raw).measurements


def test_a_finding_without_a_rule_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="no such finding"):
        Finding("new-slug", "text")


def agree(raw: bytes) -> None:
    """Both readers refuse a file, or neither does, and then they measure the same."""
    try:
        found = look(raw)
    except MalformedEif:
        with pytest.raises(MalformedEif):
            read_eif(raw)
        return
    refused = any(finding.refused for finding in found.findings)
    try:
        strict = read_eif(raw)
    except MalformedEif:
        assert refused
    else:
        assert not refused
        assert strict.measurements == found.measurements
        assert [section.offset for section in strict.sections] == [part.start for part in found.layout.parts]


@pytest.mark.parametrize("form", SPECIMENS)
def test_the_readers_agree_on_the_specimens(form: str) -> None:
    agree(SPECIMENS[form].make())


FRAME = [0, 4, 6, 0x18, 0x1A, *range(0x1C, 0x1C + 8 * 7, 8), *range(0x11C, 0x11C + 8 * 7, 8), 0x21C, 0x220]
PLACES = [*FRAME, *(part.offset + more for part in read_layout(BytesSource(GOOD)).parts for more in (0, 2, 4))]
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 12, 32, 33, HEADER, 560, len(GOOD), 1 << 31, (1 << 63) - 1])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from("HIQ"), NUMBERS), max_size=4),
    st.one_of(st.none(), st.integers(0, len(GOOD))),
    st.booleans(),
)
def test_the_readers_agree_on_changed_frames(
    patches: list[tuple[int, str, int]], cut: int | None, fix_crc: bool
) -> None:
    raw = bytearray(GOOD)
    for place, form, number in patches:
        limit = (1 << 8 * struct.calcsize(form)) - 1
        struct.pack_into(f">{form}", raw, place, number & limit)
    raw = raw[:cut]
    agree(with_crc(raw) if fix_crc and len(raw) > HEADER else bytes(raw))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=700))
@example(b"")
def test_any_bytes_raise_only_our_errors(raw: bytes) -> None:
    for data in (raw, b".eif\x00\x04" + raw, GOOD[:HEADER] + raw):
        try:
            look(data)
        except VeracruzError:
            continue


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SectionType), st.binary(max_size=40)), min_size=2, max_size=MAX_SECTIONS),
    st.booleans(),
)
def test_whatever_is_written_is_read_back(sections: list[tuple[SectionType, bytes]], aarch64: bool) -> None:
    raw = write_eif(sections, aarch64=aarch64)
    layout = read_layout(BytesSource(raw))
    assert [(part.type, raw[part.start : part.end]) for part in layout.parts] == sections
    assert layout.header.architecture == ("aarch64" if aarch64 else "x86_64")
    agree(raw)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=8))
def test_a_changed_signature_section_is_never_taken_for_good(position: int, patch: bytes) -> None:
    section = bytearray(sign())
    position %= len(section)
    section[position : position + len(patch)] = patch
    found = look(signed(bytes(section)))
    if not found.broken:  # another part of the certificate was changed, which PCR8 shows: its key still is the signer's
        assert found.signer is not None
        assert found.signer.certificate is not None
        assert found.signer.certificate.public_key() == make_certificate().public_key()


def test_sections_in_any_number_are_followed_within_bounds() -> None:
    raw = bytearray(GOOD + struct.pack(">HHQ", 3, 0, 0) * 100_000)
    found = look(with_crc(raw))
    nitro = found.loaders[2]
    assert nitro.takes is False
    assert "more than 1024" in nitro.why
    assert len(SECTIONS) == len(found.layout.parts)
