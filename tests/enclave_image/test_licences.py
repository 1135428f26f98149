# SPDX-License-Identifier: MIT
"""What packages say of themselves, what a security tracker says of them, and what decides a cached step."""

from __future__ import annotations

import ast
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import UsageError
from enclave_image.advisories import find_advisories, load_advisories
from enclave_image.application import imported_modules
from enclave_image.config import DEFAULT_DIR
from enclave_image.errors import MalformedConfig
from enclave_image.licences import parse_copyright, read_deb, read_wheel, spdx_name
from enclave_image.platform_half import find_origins, platform_key
from enclave_image.recipe import PLATFORM_STEP
from enclave_image.step_sources import find_sources

from .test_comparison import make_inventory

FORMAT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("Expat", "MIT"), ("GPL-2+", "GPL-2.0-or-later"), ("GPL-3", "GPL-3.0-only"), ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("BSD-3-clause", "BSD-3-Clause"), ("Apache-2.0", "Apache-2.0"), ("zlib", "Zlib"), ("SunPro", "SunPro"),
    ],
)  # fmt: skip
def test_uses_spdx_names_where_there_are_any(short: str, name: str) -> None:
    assert spdx_name(short) == name


def test_reads_a_machine_readable_copyright_file() -> None:
    text = f"{FORMAT}\nFiles: *\nLicense: Expat or GPL-2+\n\nFiles: x\nLicense: BSD-3-clause, and SunPro\n text\n"
    assert parse_copyright(text) == ("BSD-3-Clause", "GPL-2.0-or-later", "MIT", "SunPro")


def test_asserts_nothing_of_another_copyright_file() -> None:
    assert parse_copyright("This package was put together by...\nLicense: see below\n") == ()


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=100))
def test_any_text_is_read_or_left(text: str) -> None:
    assert isinstance(parse_copyright(FORMAT + text), tuple)
    spdx_name(text)


def make_deb(path: Path, control: str, files: dict[str, str], links: dict[str, str]) -> Path:
    def packed(entries: dict[str, str], symlinks: dict[str, str]) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for name, text in entries.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
            for name, target in symlinks.items():
                info = tarfile.TarInfo(f"./{name}")
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
        return lzma.compress(raw.getvalue())

    parts = b"!<arch>\n"
    members = {"debian-binary": b"2.0\n", "control.tar.xz": packed({"control": control}, {}),
               "data.tar.xz": packed(files, links)}  # fmt: skip
    for name, data in members.items():
        parts += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + bytes(len(data) % 2)
    path.write_bytes(parts)
    return path


def test_reads_a_package(tmp_path: Path) -> None:
    control = "Package: libssl3t64\nSource: openssl (3.5-1)\nVersion: 3.5-1+b2\n"
    deb = make_deb(
        tmp_path / "x.deb", control, {"usr/share/doc/libssl3t64/copyright": FORMAT + "License: Apache-2.0\n"}, {}
    )
    facts = read_deb(deb, "libssl3t64")
    assert (facts.source, facts.source_version) == ("openssl", "3.5-1")
    assert facts.licences.names == ("Apache-2.0",)
    assert facts.licences.text == "usr/share/doc/libssl3t64/copyright in x.deb"


def test_follows_no_link_to_another_packages_documentation(tmp_path: Path) -> None:
    deb = make_deb(tmp_path / "x.deb", "Version: 1\n", {}, {"usr/share/doc/libgcc-s1": "gcc-14-base"})
    facts = read_deb(deb, "libgcc-s1")
    assert (facts.source, facts.source_version, facts.licences.names) == ("libgcc-s1", "1", ())
    assert facts.licences.text == "the copyright file of the package gcc-14-base"


@pytest.mark.parametrize("sbom", ["", "[]", "{", '{"components": 5}', '{"components": [5, {"name": 1}]}', "[" * 10_000])
def test_a_wheels_odd_bill_of_materials_is_left(tmp_path: Path, sbom: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("x-1.dist-info/METADATA", "Name: x\nLicense-Expression: MIT OR ISC\n")
        wheel.writestr("x-1.dist-info/sboms/x.json", sbom)
    licences, bundled = read_wheel(tmp_path / "x.whl")
    assert (licences.names, bundled) == (("MIT OR ISC",), ())


def test_reads_what_a_wheel_bundles(tmp_path: Path) -> None:
    row = {"name": "pem", "version": "3", "purl": "pkg:cargo/pem@3", "licenses": [{"license": {"id": "MIT"}}]}
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("x-1.dist-info/METADATA", "Name: x\nLicense: MIT\n")
        wheel.writestr("x-1.dist-info/sboms/x.json", json.dumps({"components": [row, row]}))
    (bundled,) = read_wheel(tmp_path / "x.whl")[1]
    assert (bundled.name, bundled.licences) == ("pem", ("MIT",))


# --- advisories ---


def release(**fields: str) -> dict[str, object]:
    return {"releases": {"trixie": fields, "sid": {"status": "open"}}}


def test_lists_what_the_tracker_does_not_call_fixed() -> None:
    table = {
        "openssl": {
            "CVE-1": release(status="open", urgency="low"),
            "CVE-2": release(status="resolved", fixed_version="3.5.7-2", urgency="high"),
            "CVE-3": release(status="resolved", fixed_version="3.5.7-1"),
            "CVE-4": release(status="resolved", fixed_version="0"),
            "CVE-5": {"releases": {"sid": {"status": "open"}}},
            "CVE-6": {"releases": 5},
            "CVE-7": release(status="undetermined", urgency="not yet assigned"),
        },
        "linux": {"CVE-8": release(status="open", urgency="unimportant")},
        "absent": {"CVE-9": release(status="open")},
    }
    found = find_advisories(make_inventory(), table)
    assert [(row.name, row.status, row.fixed) for row in found] == [
        ("CVE-2", "fixed-later", "3.5.7-2"), ("CVE-1", "open", ""), ("CVE-7", "undetermined", ""),
        ("CVE-8", "open", ""),
    ]  # fmt: skip
    assert found[0].packages == ("libssl3t64",)


@pytest.mark.parametrize("raw", ["{", "[]", '{"openssl": 5}', "[" * 100_000])
def test_names_a_file_that_is_no_export_of_the_tracker(tmp_path: Path, raw: str) -> None:
    (tmp_path / "tracker.json").write_text(raw)
    with pytest.raises(MalformedConfig, match=r"tracker\.json"):
        load_advisories(tmp_path / "tracker.json")
    with pytest.raises(UsageError):
        load_advisories(tmp_path / "absent")


# --- what decides the platform ---


def test_the_platforms_key_takes_every_module_that_its_steps_import() -> None:
    names = {path.stem for path in find_sources(PLATFORM_STEP)}
    assert names >= {"platform_half", "rootfs", "initramfs", "debian", "toolchain", "run"}
    assert not names & {"cli", "fetch", "download", "resolve", "cache", "config", "lock", "recipe"}
    for path in find_sources(PLATFORM_STEP):
        for name in imported_modules(f"enclave_image.{path.stem}"):
            assert name.rpartition(".")[2] in names | {"errors"} or not name.startswith("enclave_image.")


def test_a_change_to_any_of_them_is_another_platform(tmp_path: Path) -> None:
    trim, init = DEFAULT_DIR / "trim.list", tmp_path / "init"
    init.write_bytes(b"x")

    def key(*sources: Path, level: int = 9) -> str:
        return platform_key(["a"], trim=trim, init=init, level=level, sources=sources)

    sources = find_sources(PLATFORM_STEP)
    changed = tmp_path / "rootfs.py"
    changed.write_bytes(next(path for path in sources if path.stem == "rootfs").read_bytes() + b"\n# more\n")
    others = [changed if path.stem == "rootfs" else path for path in sources]
    assert key(*sources) == key(*sources)
    assert len({key(*sources), key(*others), key(*sources, level=8)}) == 3


def test_no_step_of_the_recipe_reads_the_clock() -> None:
    """What is not read cannot get into the product. Kernel and download measure how long they take, and no more."""
    for path in find_sources("enclave_image.recipe"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {
                    ("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"),
                    ("datetime", "today"), ("time", "localtime"), ("time", "gmtime"), ("date", "today"),
                }, path  # fmt: skip


def test_a_compiled_file_comes_from_where_its_source_came() -> None:
    tree = {"a.pyc": 1, "b.so": 1, "made": 1, "usr": None}
    assert find_origins(tree, {"a.py": "x.deb", "b.so": "y.whl", "gone.py": "x.deb"}) == {
        "a.pyc": "x.deb",
        "b.so": "y.whl",
    }
