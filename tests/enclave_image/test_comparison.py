# SPDX-License-Identifier: MIT
"""Where an image differs from our own build, and which input that comes from; small images of plain cpio archives."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.measurements import Measurements
from enclave_image.audit import audit_image
from enclave_image.comparison import Comparison, Fault, compare_images, kernel_version
from enclave_image.eif import Eif, SectionType, read_eif, write_eif
from enclave_image.errors import MalformedRamdisk
from enclave_image.initramfs import File, Link, Node, Tree, write_cpio
from enclave_image.inventory import INIT_SOURCE, Component, Inventory, Kind, dump_inventory, record
from enclave_image.kernel import INIT_SOURCES
from enclave_image.reproduce_cli import verdict
from host_shim.cli import main

from .eif_specimens import GOOD

BOOT: Tree = {
    "init": File(b"static", executable=True),
    "usr/lib/libssl.so.3": File(b"ssl"),
    "usr/lib/libssl.so": Link("libssl.so.3"),
}
APP: Tree = {"app/start.pyc": File(b"start"), "app/enclave_image/runtime/server.pyc": File(b"server")}
NAMED = {"usr/lib/libssl.so.3": "libssl3t64", "usr/lib/libssl.so": "libssl3t64"}


def make_image(boot: Tree = BOOT, app: Tree = APP, *, kernel: bytes = b"kernel", cmdline: bytes = b"quiet panic=1",
               metadata: bytes = b"{}", signature: bytes | None = None, extra: Tree | None = None) -> Eif:  # fmt: skip
    sections = [
        (SectionType.KERNEL, kernel), (SectionType.CMDLINE, cmdline), (SectionType.METADATA, metadata),
        (SectionType.RAMDISK, write_cpio(boot)), (SectionType.RAMDISK, write_cpio(app)),
    ]  # fmt: skip
    sections += [(SectionType.RAMDISK, write_cpio(extra))] if extra else []
    sections += [(SectionType.SIGNATURE, signature)] if signature else []
    return read_eif(write_eif(sections))


def make_inventory(boot: Tree = BOOT, app: Tree = APP) -> Inventory:
    components = (
        Component(Kind.OWN, "veracruz", "0.1.0", ("MIT",), "LICENSE"),
        Component(Kind.DEBIAN, "libssl3t64", "3.5.7-1", ("Apache-2.0",), "x", "a" * 64, 5, "libssl3t64_3.5.7-1.deb",
                  source="openssl", source_version="3.5.7-1", security=True),
        Component(Kind.KERNEL, "linux-source-6.12", "6.12.117-1", (), "x", source="linux", source_version="6.12.117-1"),
    )  # fmt: skip
    files = [
        record(
            path, entry, ramdisk=0, component=NAMED.get(path, "veracruz"), source=INIT_SOURCE if path == "init" else ""
        )
        for path, entry in boot.items()
    ]
    files += [
        record(path, e, ramdisk=1, component="veracruz", source=path.removeprefix("app/")[:-1])
        for path, e in app.items()
    ]
    for number, names in enumerate((("usr", "usr/lib"), ("app", "app/enclave_image", "app/enclave_image/runtime"))):
        files += [record(name, None, ramdisk=number, component="veracruz") for name in names]
    return Inventory("veracruz", "b" * 64, Measurements(b"\1" * 48, b"\2" * 48, b"\3" * 48), "0.1.0", 1767225600,
                     "trixie", components, tuple(files))  # fmt: skip


def compare(theirs: Eif) -> Comparison:
    return compare_images(theirs, make_image(), make_inventory())


def test_the_same_image_is_reproduced() -> None:
    done = compare(make_image())
    assert done.reproduced
    assert all(row.same for row in done.sections)
    assert done.files == ()
    assert done.causes == ()


@pytest.mark.parametrize(
    "theirs",
    [make_image(signature=b"signed"), make_image(metadata=b'{"ImageName":"theirs"}')],
    ids=["signed", "metadata"],
)
def test_what_nothing_measures_is_told_and_does_not_decide(theirs: Eif) -> None:
    done = compare(theirs)
    assert done.reproduced
    (row,) = [row for row in done.sections if not row.same]
    assert not row.measured


def test_a_signature_is_not_said_to_be_measured_by_nothing() -> None:
    line = verdict(compare(make_image(signature=b"signed")), whole=False)
    assert line.startswith("reproduced")
    assert "signature (PCR8 stands for its signer: not compared)" in line


def test_a_file_is_named_with_the_package_that_it_comes_from() -> None:
    done = compare(make_image({**BOOT, "usr/lib/libssl.so.3": File(b"evil")}))
    assert not done.reproduced
    assert [(row.ramdisk, row.path, row.fault) for row in done.files] == [(0, "usr/lib/libssl.so.3", Fault.CONTENT)]
    assert done.files[0].origin == "libssl3t64 3.5.7-1 (libssl3t64_3.5.7-1.deb)"
    assert [name for name, theirs, ours in done.registers if theirs != ours] == ["PCR0", "PCR1"]


def test_our_own_source_file_is_named() -> None:
    done = compare(make_image(app={**APP, "app/enclave_image/runtime/server.pyc": File(b"other")}))
    assert done.causes == ("1 file: enclave_image/runtime/server.py",)
    assert [name for name, theirs, ours in done.registers if theirs != ours] == ["PCR0", "PCR2"]


@pytest.mark.parametrize(
    ("change", "path", "fault"),
    [
        (lambda t: t.update({"usr/lib/more": File(b"x")}), "usr/lib/more", Fault.ADDED),
        (lambda t: t.pop("usr/lib/libssl.so"), "usr/lib/libssl.so", Fault.MISSING),
        (lambda t: t.update({"usr/lib/libssl.so": Link("/tmp/x")}), "usr/lib/libssl.so", Fault.CONTENT),
        (lambda t: t.update({"usr/lib/libssl.so": File(b"x")}), "usr/lib/libssl.so", Fault.KIND),
        (lambda t: t.update({"usr/lib/libssl.so.3": Node(1, 3, 0o666)}), "usr/lib/libssl.so.3", Fault.KIND),
        (lambda t: t.update({"usr/lib/libssl.so.3": File(b"ssl", executable=True)}), "usr/lib/libssl.so.3", Fault.MODE),
    ],
)
def test_every_kind_of_difference_is_told(change: Callable[[Tree], object], path: str, fault: Fault) -> None:
    boot = dict(BOOT)
    change(boot)
    done = compare(make_image(boot))
    assert [(row.path, row.fault) for row in done.files] == [(path, fault)]
    if fault is Fault.ADDED:
        assert done.files[0].origin == "nothing in this checkout or its lock"


def test_kernel_and_command_line_name_their_inputs() -> None:
    head = bytearray(2048)
    head[0x1FE:0x200], head[0x202:0x206], head[0x20E:0x210] = b"\x55\xaa", b"HdrS", (0x300).to_bytes(2, "little")
    head[0x500:0x50C] = b"6.9-evil\x1b[0m"
    done = compare(make_image(kernel=bytes(head), cmdline=b"quiet init=/bin/sh"))
    assert done.causes[0].startswith("kernel: theirs says 6.9-evil\\x1b[0m, ours unknown; ours comes from linux-source")
    assert done.causes[1] == "command line (image.toml): only theirs: init=/bin/sh; only ours: panic=1"
    assert kernel_version(memoryview(b"")) == "unknown"


def test_another_packing_of_the_same_files_is_told_as_that() -> None:
    image = make_image()
    sections = [(section.type, bytes(section.data)) for section in image.sections]
    sections[3] = (SectionType.RAMDISK, gzip.compress(sections[3][1], mtime=0))
    done = compare(read_eif(write_eif(sections)))
    assert not done.reproduced
    assert done.files == ()
    assert "packed otherwise" in done.causes[0]


def test_a_further_ramdisk_is_told() -> None:
    done = compare(make_image(extra={"init": File(b"evil", executable=True)}))
    assert not done.reproduced
    assert "theirs has 3 ramdisks, ours 2" in done.causes
    assert [row.name for row in done.sections if row.ours is None and row.measured] == ["ramdisk 2"]


def test_a_ramdisk_that_cannot_be_unpacked_is_an_error_of_ours() -> None:
    sections = [(section.type, bytes(section.data)) for section in make_image().sections]
    sections[3] = (SectionType.RAMDISK, b"070701" + b"z" * 200)
    with pytest.raises(MalformedRamdisk, match="ramdisk 0: "):
        compare(read_eif(write_eif(sections)))


# --- audit ---


def test_a_clean_image_has_no_oddities() -> None:
    facts = audit_image(make_image(), make_inventory())
    assert facts.oddities == ()
    assert facts.sizes["libssl3t64"] == len(b"ssl") + len("libssl.so.3")
    assert facts.licences["Apache-2.0"] == ("libssl3t64",)
    assert facts.licences["no assertion"] == ("linux-source-6.12",)
    assert [component.name for component in facts.security] == ["libssl3t64"]
    assert facts.modules["veracruz"] == ("enclave_image", "start")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (File(b"ssl", executable=True), {"executable"}),
        (File(b"other"), {"not as this checkout builds it"}),
        (Node(1, 3, 0o666), {"device, pipe or socket", "world-writable", "not as this checkout builds it"}),
        (Node(1, 3, 0o4600), {"device, pipe or socket", "set-id", "not as this checkout builds it"}),
    ],
)
def test_an_odd_file_is_told(entry: File | Node, expected: set[str]) -> None:
    facts = audit_image(make_image({**BOOT, "usr/lib/libssl.so.3": entry}), make_inventory())
    assert {oddity.what for oddity in facts.oddities} == expected


def test_an_unknown_file_is_told_with_its_name_escaped() -> None:
    facts = audit_image(make_image({**BOOT, "usr/lib/\x1b[31m": File(b"")}), make_inventory())
    assert [(oddity.what, oddity.path) for oddity in facts.oddities] == [
        ("not in this checkout's build", "usr/lib/\\x1b[31m")
    ]


# --- manifest ---


def test_the_manifest_names_every_file_and_component() -> None:
    told = dump_inventory(make_inventory())
    assert told["schema"] == "veracruz.manifest/1"
    assert {row["component"] for row in told["files"]} <= {row["name"] for row in told["components"]}
    assert [row["licences"] for row in told["components"]] == [("MIT",), ("Apache-2.0",), ()]


def test_the_first_process_comes_from_all_that_it_is_compiled_from() -> None:
    assert INIT_SOURCE == "enclave_image/runtime/init.c, enclave_image/runtime/first_process.h"
    included = re.findall(r'^#include "(.+)"$', "".join(path.read_text() for path in INIT_SOURCES), re.MULTILINE)
    assert set(included) == {path.name for path in INIT_SOURCES[1:]}
    done = compare(make_image(boot={**BOOT, "init": File(b"other", executable=True)}))
    assert [row.origin for row in done.files] == [INIT_SOURCE]


def test_the_bill_of_materials_is_the_same_for_the_same_image() -> None:
    pytest.importorskip("cyclonedx")
    from enclave_image.sbom import make_sbom

    first = make_sbom(make_inventory())
    assert make_sbom(make_inventory()) == first
    assert make_sbom(replace(make_inventory(), image_sha256="c" * 64)) != first
    bill = json.loads(first)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    ssl = next(row for row in bill["components"] if row["name"] == "libssl3t64")
    assert ssl["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert ssl["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert [row["name"] for row in ssl["components"]] == ["/usr/lib/libssl.so.3"]


@pytest.mark.parametrize("name", ["theirs.eif", "link.eif"])
def test_the_image_that_is_judged_is_never_written_over(name: str, tmp_path: Path) -> None:
    image = tmp_path / "theirs.eif"
    image.write_bytes(GOOD)
    (tmp_path / "link.eif").symlink_to(image)
    assert main(["image", "reproduce", str(image), "--out", str(tmp_path / name), "--offline"]) == 2
    assert image.read_bytes() == GOOD
