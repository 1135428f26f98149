# SPDX-License-Identifier: MIT
"""Reading packages without dpkg."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import pytest

from enclave_image.debian import parse_packages, read_ar_member, unpack
from enclave_image.errors import BuildFailed


def member(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
    return info, data


def deb(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes], data_name: str = "data.tar.xz") -> Path:
    """Write a package as dpkg-deb would: ar with debian-binary, control.tar.xz, data.tar.xz."""
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    out = b"!<arch>\n"
    parts = (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (data_name, lzma.compress(tree.getvalue())))
    for name, body in parts:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    path = tmp_path / "x_1_amd64.deb"
    path.write_bytes(out)
    return path


def test_unpacks_files_directories_and_links(tmp_path: Path) -> None:
    package = deb(
        tmp_path,
        member("./usr/", kind=tarfile.DIRTYPE, mode=0o700),
        member("./usr/bin/tool", b"run", mode=0o4755),
        member("./usr/bin/alias", kind=tarfile.SYMTYPE, link="tool"),
        member("./usr/bin/hard", kind=tarfile.LNKTYPE, link="./usr/bin/tool"),
        member("./usr/share/doc/x", b"text"),
    )
    root = tmp_path / "root"
    unpack(package, root, keep=lambda name: not name.startswith("usr/share/"))
    assert (root / "usr/bin/tool").read_bytes() == b"run"
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755  # no set-id bit survives
    assert (root / "usr/bin/alias").readlink() == Path("tool")
    assert (root / "usr/bin/hard").read_bytes() == b"run"
    assert not (root / "usr/share").exists()


@pytest.mark.parametrize("name", ["../escape", "./usr/../../escape", "/a/../../b"])
def test_refuses_a_path_that_leaves_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildFailed, match="leaves its root"):
        unpack(deb(tmp_path, member(name, b"x")), tmp_path / "root", keep=lambda name: True)


def test_refuses_a_device(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="neither file"):
        unpack(deb(tmp_path, member("dev/x", kind=tarfile.CHRTYPE)), tmp_path / "root", keep=lambda name: True)


def test_refuses_an_unknown_compression(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"expected data\.tar\.xz"):
        unpack(deb(tmp_path, data_name="data.tar.zst"), tmp_path / "root", keep=lambda name: True)


def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"<html>404</html>")
    with pytest.raises(BuildFailed, match="no Debian package"):
        read_ar_member(tmp_path / "x", "data.tar")


def test_reads_a_packages_index() -> None:
    index = (
        "Package: zlib1g\nVersion: 1:1.3-1\nSize: 88892\nFilename: pool/main/z/zlib1g.deb\n"
        "Depends: libc6\nSHA256: " + "a" * 64 + "\n\nPackage: broken\nVersion: 1\n"
    )
    (package,) = parse_packages(index)
    assert (package.name, package.version, package.size) == ("zlib1g", "1:1.3-1", 88892)
    assert package.path == "pool/main/z/zlib1g.deb"
