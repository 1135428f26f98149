# SPDX-License-Identifier: MIT
"""`image build --from-oci` as a user meets it: what is refused before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from host_shim.cli import main

from .layouts import Layout, make_tar, member


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    layout = Layout()
    layout.add([make_tar(member("app", b"x"))], architecture="arm64")
    return layout.write(tmp_path / "layout")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--from-oci", "LAYOUT", "--sbom", "OUT.json"], 2, "--sbom is not for --from-oci"),
        (["--from-oci", "LAYOUT", "--manifest", "OUT.json"], 2, "--manifest is not for --from-oci"),
        (["--platform", "linux/amd64"], 2, "--platform is for --from-oci"),
        (["--from-oci", "LAYOUT"], 2, "not there for this platform; expected linux/amd64"),
        (["--from-oci", "LAYOUT", "--platform", "linux/arm64"], 2, "kernel is for another platform"),
        (["--from-oci", "nowhere"], 2, "cannot read the container image nowhere"),
    ],
)
def test_says_what_does_not_go_and_writes_nothing(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, says: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = {"LAYOUT": str(layout), "OUT.json": str(out / "more.json")}
    options = [words.get(word, word) for word in options]
    assert main(["image", "build", "--out", str(out / "image.eif"), "--offline", *options]) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert list(out.iterdir()) == []
