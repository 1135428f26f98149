# SPDX-License-Identifier: MIT
"""`veracruz image diff` and `extract`: another measurement's cause is named, and nothing leaves the new directory."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestation.errors import UsageError
from enclave_image.eif import SectionType, read_eif, write_eif
from enclave_image.eif_tool.extract import extract
from enclave_image.eif_tool.layout import BytesSource
from enclave_image.initramfs import File, Link, Tree, write_cpio
from host_shim.cli import main

from .eif_specimens import CMDLINE, GOOD, IDENTITY, METADATA, RAMDISK, SECTIONS, gap, look, replaced, sign, signed
from .test_ramdisk_files import END, member

Capture = pytest.CaptureFixture[str]


def with_ramdisk(*archives: bytes) -> bytes:
    return write_eif(
        [*(section for section in SECTIONS if section[0] is not RAMDISK), *((RAMDISK, a) for a in archives)]
    )


@pytest.fixture
def diff(tmp_path: Path, capsys: Capture) -> object:
    def run(old: bytes, new: bytes, *words: str) -> tuple[int, str]:
        for name, raw in (("old.eif", old), ("new.eif", new)):
            (tmp_path / name).write_bytes(raw)
        code = main(["image", "diff", str(tmp_path / "old.eif"), str(tmp_path / "new.eif"), *words])
        return code, capsys.readouterr().out

    return run


def run_diff(diff: object, old: bytes, new: bytes, *words: str) -> tuple[int, str]:
    assert callable(diff)
    code, out = diff(old, new, *words)
    return code, out


def test_the_same_image_is_the_same(diff: object) -> None:
    assert run_diff(diff, GOOD, GOOD) == (0, "the same, byte for byte\n")
    assert json.loads(run_diff(diff, GOOD, GOOD, "--json")[1])["same"] is True


OLD: Tree = {"etc/motd": File(b"one\ntwo\n"), "bin/x": File(b"\x7fELF\0a", executable=True), "gone": File(b"g"),
             "link": Link("a")}  # fmt: skip
NEW: Tree = {"etc/motd": File(b"one\n\x1b[31m2\n"), "bin/x": File(b"\x7fELF\0b"), "fresh": File(b"f"),
             "link": Link("b")}  # fmt: skip


def test_names_each_file_that_differs(diff: object) -> None:
    first = SECTIONS[3][1]
    code, out = run_diff(
        diff, with_ramdisk(first, write_cpio(OLD)), with_ramdisk(first, gzip.compress(write_cpio(NEW)))
    )
    assert code == 1
    assert out.startswith("differ      PCR0, PCR2\nequal       PCR1\n")
    assert "ramdisk 0" not in out
    assert "\nramdisk 1   cpio -> gzip, " in out
    assert "1 added, 1 removed, 3 changed" in out
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines if line and line[0] in "ADM"] == [
        ["M", "bin/x"], ["M", "etc/motd"], ["A", "fresh"], ["D", "gone"], ["M", "link"],
    ]  # fmt: skip
    assert "mode -rwxr-xr-x -> -rw-r--r--" in out
    assert "target a -> b" in out
    assert "       -two\n" in out
    assert "\\x1b[31m2" in out
    assert "\x1b" not in out
    data = json.loads(
        run_diff(diff, with_ramdisk(first, write_cpio(OLD)), with_ramdisk(first, write_cpio(NEW)), "--json")[1]
    )
    (ramdisk,) = data["ramdisks"]
    fresh = next(one for one in ramdisk["files"] if one["path"] == "fresh")
    assert (fresh["change"], fresh["old"]) == ("added", None)
    assert fresh["new"]["sha256"] == hashlib.sha256(b"f").hexdigest()


def test_tells_words_metadata_signer_and_packing(diff: object) -> None:
    _, out = run_diff(diff, GOOD, replaced(CMDLINE, b"reboot=k quiet console=ttyS0"))
    assert "\ncmdline     - panic=30\n            + quiet\n" in out
    _, out = run_diff(diff, GOOD, replaced(METADATA, json.dumps(IDENTITY | {"ImageVersion": "2"}).encode()))
    assert out.startswith("differ      no register")
    assert "\nmetadata    ImageVersion: 1 -> 2\n" in out
    _, out = run_diff(diff, GOOD, signed(sign()))
    assert out.startswith("differ      PCR8\n")
    assert "\nsignature   - -> CN=specimen signer, " in out
    archive = SECTIONS[3][1]
    _, out = run_diff(diff, with_ramdisk(archive), with_ramdisk(gzip.compress(archive)))
    assert "the same files, packed otherwise" in out


@pytest.mark.parametrize(
    "other", [gap(b"abcd"), replaced(METADATA, json.dumps(IDENTITY, indent=1).encode())], ids=["gap", "spaces"]
)
def test_images_of_other_bytes_are_never_the_same(diff: object, other: bytes) -> None:
    code, out = run_diff(diff, gap(b"abce") if len(other) == len(gap()) else GOOD, other)
    assert code == 1
    assert len(out.splitlines()) > 1


@pytest.mark.parametrize("place", [0, 1])
def test_trouble_names_the_file_that_it_is_in(diff: object, place: int, capsys: Capture) -> None:
    pair = [GOOD, with_ramdisk(b"070701" + b"z" * 200)]
    code, out = run_diff(diff, pair[1 - place], pair[place], "--json")
    what = json.loads(out)["error"]["message"]
    assert code == 2
    assert (what.count("old.eif"), what.count("new.eif")) == ((0, 1) if place else (1, 0))


def test_trouble_is_exit_2(diff: object, tmp_path: Path) -> None:
    assert run_diff(diff, GOOD, b"no image")[0] == 2
    assert run_diff(diff, GOOD, with_ramdisk(b"070701 and no more"))[0] == 2


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c/d", "c/e"]), st.binary(max_size=9), max_size=4),
       st.dictionaries(st.sampled_from(["a", "b", "c/d", "c/e"]), st.binary(max_size=9), max_size=4))  # fmt: skip
def test_diff_names_exactly_what_differs(old: dict[str, bytes], new: dict[str, bytes]) -> None:
    from enclave_image.eif_tool.diff import Opened, compare

    raws = [with_ramdisk(write_cpio({name: File(data) for name, data in tree.items()})) for tree in (old, new)]
    change = compare(*(Opened(BytesSource(raw), look(raw), Path("x.eif")) for raw in raws))
    named = {one.path for ramdisk in change.ramdisks for one in ramdisk.files if one.path != "c"}
    assert named == {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    assert change.same == (old == new)


def test_extracts_sections_and_files(tmp_path: Path, capsys: Capture) -> None:
    image, out = tmp_path / "image.eif", tmp_path / "out"
    image.write_bytes(signed(sign()))
    assert main(["image", "extract", str(image), "--out", str(out), "--files"]) == 0
    assert capsys.readouterr().err.startswith(f"wrote {out}: ")
    read = read_eif(image.read_bytes())
    assert (out / "00-kernel.bin").read_bytes() == bytes(read.kernel)
    assert (out / "01-cmdline.txt").read_bytes() == read.cmdline
    assert (out / "02-metadata.json").read_bytes() == read.metadata
    assert (out / "03-ramdisk.cpio").read_bytes() == bytes(read.ramdisks[0])
    assert (out / "05-signature.cbor").read_bytes() == read.signature
    assert (out / "05-certificate.pem").read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    assert (out / "04-ramdisk/app/main.py").read_bytes() == b"print(1)\n"
    assert stat.S_IMODE((out / "03-ramdisk/init").stat().st_mode) & 0o111
    assert "app/main.py" in (out / "04-ramdisk.list").read_text()
    assert main(["image", "extract", str(image), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def extracted(tmp_path: Path, *archives: bytes) -> tuple[Path, dict[str, str]]:
    raw = with_ramdisk(*archives)
    result = extract(BytesSource(raw), look(raw), tmp_path / "out", files=True)
    return tmp_path / "out/03-ramdisk", result.left_out


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_nothing_leaves_the_directory(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    raw = b"".join([
        member("../../victim", b"evil"), member("/etc/passwd", b"root"), member("a/../../../victim", b"evil"),
        member("link", b"/", mode=0o120777), member("link/tmp/x", b"through a link"),
        member("dev/sda", mode=0o060666), member("pipe", mode=0o010666), member("suid", b"s", mode=0o104755),
        member("up", b"../..", mode=0o120777), member("up", b"file now"), END,
    ])  # fmt: skip
    folder, left_out = extracted(tmp_path, raw)
    assert (tmp_path / "victim").read_text() == "mine"
    assert (folder / "etc/passwd").read_bytes() == b"root"
    assert (folder / "link/tmp/x").read_bytes() == b"through a link"
    assert (folder / "up").read_bytes() == b"file now"
    assert stat.S_IMODE((folder / "suid").stat().st_mode) & 0o7000 == 0
    assert all(path.is_file() or path.is_dir() for path in everything(folder))
    assert not any(path.is_symlink() for path in everything(tmp_path))
    assert not (folder / "dev/sda").exists()
    assert {name.split("/")[-1] for name in left_out} == {"victim"}
    listing = (tmp_path / "out/03-ramdisk.list").read_text()
    assert "link -> /\n" in listing
    assert "dev/sda (device 8:9)" in listing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "victim"]


def test_entries_in_each_others_way_are_named(tmp_path: Path) -> None:
    raw = (
        member("a", b"file") + member("a/b", b"below a file") + member("c" * 300, b"long") + member("a", b"last") + END
    )
    folder, left_out = extracted(tmp_path, raw)
    assert (folder / "a").read_bytes() == b"last"
    assert sorted(name[11:] for name in left_out) == ["a/b", "c" * 300]


def test_names_of_one_file_are_one_file(tmp_path: Path) -> None:
    raw = member("a", links=3, inode=9) + member("d/b", links=3, inode=9) + member("c", b"data", links=3, inode=9) + END
    folder, left_out = extracted(tmp_path, raw)
    assert [(folder / name).read_bytes() for name in ("a", "d/b", "c")] == [b"data"] * 3
    assert not left_out


def test_a_damaged_ramdisk_leaves_nothing_behind(tmp_path: Path, capsys: Capture) -> None:
    image = tmp_path / "image.eif"
    image.write_bytes(with_ramdisk(member("a", b"x") + b"070701"))
    assert main(["image", "extract", str(image), "--out", str(tmp_path / "out"), "--files"]) == 2
    assert "section 3 (ramdisk)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["image.eif"]
    assert main(["image", "extract", str(image), "--out", str(tmp_path / "out")]) == 0


def test_what_the_machine_refuses_is_not_said_to_be_the_images(tmp_path: Path, capsys: Capture) -> None:
    image = tmp_path / "image.eif"
    image.write_bytes(GOOD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # less than its kernel
    try:
        assert main(["image", "extract", str(image), "--out", str(tmp_path / "out")]) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot write {tmp_path / 'out'}: File too large\n")
    assert "ulimit -f" in err
    assert not (tmp_path / "out").exists()
    assert main(["image", "extract", str(image), "--out", str(image)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {image} exists")
    assert "image build" not in err


def test_a_long_path_is_cut_in_a_warning_and_whole_in_json(tmp_path: Path, capsys: Capture) -> None:
    name = "d" * 300 + "/" + "f" * 300
    image = tmp_path / "image.eif"
    image.write_bytes(with_ramdisk(member(name, b"x") + END))
    assert main(["image", "extract", str(image), "--out", str(tmp_path / "out"), "--files", "--json"]) == 0
    captured = capsys.readouterr()
    assert max(map(len, captured.err.splitlines())) < 350
    assert [left.removeprefix("03-ramdisk/") for left in json.loads(captured.out)["left_out"]] == [name]


def test_a_link_at_the_target_is_no_new_directory(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists"):
        extract(BytesSource(GOOD), look(GOOD), tmp_path / "out", files=False)


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map("/".join)
MODES = st.sampled_from([0o100644, 0o100755, 0o040755, 0o120777, 0o020666])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NAMES, MODES, st.sampled_from([b"", b"x", b"../a", b"/etc"]), st.integers(1, 2)), max_size=8))
def test_whatever_is_in_a_ramdisk_files_are_those_of_the_listing(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int, bytes, int]]
) -> None:
    base = tmp_path_factory.mktemp("x")
    raw = b"".join(member(name, data, mode=mode, links=links) for name, mode, data, links in entries) + END
    folder, _ = extracted(base, raw)
    assert [path.name for path in base.iterdir()] == ["out"]
    listed = (base / "out/03-ramdisk.list").read_text().splitlines()
    hashes = {line.split(None, 4)[4]: line.split(None, 4)[3] for line in listed if len(line.split(None, 4)) == 5}
    for path in everything(folder):
        assert not path.is_symlink()
        name = path.relative_to(folder).as_posix()
        if path.is_file() and os.fspath(name) in hashes:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == hashes[name]


def test_sections_of_unknown_types_have_a_name(tmp_path: Path) -> None:
    raw = bytearray(GOOD)
    raw[548:550] = b"\0\x09"
    found = look(bytes(raw))
    extract(BytesSource(bytes(raw)), found, tmp_path / "out", files=False)
    assert (tmp_path / "out/00-type-9.bin").exists()
    assert SectionType.KERNEL not in [part.type for part in found.layout.parts]
