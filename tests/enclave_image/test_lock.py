# SPDX-License-Identifier: MIT
"""The lock: one text form, strict reading, changes in words."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import UsageError
from enclave_image.changes import Kind, describe_effect, find_changes
from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.debian import version_key
from enclave_image.errors import MalformedConfig, ToolMismatch
from enclave_image.lock import (
    Archive,
    Role,
    demand_tool,
    format_lock,
    load_lock,
    own_version,
    parse_lock,
)

SHIPPED = (DEFAULT_DIR / "enclave.lock").read_bytes()


def test_the_shipped_lock_is_in_its_one_form() -> None:
    assert format_lock(parse_lock(SHIPPED)) == SHIPPED


def test_the_shipped_lock_has_just_what_the_configuration_names() -> None:
    config, lock = load_config(), parse_lock(SHIPPED)
    assert {p.name for p in lock.packages_for(Role.TOOLCHAIN)} == set(config.toolchain)
    assert {p.name for p in lock.packages_for(Role.ROOT)} == set(config.root)
    assert [p.name for p in lock.packages_for(Role.KERNEL)] == [config.kernel_source]
    assert {f"{w.name}=={w.version}" for w in lock.wheels} == set(config.wheels)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('schema = "veracruz.lock/2"', 'schema = "veracruz.lock/1"', "schema"),
        ('tool = "', 'tool = "../', "tool"),
        ('architecture = "x86_64"', 'architecture = "vax"', "architecture; expected x86_64"),
        ("[[release]]", "[[releases]]", "release"),
        ('date = "2026-', 'date = "26-', r"release\[0\]\.date"),
        ('suite = "trixie-security"', 'suite = "trixie"', "an input is named twice"),
        ('sha1 = "', 'sha1 = "0', r"package\[0\]\.sha1"),
        ('roles = ["toolchain"]', 'roles = ["kitchen"]', r"package\[0\]"),
        ('archive = "debian"', 'archive = "elsewhere"', r"package\[0\]"),
        ('name = "bc"', 'name = "../bc"', r"package\[0\]\.name"),
        ("size = ", "size = -", r"package\[0\]\.size"),
        ('size = 103196\nsha256 = "', 'size = 103196\nsha256 = "x', r"package\[0\]\.sha256"),
        ('name = "bc"', 'name = "bc"\nextra = 1', r"package\[0\]"),
        ('name = "binutils-x86-64-linux-gnu"', 'name = "bc"', "an input is named twice"),
        ('roles = ["kernel"]', 'roles = ["root"]', "role kernel"),
        ("[[wheel]]", "[[wheels]]", "wheel"),
        ("schema", "=", "no TOML"),
    ],
)
def test_refuses_a_malformed_lock_naming_the_place(old: str, new: str, place: str) -> None:
    text = SHIPPED.decode()
    assert old in text
    with pytest.raises(MalformedConfig, match=place):
        parse_lock(text.replace(old, new, 1).encode())


@pytest.mark.parametrize("raw", [b"schema = 'veracruz.lock/2'\npackage = [1]", b"\xff", b"schema = 1", b""])
def test_names_the_file_of_a_malformed_lock(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "my.lock"
    path.write_bytes(raw)
    with pytest.raises(MalformedConfig, match=r"my\.lock: "):
        load_lock(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 40), st.binary(max_size=8))
def test_any_damage_is_a_malformed_lock_or_another_one(at: int, length: int, other: bytes) -> None:
    damaged = SHIPPED[:at] + other + SHIPPED[at + length : 3000]
    with contextlib.suppress(MalformedConfig):
        parse_lock(damaged)


def test_says_how_a_missing_lock_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"enclave\.lock: No such file") as caught:
        load_lock(tmp_path / "enclave.lock")
    assert "image lock" in str(caught.value.hint)


def test_the_shipped_lock_is_for_this_version() -> None:
    demand_tool(parse_lock(SHIPPED))
    other = dataclasses.replace(parse_lock(SHIPPED), tool="9.9.9")
    with pytest.raises(ToolMismatch, match=rf"another version of veracruz; expected 9\.9\.9, got {own_version()}"):
        demand_tool(other)


def test_tells_a_reviewer_what_changed() -> None:
    old = parse_lock(SHIPPED)
    packages = {package.name: package for package in old.packages}
    bc, bison, dash, flex = (packages[name] for name in ("bc", "bison", "dash", "flex"))
    newer = dataclasses.replace(bc, version="9", sha256="0" * 64, size=bc.size + 1024, archive=Archive.SECURITY)
    forged = dataclasses.replace(bison, sha256="0" * 64)
    lowered = dataclasses.replace(dash, version="0.1-1", sha256="1" * 64, size=dash.size - 1)
    added = dataclasses.replace(flex, name="flux")
    replaced = {"bc": newer, "bison": forged, "dash": lowered, "flex": added}
    new = dataclasses.replace(old, packages=tuple(replaced.get(p.name, p) for p in old.packages))
    changes = find_changes(old, new)
    assert [str(change) for change in changes] == [
        f"changed  bc {bc.version} -> 9 (toolchain, security suite, +1,024 bytes)",
        f"WARNING  bison {bison.version}: other bytes under the same version (toolchain, +0 bytes)",
        f"LOWERED  dash {dash.version} -> 0.1-1 (toolchain, -1 bytes)",
        f"removed  flex {flex.version} (toolchain, {flex.size:,} bytes)",
        f"added    flux {flex.version} (toolchain, {flex.size:,} bytes)",
    ]
    assert "kernel and /init are compiled anew" in describe_effect(changes)
    assert [change.as_json()["security"] for change in changes] == [True, False, False, False, False]


def test_says_when_the_kernel_stays_as_it_is() -> None:
    old = parse_lock(SHIPPED)
    wheel = dataclasses.replace(old.wheels[0], version="99", sha256="0" * 64)
    changes = find_changes(old, dataclasses.replace(old, wheels=(wheel, *old.wheels[1:])))
    assert [change.kind for change in changes] == [Kind.CHANGED]
    assert "the kernel stays" in describe_effect(changes)
    assert find_changes(old, dataclasses.replace(old, releases=())) == []
    assert {change.kind for change in find_changes(None, old)} == {Kind.ADDED}


def test_a_moved_input_is_told_too() -> None:
    old = parse_lock(SHIPPED)
    moved = dataclasses.replace(old.packages[0], roles=frozenset({Role.ROOT}))
    (change,) = find_changes(old, dataclasses.replace(old, packages=(moved, *old.packages[1:])))
    assert change.kind is Kind.MOVED
    assert "toolchain debian/pool" in str(change)
    assert "root debian/pool" in str(change)


@given(st.builds(str.__add__, st.sampled_from([*"0123456789"]), st.text("0123456789.+~abz-:", max_size=12)))
def test_orders_any_version_consistently(version: str) -> None:
    whole = version.replace(":", "", version.count(":"))
    assert not version_key(whole) < version_key(whole)
    assert version_key(f"{whole}~") < version_key(whole) < version_key(f"{whole}.1")


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.0", "1.1"), ("1.9", "1.10"), ("1.0~rc1", "1.0"), ("1.0", "1.0-1"), ("1.0-1", "1.0-1+deb13u1"), ("9", "1:1"),
        ("6.12.94-1", "6.12.107-1"), ("3.5.7-1~deb13u2", "3.5.7-1~deb13u3"), ("1.0-1", "1.0+b-1"),
        ("1.0-1~bpo", "1.0-1"),
    ],
)  # fmt: skip
def test_orders_versions_as_dpkg_does(lower: str, higher: str) -> None:
    assert version_key(lower) < version_key(higher)
