# SPDX-License-Identifier: MIT
"""The lock: one text form, strict reading, changes in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from attestation.errors import UsageError
from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.errors import MalformedConfig
from enclave_image.lock import Lock, Role, format_lock, load_lock, parse_lock
from enclave_image.resolve import _version_key, describe_change

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
        ('schema = "veracruz.lock/1"', 'schema = "veracruz.lock/2"', "schema"),
        ('roles = ["toolchain"]', 'roles = ["kitchen"]', r"package\[0\]"),
        ('archive = "debian"', 'archive = "elsewhere"', r"package\[0\]"),
        ('name = "bc"', 'name = "../bc"', r"package\[0\]\.name"),
        ("size = ", "size = -", r"package\[0\]\.size"),
        ('sha256 = "', 'sha256 = "x', r"package\[0\]\.sha256"),
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


@pytest.mark.parametrize("raw", [b"schema = 'veracruz.lock/1'\npackage = [1]", b"\xff", b"schema = 1", b""])
def test_names_the_file_of_a_malformed_lock(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "my.lock"
    path.write_bytes(raw)
    with pytest.raises(MalformedConfig, match=r"my\.lock: "):
        load_lock(path)


def test_says_how_a_missing_lock_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"enclave\.lock: No such file") as caught:
        load_lock(tmp_path / "enclave.lock")
    assert "image lock" in str(caught.value.hint)


def test_tells_a_reviewer_what_changed() -> None:
    old = parse_lock(SHIPPED)
    bc = old.packages[0]
    newer = dataclasses.replace(bc, version="9", sha256="0" * 64)
    forged = dataclasses.replace(old.packages[1], sha256="0" * 64)
    new = Lock((newer, forged, *old.packages[3:]), old.wheels)
    assert describe_change(old, new) == [
        f"changed  bc {bc.version} -> 9",
        f"WARNING  {forged.name} {forged.version}: other bytes under the same version",
        f"removed  {old.packages[2].name} {old.packages[2].version}",
    ]


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.0", "1.1"), ("1.9", "1.10"), ("1.0~rc1", "1.0"), ("1.0", "1.0-1"), ("1.0-1", "1.0-1+deb13u1"), ("9", "1:1"),
        ("6.12.94-1", "6.12.107-1"), ("3.5.7-1~deb13u2", "3.5.7-1~deb13u3"), ("1.0-1~bpo", "1.0-1"),
    ],
)  # fmt: skip
def test_orders_versions_as_dpkg_does(lower: str, higher: str) -> None:
    assert _version_key(lower) < _version_key(higher)
