# SPDX-License-Identifier: MIT
"""`cache list|prune`: what is needed stays, a build under way is left alone; and the room that a build needs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from enclave_image import space
from enclave_image.cache import Cache, own_cache, using_cache
from enclave_image.config import DEFAULT_DIR, cache_dir, load_config
from enclave_image.container.build import find_needed_init
from enclave_image.errors import CacheInUse, NoSpace
from enclave_image.fetch import input_path
from enclave_image.lock import load_lock
from enclave_image.recipe import find_needed
from enclave_image.space import Plan, demand_room
from host_shim.cli import main

LOCK = load_lock(DEFAULT_DIR / "enclave.lock")
OLD = "0" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one of everything, needed and not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = cache_dir()
    wanted = input_path(LOCK.packages[0])
    (kernel,) = (name for name in find_needed(load_config(), LOCK) if name.startswith("kernel/"))
    for path in (
        wanted, base / "inputs/0123456789abcdef/old.deb", base / "inputs/1123456789abcdef/half.deb.part",
        base / "built" / kernel / "file", base / f"built/platform/{OLD}/root/file",
        base / f"built/kernel/.making-{OLD}-xyz/root/src/file", base / f"logs/kernel-{OLD}.log",
    ):  # fmt: skip
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100_000))
    (base / "kvm.json").write_text("{}")
    return base


def listed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, object]:
    assert main(["cache", *words, "--json"]) == code
    said: dict[str, object] = json.loads(capsys.readouterr().out)
    return said


def names(said: dict[str, object]) -> set[tuple[str, bool]]:
    items = said["items"]
    assert isinstance(items, list)
    return {(item["kind"], item["needed"]) for item in items}


def test_lists_what_is_needed_and_what_is_not(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    said = listed(capsys, "list")
    assert names(said) >= {
        ("input", True),
        ("input", False),
        ("platform", False),
        ("unfinished", False),
        ("log", False),
    }
    assert said["cache"] == str(cache)
    assert isinstance(said["size"], int)
    assert said["size"] > 600_000
    assert main(["cache", "list"]) == 0
    assert "needed by the current lock" in capsys.readouterr().out


def test_prune_keeps_what_the_lock_needs(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    before = sorted(cache.rglob("*"))
    dry = listed(capsys, "prune", "--dry-run")
    assert sorted(path for path in cache.rglob("*") if path.name != ".use.lock") == before
    said = listed(capsys, "prune")
    assert (said["items"], said["freed"]) == (dry["items"], dry["freed"])
    assert input_path(LOCK.packages[0]).exists()
    assert {needed for _, needed in names(listed(capsys, "list"))} == {True}
    assert not (cache / f"built/kernel/.making-{OLD}-xyz").exists()
    assert (cache / "kvm.json").exists()
    assert not list(cache.rglob(".removed-*"))


def test_prune_all_removes_everything(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    listed(capsys, "prune", "--all")
    assert listed(capsys, "list")["items"] == []


def test_prune_touches_nothing_while_a_build_is_under_way(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    with using_cache():
        before = sorted(cache.rglob("*"))
        said = listed(capsys, "prune", "--all", code=3)
        assert said["error"]["slug"] == "cache-in-use"  # type: ignore[index]
        assert sorted(cache.rglob("*")) == before
        listed(capsys, "prune", "--dry-run")
    listed(capsys, "prune")


def test_two_builds_use_the_cache_at_once() -> None:
    with using_cache(), using_cache(), pytest.raises(CacheInUse), own_cache():
        pass
    with own_cache():
        pass


def test_a_cache_that_can_only_be_read_is_used(
    capsys: pytest.CaptureFixture[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with using_cache():
        pass
    opened, modes = Path.open, []

    def read_only(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:  # root's rights know no mode bits
        if path.name == ".use.lock":
            modes.append(mode)
            if mode != "r":
                raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", read_only)
        with using_cache():
            pass
        patch.setattr(Path, "exists", lambda path: False)
        with pytest.raises(OSError, match="Read-only"), using_cache():
            pass
    assert modes == ["a", "r", "a"]


def test_an_entry_that_is_being_made_is_left(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    with (cache / f"built/kernel/.{OLD}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        listed(capsys, "prune", "--all")
    assert (cache / f"built/kernel/.making-{OLD}-xyz").exists()
    assert not (cache / f"built/platform/{OLD}").exists()


def test_a_link_in_the_cache_does_not_lead_out_of_it(
    capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    os.symlink(outside, cache / f"built/platform/{OLD}/root/link")  # noqa: PTH211
    listed(capsys, "prune", "--all")
    assert (outside / "precious").exists()


# --- room ---


def test_says_at_the_start_what_a_build_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    demand_room(Plan(downloads=200_000_000, kernel=True, platform=True), out=tmp_path / "x.eif")
    said = capsys.readouterr().err
    assert "200 MB of downloads" in said
    assert "2.3 GB while the kernel compiles" in said
    assert "are free" in said


def test_an_unchanged_build_says_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    demand_room(Plan(downloads=0, kernel=False, platform=False), out=tmp_path / "x.eif")
    assert capsys.readouterr().err == ""


def test_too_little_room_ends_the_build_before_it_begins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(capsys, "prune", "--all")
    monkeypatch.setattr(space, "KERNEL", 1 << 60)
    words = ["image", "build", "--out", str(tmp_path / "x.eif"), "--json"]
    monkeypatch.setattr("enclave_image.recipe.find_mirrors", lambda config: pytest.fail("something was fetched"))
    assert main(words) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["slug"] == "no-space"
    assert "MB free" in error["expected"]
    with pytest.raises(NoSpace):
        demand_room(Plan(downloads=0, kernel=True, platform=False), out=None)


def test_a_kernels_tree_does_not_outlive_its_build(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.make("kernel", "k" * 64) as making:
        (making.scratch / "root/src").mkdir(parents=True)
        (making.product / "bzImage").write_bytes(b"x")
    assert sorted(path.name for path in (tmp_path / "built/kernel" / ("k" * 32)).iterdir()) == ["bzImage"]
    assert not list((tmp_path / "built/kernel").glob(".making-*"))


def test_prune_keeps_what_is_installed_and_the_other_init(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    container = find_needed_init(load_config(), LOCK)
    for entry in (container, f"qemu/{OLD}", f"qemu/{'1' * 32}"):
        (cache / "built" / entry).mkdir(parents=True)
        (cache / "built" / entry / "file").write_bytes(b"x")
    (cache / "qemu-nitro").symlink_to(f"built/qemu/{OLD}")
    (cache / "elsewhere").symlink_to("/usr")
    listed(capsys, "prune")
    assert (cache / "built" / container / "file").is_file()
    assert (cache / "qemu-nitro/file").is_file()
    assert not (cache / f"built/qemu/{'1' * 32}").exists()
