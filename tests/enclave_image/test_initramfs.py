# SPDX-License-Identifier: MIT
"""The cpio writer: bytes that depend on names, modes and contents alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from enclave_image.initramfs import File, Link, Tree, read_tree, write_cpio

TREE: Tree = {
    "init": File(b"\x7fELF", executable=True),
    "usr/lib/a.py": File(b"x"),
    "lib": Link("usr/lib"),
    "dev": None,
}


def records(archive: bytes) -> list[tuple[str, int, int, int, bytes]]:
    """Read a newc archive by the format's own description: (name, inode, mode, nlink, data)."""
    found, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + (110 + fields[11] + 3) // 4 * 4
        data = archive[start : start + fields[6]]
        if name == "TRAILER!!!":
            return found
        assert (fields[2], fields[3], fields[5], fields[12]) == (0, 0, 0, 0)  # uid, gid, mtime, check
        found.append((name, fields[0], fields[1], fields[4], data))
        at = start + (fields[6] + 3) // 4 * 4


def test_writes_sorted_records_with_fixed_fields() -> None:
    assert records(write_cpio(TREE)) == [
        ("dev", 1, 0o040755, 2, b""),
        ("init", 2, 0o100755, 1, b"\x7fELF"),
        ("lib", 3, 0o120777, 1, b"usr/lib"),
        ("usr", 4, 0o040755, 2, b""),
        ("usr/lib", 5, 0o040755, 2, b""),
        ("usr/lib/a.py", 6, 0o100644, 1, b"x"),
    ]


def test_is_padded_to_its_block() -> None:
    assert len(write_cpio(TREE)) % 512 == 0


def test_order_of_the_tree_does_not_matter() -> None:
    assert write_cpio(dict(reversed(TREE.items()))) == write_cpio(TREE)


def test_a_file_cannot_also_be_a_directory() -> None:
    with pytest.raises(ValueError, match="usr is a directory"):
        write_cpio({"usr": File(b""), "usr/lib": None})


def test_the_hosts_times_owners_and_modes_do_not_matter(tmp_path: Path) -> None:
    for name, mode, stamp in (("a", 0o600, 1), ("b", 0o664, 2)):
        root = tmp_path / name
        (root / "d").mkdir(parents=True, mode=0o700)
        (root / "d/f").write_bytes(b"data")
        (root / "d/f").chmod(mode)
        os.utime(root / "d/f", (stamp, stamp))
    assert write_cpio(read_tree(tmp_path / "a")) == write_cpio(read_tree(tmp_path / "b"))


def test_refuses_what_an_image_must_not_hold(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo"):
        read_tree(tmp_path)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_itself_reads_it() -> None:
    done = subprocess.run(["cpio", "-it", "--quiet"], input=write_cpio(TREE), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["dev", "init", "lib", "usr", "usr/lib", "usr/lib/a.py"]
