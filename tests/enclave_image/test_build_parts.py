# SPDX-License-Identifier: MIT
"""Parts of the build that need no kernel: cache, toolchain checks, trim list, configuration."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_image import recipe
from enclave_image.application import find_modules, statements
from enclave_image.cache import Cache, demand_space
from enclave_image.config import DEFAULT_DIR, find_mirrors, load_config
from enclave_image.errors import BuildFailed, MalformedConfig, NoSpace
from enclave_image.lock import Archive, load_lock
from enclave_image.rootfs import load_trim, strip_elf
from enclave_image.toolchain import needed_libraries

# --- cache ---


def test_an_entry_appears_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.make("kind", "k" * 64) as making:
        (making.product / "file").write_text("x")
        assert cache.find("kind", "k" * 64) is None
    assert (cache.demand("kind", "k" * 64) / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "built/kind").iterdir() if path.is_dir()] == ["k" * 32]


@pytest.mark.parametrize("fault", [BuildFailed("no"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_no_entry(tmp_path: Path, fault: BaseException) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(type(fault)), cache.make("kind", "k" * 64) as making:  # noqa: PT012
        (making.product / "file").write_text("x")
        raise fault
    assert cache.find("kind", "k" * 64) is None
    assert [path for path in (tmp_path / "built/kind").iterdir() if path.is_dir()] == []


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path; from enclave_image.cache import Cache\n"
        "with Cache(Path(sys.argv[1])).make('kind', 'k' * 64): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    folder = tmp_path / "built/kind"
    assert len(list(folder.glob(".making-*"))) == 1
    with Cache(tmp_path).make("kind", "k" * 64) as making:
        (making.product / "file").write_text("x")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["k" * 32]


def test_a_full_disk_is_named() -> None:
    with pytest.raises(NoSpace, match="too little room") as caught:
        demand_space(Path("/tmp"), 1 << 60)
    assert "XDG_CACHE_HOME" in str(caught.value.hint)


# --- configuration ---


def test_mirrors_come_from_the_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERACRUZ_DEBIAN_MIRROR", "http://mirror.example/debian/")
    assert find_mirrors(load_config())[Archive.DEBIAN][0] == "http://mirror.example/debian"


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("veracruz.image/1", "veracruz.image/2", "schema"),
        ("zstd_level = 9", "zstd_level = 99", "zstd_level"),
        ('suite = "trixie"', "", "suite"),
        ('suite = "trixie"', 'suite = "trixie"\nsweet = 1', "unknown keys"),
        ("wheels = [", "wheels = [1, ", "wheels"),
        ('quiet"', 'quiet\\n"', "command_line"),
        ("wheels = [", "mirrors = 5\nwheels = [", "mirrors"),
    ],
)
def test_refuses_a_malformed_configuration(tmp_path: Path, old: str, new: str, place: str) -> None:
    shutil.copytree(DEFAULT_DIR, tmp_path / "config")
    path = tmp_path / "config/image.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(MalformedConfig, match=place):
        load_config(tmp_path / "config")


# --- root file system ---


def test_reads_the_libraries_that_a_program_needs() -> None:
    libraries = set(needed_libraries(Path(sys.executable).resolve()))
    assert "libc.so.6" in libraries
    assert list(needed_libraries(Path(__file__))) == []


def test_a_stripped_library_still_runs(tmp_path: Path) -> None:
    original = Path(shutil.which("true") or "/bin/true").read_bytes()
    stripped = strip_elf(original)
    assert len(stripped) < len(original)
    (tmp_path / "true").write_bytes(stripped)
    (tmp_path / "true").chmod(0o755)
    assert subprocess.run([tmp_path / "true"], check=False).returncode == 0
    assert strip_elf(b"#!/bin/sh\n") == b"#!/bin/sh\n"


def test_trim_patterns_are_anchored_at_both_ends() -> None:
    keep = load_trim(DEFAULT_DIR / "trim.list")
    assert not keep("usr/lib/python3.13/trace.py")
    assert keep("usr/lib/python3.13/traceback.py")
    assert not keep("usr/lib/python3.13/test/support/x.py")
    assert keep("usr/lib/x86_64-linux-gnu/libexpat.so.1")
    assert not keep("usr/share/doc/x")


def test_only_the_runtime_and_the_pure_core_go_inside() -> None:
    modules = find_modules()
    assert "enclave_image.runtime.start" in modules
    assert "attestation.policy" in modules
    outside = ("attestation.channel", "attestation.participant", "attestation.console", "enclave_image.recipe")
    assert not [name for name in modules if name.startswith((*outside, "host_shim")) or name.endswith("cli")]


def test_imports_are_found_wherever_a_statement_may_stand_but_for_those_of_types() -> None:
    text = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        "try:\n    import c\nexcept ImportError:\n    import d\nelse:\n    import e\nfinally:\n    import f\n"
        "class K:\n    def m(self):\n        with x:\n            while y:\n                import g\n"
        "match z:\n    case 1:\n        import h\n"
        "async def n():\n    async for _ in q:\n        import i\n"
    )
    found = [node.names[0].name for node in statements(ast.parse(text)) if isinstance(node, ast.Import)]
    assert sorted(found) == list("bcdefghi")


def test_no_input_is_hashed_where_all_that_is_made_of_them_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, config = Cache(tmp_path), load_config(DEFAULT_DIR)
    lock = load_lock(DEFAULT_DIR / "enclave.lock")
    kinds = sorted(recipe.PLATFORM_KINDS)
    monkeypatch.setattr(recipe, "find_needed", lambda *_: frozenset(f"{kind}/key" for kind in kinds))
    for kind in kinds:
        assert not recipe.has_platform(cache, config, lock)
        (cache.base / kind / "key").mkdir(parents=True)
    assert recipe.has_platform(cache, config, lock)
    monkeypatch.setattr(recipe, "find_needed", lambda *_: frozenset({"kernel/key", "init/key"}))
    assert not recipe.has_platform(cache, config, lock), "the key of a platform that cannot be told is not there"
