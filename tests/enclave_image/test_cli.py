# SPDX-License-Identifier: MIT
"""`veracruz image` as a user meets it: output, errors, exit codes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.eif import SectionType, write_eif
from host_shim.cli import main

IMAGE = write_eif(
    [
        (SectionType.KERNEL, b"kernel"),
        (SectionType.CMDLINE, b"console=ttyS0"),
        (SectionType.METADATA, b"{}"),
        (SectionType.RAMDISK, b"boot"),
        (SectionType.RAMDISK, b"application"),
    ]
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.eif"
    path.write_bytes(IMAGE)
    return path


def test_describes_an_image_under_nitro_clis_names(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "describe", str(image), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["Measurements"]) == {"HashAlgorithm", "PCR0", "PCR1", "PCR2"}
    assert [row["type"] for row in data["sections"]] == ["kernel", "cmdline", "metadata", "ramdisk", "ramdisk"]
    assert data["command_line"] == "console=ttyS0"
    assert data["signed"] is False


def test_describes_an_image_in_words(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "describe", str(image)]) == 0
    out = capsys.readouterr().out
    assert "PCR0  " in out
    assert "console=ttyS0" in out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"\x7fELF" + raw, "no EIF"),
        (lambda raw: b"", "too short"),
        (lambda raw: b"\x1b[31m" * 200, "no EIF"),
    ],
    ids=["another file", "empty", "terminal codes"],
)
def test_what_is_no_image_is_named_with_its_fault(
    image: Path, capsys: pytest.CaptureFixture[str], damage: object, words: str
) -> None:
    assert callable(damage)
    image.write_bytes(damage(IMAGE))
    assert main(["image", "describe", str(image)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert str(image) in err
    assert "hint: " in err
    assert "Traceback" not in err
    assert "\x1b[31m" not in err


@pytest.mark.parametrize(
    ("damage", "slug"),
    [(lambda raw: raw[:-3], "section-truncated"), (lambda raw: raw[:562] + b"X" + raw[563:], "crc-mismatch")],
    ids=["truncated", "corrupt"],
)
def test_a_damaged_image_is_described_with_its_fault(
    image: Path, capsys: pytest.CaptureFixture[str], damage: object, slug: str
) -> None:
    assert callable(damage)
    image.write_bytes(damage(IMAGE))
    assert main(["image", "describe", str(image)]) == 1
    assert f"\nerror: {slug}: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["absent.eif", "folder", "/dev/zero"])
def test_what_is_no_file_is_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "folder").mkdir()
    assert main(["image", "describe", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert name in err


@pytest.mark.parametrize(
    ("option", "name", "code"),
    [("--out", "folder", 2), ("--out", "pipe", 2), ("--out", "no/such/x", 3), ("--measurements", "folder", 2),
     ("--measurements", "x.eif", 2)],
)  # fmt: skip
def test_where_nothing_can_be_written_nothing_is_built(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    name: str,
    code: int,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    options = {"--out": str(tmp_path / "x.eif")} | {option: str(tmp_path / name)}
    assert main(["image", "build", *(word for pair in options.items() for word in pair)]) == code
    assert name in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_offline_with_an_empty_cache_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "image.eif"
    assert main(["image", "build", "--out", str(out), "--offline"]) == 3
    assert "linux-source-6.12" in capsys.readouterr().err
    assert not out.exists()


def test_a_lock_that_was_tampered_with_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(DEFAULT_DIR, tmp_path / "config")
    lock = tmp_path / "config/enclave.lock"
    lock.write_text(lock.read_text().replace('sha256 = "', 'sha256 = "zz', 1))
    words = ["image", "build", "--out", str(tmp_path / "x.eif"), "--config", str(tmp_path / "config"), "--json"]
    assert main(words) == 2
    assert json.loads(capsys.readouterr().out)["error"]["slug"] == "malformed-config"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "kernel"], "--out kernel would replace what it is made from: kernel"),
        (["--out", "link"], "--out link would replace"),
        (
            ["--out", "x.eif", "--measurements", "config/enclave.lock"],
            "config/enclave.lock would replace",
        ),
        (["--out", "config/kernel.fragment"], "would replace"),
        (["--out", "config/patches/vsock-replies.patch"], "would replace"),
        (["--out", "hard.patch"], "--out hard.patch would replace what it is made from: config/own.patch"),
        (["--out", "config/kernel-minimal.fragment", "--kernel-config", "minimal"], "would replace"),
        (["--lock", "other.lock", "--out", "other.lock"], "would replace"),
        (["--out", "x.eif", "--from-oci", "layout", "--measurements", "layout/blobs/sha256/a"], "would replace"),
        (["--out", "x.eif", "--sbom", "./x.eif"], "--out and --sbom name the same file"),
        (["--out", "x.eif", "--manifest", "config/../x.eif"], "--out and --manifest name the same file"),
        (["--out", "kernel2", "--measurements", "config/../kernel2"], "--out and --measurements name the same file"),
    ],
)
def test_no_output_is_an_input_or_another_output(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEFAULT_DIR, "config")
    Path("kernel").write_bytes(b"a kernel")
    Path("kernel2").hardlink_to("kernel")
    shutil.copyfile("config/enclave.lock", "other.lock")
    shutil.copyfile("config/patches/vsock-replies.patch", "config/own.patch")  # any name beside image.toml will do
    Path("hard.patch").hardlink_to("config/own.patch")
    table = (settings := Path("config/image.toml")).read_text()
    (patch,) = load_config().kernel_patches
    settings.write_text(f'{table}\n[[kernel_patches]]\nfile = "own.patch"\nsha256 = "{patch.sha256}"\n')
    Path("link").symlink_to("kernel")
    Path("layout/blobs/sha256").mkdir(parents=True)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    options = ["--config", "config", "--offline", *(["--kernel", "kernel"] if words[1] in ("kernel", "link") else [])]
    assert main(["image", "build", *options, *words]) == 2
    assert says in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
