# SPDX-License-Identifier: MIT
"""Ramdisks: read as the kernel does, in every packing, within limits; damage raises only our errors."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import random
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import EnvironmentLacks
from enclave_image.eif import SectionType
from enclave_image.eif_tool import decompression
from enclave_image.eif_tool.cpio_reader import Budget, read_ramdisk
from enclave_image.eif_tool.decompression import Feed, Packing, find_packing
from enclave_image.eif_tool.layout import BytesSource, Part
from enclave_image.eif_tool.ramdisk_files import Index, index_ramdisk
from enclave_image.errors import MalformedRamdisk
from enclave_image.initramfs import File, Link, Node, Tree, write_cpio

TREE: Tree = {"init": File(b"\x7fELF", executable=True), "etc/a": File(b"x" * 70_000), "lib": Link("usr/lib")}
PACKERS = {
    Packing.NONE: lambda raw: raw,
    Packing.GZIP: lambda raw: gzip.compress(raw, 1),
    Packing.BZIP2: bz2.compress,
    Packing.XZ: lambda raw: lzma.compress(raw, lzma.FORMAT_XZ, preset=0),
    Packing.LZMA: lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE, preset=0),
    Packing.ZSTD: zstd.compress,
}


def read(raw: bytes, budget: Budget | None = None) -> Index:
    part = Part(3, 0, len(raw), SectionType.RAMDISK, 0, len(raw), len(raw), whole=True)
    return index_ramdisk(BytesSource(bytes(12) + raw), part, budget or Budget())


def member(name: str, data: bytes = b"", *, mode: int = 0o100644, inode: int = 1, links: int = 1) -> bytes:
    """Return one archive member, as any tool may write it."""
    encoded = name.encode("utf-8", "surrogateescape") + b"\0"
    fields = (inode, mode, 5, 6, links, 7, len(data), 0, 0, 8, 9, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


END = member("TRAILER!!!", mode=0)


@pytest.mark.parametrize("packing", PACKERS)
def test_reads_every_packing(packing: Packing) -> None:
    raw = PACKERS[packing](write_cpio(TREE))
    assert find_packing(raw[:8]) is packing
    index = read(raw)
    assert set(index) == {"init", "etc", "etc/a", "lib"}
    assert index["etc/a"].sha256 == hashlib.sha256(b"x" * 70_000).hexdigest()
    assert index["init"].permissions == "0755"
    assert index["lib"].target == "usr/lib"


def test_reads_archives_one_after_the_other_whatever_their_packing() -> None:
    trees: list[Tree] = [{f"file{number}": File(b"%d" % number)} for number in range(len(PACKERS))]
    raw = b"".join(pack(write_cpio(tree)) + bytes(512) for tree, pack in zip(trees, PACKERS.values(), strict=True))
    assert set(read(raw)) == {f"file{number}" for number in range(len(PACKERS))}


def test_two_archives_in_one_compressed_member() -> None:
    raw = gzip.compress(write_cpio({"a": File(b"1")}) + write_cpio({"b": File(b"2")}))
    assert set(read(raw)) == {"a", "b"}


def test_the_last_entry_of_a_path_counts_however_it_is_written() -> None:
    raw = member("/etc//passwd", b"old") + member("./etc/passwd", b"new") + END
    assert read(raw)["etc/passwd"].sha256 == hashlib.sha256(b"new").hexdigest()


def test_names_of_one_file_share_its_data() -> None:
    raw = member("a", links=3, inode=9) + member("b", links=3, inode=9) + member("c", b"data", links=3, inode=9) + END
    index = read(raw)
    assert {record.sha256 for record in index.values()} == {hashlib.sha256(b"data").hexdigest()}
    assert {record.size for record in index.values()} == {4}


def test_a_path_that_another_file_replaced_shares_nothing() -> None:
    raw = member("a", links=2, inode=9) + member("a", b"other") + member("b", b"data", links=2, inode=9) + END
    assert read(raw)["a"].sha256 == hashlib.sha256(b"other").hexdigest()


def test_knows_owner_time_and_device() -> None:
    index = read(member("a") + member("dev/null", mode=0o020666) + END)
    assert (index["a"].uid, index["a"].gid, index["a"].mtime, index["a"].device) == (5, 6, 7, (0, 0))
    assert (index["dev/null"].kind, index["dev/null"].device) == ("character device", (8, 9))
    assert read(write_cpio({"dev/null": Node(1, 3, 0o666)}))["dev/null"].device == (1, 3)


DAMAGED = {
    "another form": (b"hello", "neither a cpio"),
    "lz4": (b"\x02\x21\x4c\x18" + bytes(9), "compressed with lz4"),
    "no trailer": (member("a"), "truncated"),
    "cut in a name": (member("a" * 90)[:120], "without its end"),
    "cut in data": (member("a", b"x" * 90)[:130], "data is truncated"),
    "no hex": (b"070701" + b"x" * 110, "no hex number"),
    "spaces for hex": (b"070701" + b" " * 104 + b"a\0\0\0", "no hex number"),
    "an old format": (b"070707" + b"0" * 110, "not the start"),
    "a name of no byte": (member("").replace(b"00000001" + b"00000000" + b"\0", b"0" * 16), "size of a name"),
    "a name of 5,000 bytes": (member("a" * 5000) + END, "size of a name"),
    "a link target of 5,000 bytes": (member("a", b"x" * 5000, mode=0o120777) + END, "target is too long"),
    "gzip cut": (gzip.compress(random.Random(1).randbytes(90_000))[:-20], "not the start|truncated"),
    "gzip of a whole archive, cut": (gzip.compress(write_cpio(TREE))[:-4], "truncated"),
    "gzip with one byte changed": (gzip.compress(write_cpio(TREE), 0)[:-6] + b"xxxxxx", "damaged"),
    "zstd cut": (zstd.compress(write_cpio(TREE))[:-3], "truncated"),
    "zstd damaged": (b"\x28\xb5\x2f\xfd" + b"\xff" * 60, "damaged"),
    "a zstd window of 2 GiB": (b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(60), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_names_the_place_of_damage(name: str) -> None:
    raw, words = DAMAGED[name]
    with pytest.raises(MalformedRamdisk, match=words) as caught:
        read(raw)
    assert caught.value.what.startswith("section 3 (ramdisk): ")


@pytest.mark.parametrize("packing", [Packing.GZIP, Packing.ZSTD, Packing.XZ, Packing.BZIP2])
def test_a_bomb_ends_at_the_budget_in_little_memory(packing: Packing) -> None:
    archive = member("zeros", bytes(48 << 20)) + END
    raw = PACKERS[packing](archive)
    assert len(raw) < 300_000
    del archive
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRamdisk, match="too large unpacked"):
            read(raw, Budget(unpacked=40 << 20))
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_entries_archives_and_names_are_limited() -> None:
    with pytest.raises(MalformedRamdisk, match="hold too much"):
        read(b"".join(member(f"{n}") for n in range(20)) + END, Budget(entries=10))
    with pytest.raises(MalformedRamdisk, match="hold too much"):
        read(gzip.compress(END) * 20, Budget(entries=10))
    with pytest.raises(MalformedRamdisk, match="hold too much"):
        read(member("a" * 4000) * 3 + END, Budget(names=10_000))


@pytest.mark.parametrize(
    "nothing",
    [zstd.compress(b""), gzip.compress(b"", mtime=0), bz2.compress(b""), lzma.compress(b"")],
    ids=["zstd", "gzip", "bzip2", "xz"],
)
def test_compressed_members_with_nothing_in_them_are_limited(nothing: bytes) -> None:
    read(nothing * 10, Budget(entries=10))
    with pytest.raises(MalformedRamdisk, match="too much"):
        read(nothing * 11, Budget(entries=10))


def test_many_tiny_archives_take_time_in_proportion() -> None:
    """No archive copies what follows it: that would be 5 GB here."""
    count = 4_000
    assert read(gzip.compress(END) * count + member("last") + END, Budget()).keys() == {"last"}
    assert read(END * 30_000 + member("last") + END, Budget()).keys() == {"last"}


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
            lambda name: name not in (".", "..", "TRAILER!!!")
        ),
        st.binary(max_size=300),
        max_size=8,
    ),
    st.sampled_from(list(PACKERS)),
)
def test_what_the_writer_writes_is_read_back(files: dict[str, bytes], packing: Packing) -> None:
    index = read(PACKERS[packing](write_cpio({name: File(data) for name, data in files.items()})))
    assert {name: record.sha256 for name, record in index.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(PACKERS)),
    st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=6)), max_size=3),
    st.integers(0, 4000),
)
def test_any_damage_raises_only_our_error(packing: Packing, patches: list[tuple[int, bytes]], cut: int) -> None:
    tree: Tree = {"a": File(b"x" * 300), "b": Link("a"), "c/d": File(bytes(range(256)))}
    raw = bytearray(PACKERS[packing](write_cpio(tree)))
    for place, patch in patches:
        place %= len(raw)
        raw[place : place + len(patch)] = patch
    try:
        read(bytes(raw[: len(raw) - cut % len(raw)]), Budget(unpacked=1 << 22))
    except MalformedRamdisk:
        return


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.lists(st.integers(1, 50), min_size=1))
def test_a_feed_gives_the_same_bytes_in_any_portions(data: bytes, portions: list[int]) -> None:
    def pieces() -> Iterator[bytes]:
        for at in range(0, len(data), 7):
            yield data[at : at + 7]

    feed, taken = Feed(pieces()), b""
    for portion in portions:
        part = feed.take(portion)
        feed.give_back(len(part) // 2)
        taken += part[: len(part) - len(part) // 2]
        assert feed.position == len(taken)
    assert data.startswith(taken)


def test_what_is_not_asked_for_is_skipped() -> None:
    entries = [entry.name for entry, _ in read_ramdisk(iter([write_cpio(TREE)]), Budget())]
    assert entries == ["etc", "etc/a", "init", "lib"]


def test_without_a_module_for_zstd_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    decompression._zstd.cache_clear()
    for name in ("compression", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("backports.zstd")
    with pytest.raises(EnvironmentLacks, match="no module for zstd") as caught:
        read(zstd.compress(write_cpio(TREE)))
    assert "pip install" in (caught.value.hint or "")
    assert read(gzip.compress(write_cpio(TREE)))
