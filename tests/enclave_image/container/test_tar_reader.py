# SPDX-License-Identifier: MIT
"""The tar reader: what Python's tarfile writes it reads back, what is damaged or ambiguous it refuses."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_image.container import tar_reader
from enclave_image.container.tar_reader import Budget, Kind, Member, read_tar
from enclave_image.eif_tool.layout import BytesSource
from enclave_image.errors import MalformedContainer

from .layouts import folder, hard, link, make_tar, member

GOOD = make_tar(
    folder("d"), member("d/file", b"data", mode=0o4755, uid=7, gid=8), link("l", "d/file"), hard("h", "d/file")
)
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150).filter(
    lambda name: not name.endswith("/")
)


def read(raw: bytes) -> list[Member]:
    return list(read_tar(BytesSource(raw), Budget()))


def test_reads_every_kind_with_mode_owner_and_place() -> None:
    d, file, symbolic, hard_link = read(GOOD)
    assert (d.name, d.kind, d.mode) == ("d/", Kind.DIRECTORY, 0o755)
    assert (file.kind, file.mode, file.uid, file.gid, file.size) == (Kind.FILE, 0o4755, 7, 8, 4)
    assert GOOD[file.offset : file.offset + 4] == b"data"
    assert (symbolic.kind, symbolic.target) == (Kind.SYMBOLIC_LINK, "d/file")
    assert (hard_link.kind, hard_link.target, hard_link.size) == (Kind.HARD_LINK, "d/file", 0)


@settings(max_examples=60)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=700), st.integers(0, 0o7777), st.integers(0, 2**31)), max_size=5),
       st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))  # fmt: skip
def test_reads_back_what_pythons_tarfile_writes(files: list[tuple[str, bytes, int, int]], form: int) -> None:
    raw = make_tar(*(member(name, data, mode=mode, uid=uid) for name, data, mode, uid in files), form=form)
    found = read(raw)
    assert [(m.name, m.mode, m.uid, m.size) for m in found] == [(n, mode, uid, len(d)) for n, d, mode, uid in files]
    assert [raw[m.offset : m.offset + m.size] for m in found] == [data for _, data, _, _ in files]


@settings(max_examples=150)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255), st.integers(0, len(GOOD)))
def test_damage_gives_its_error_or_other_members_and_nothing_else(place: int, flip: int, length: int) -> None:
    raw = bytearray(GOOD)
    raw[place] ^= flip
    for damaged in (bytes(raw), GOOD[:length], bytes(raw[:length])):
        try:
            for found in read(damaged):
                assert found.offset + found.size <= len(damaged)
        except MalformedContainer:
            pass


@settings(max_examples=100)
@given(st.binary(max_size=1600))
def test_takes_any_bytes(raw: bytes) -> None:
    with contextlib.suppress(MalformedContainer):
        read(raw)


@pytest.mark.parametrize("form", FORMS, ids=["ustar", "gnu", "pax"])
def test_reads_long_names_in_each_form(form: int) -> None:
    name = "/".join(["directory" * 5] * 3) + "/name" if form == tarfile.USTAR_FORMAT else "n" * 300
    (found,) = read(make_tar(member(name, b"x"), form=form))
    assert found.name == name


def test_names_extended_attributes() -> None:
    (found,) = read(make_tar(member("f", pax_headers={"SCHILY.xattr.security.capability": "x"})))
    assert found.attributes == ("security.capability",)


def sealed(raw: bytes, at: int, new: bytes) -> bytes:
    """Change a header and make its checksum right again."""
    head = bytearray(raw[:512])
    head[at : at + len(new)] = new
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + raw[512:]


def global_header(**headers: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        tar.addfile(tarfile.TarInfo("f"))
    return out.getvalue()


PAX = make_tar(member("f", pax_headers={"comment": "abcdef"}))
ONE = make_tar(member("f", b"data"))
BAD: dict[str, tuple[bytes, str]] = {
    "checksum": (b"x" + ONE[1:], "checksum"),
    "truncated header": (ONE[:300], "truncated within a header"),
    "truncated data": (ONE[:514], "ends within a file"),
    "negative size": (sealed(ONE, 124, b"\xff" * 12), "size is negative"),
    "size of 2^90": (sealed(ONE, 124, b"\xbf" + b"\xff" * 11), "ends within a file"),
    "no number": (sealed(ONE, 108, b"12x4567\0"), "octal"),
    "unknown kind": (sealed(ONE, 156, b"S"), "kind of member"),
    "owner -1": (sealed(ONE, 108, b"\x80\0\0\0\xff\xff\xff\xff"), "owner"),
    "bytes behind the end": (ONE + b"x" * 512, "behind the end"),
    "pax length": (PAX.replace(b"18 comment", b"99 comment"), "wrong length"),
    "pax without end": (PAX.replace(b"abcdef\n", b"abcdefg"), "wrong length"),
    "pax header too long": (sealed(PAX, 124, b"00077777777\0"), "extended header"),
    "sparse": (make_tar(member("f", pax_headers={"GNU.sparse.major": "1"})), "sparse"),
    "global name": (global_header(path="other"), "global header sets path"),
    "size that is none": (make_tar(member("f", pax_headers={"size": "+4"})), "decimal"),
    "extension at the end": (make_tar(member("f", pax_headers={"path": "g"}))[:1024], "behind an extended header"),
    "NUL in a name": (make_tar(member("f", pax_headers={"path": "a\0b"})), "NUL"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_is_malformed_and_names_the_place(name: str) -> None:
    raw, says = BAD[name]
    with pytest.raises(MalformedContainer, match=says):
        read(raw)


def test_global_comments_do_no_harm() -> None:
    assert [found.name for found in read(global_header(comment="commit id"))] == ["f"]


@pytest.mark.parametrize(("limit", "value"), [("MAX_ENTRIES", 2), ("MAX_NAMES", 10)])
def test_members_and_names_are_limited_for_all_archives_together(limit: str, value: Any) -> None:
    budget = Budget(**{"entries" if limit == "MAX_ENTRIES" else "names": value})
    raw = make_tar(member("first"), member("second"))
    with pytest.raises(MalformedContainer, match="hold too much"):
        [list(read_tar(BytesSource(raw), budget)) for _ in range(2)]
    assert getattr(tar_reader, limit) > value
