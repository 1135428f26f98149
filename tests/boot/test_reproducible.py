# SPDX-License-Identifier: MIT
"""Same lock, same bytes: other path, user, umask, locale, time zone, clock, cores; and what a change moves.

Each build here has a cache of its own that holds the locked inputs and the kernel; all else it makes itself. The
kernel is compiled twice only under --kernel: it takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from enclave_image.cache import Cache
from enclave_image.config import DEFAULT_DIR, cache_dir, load_config
from enclave_image.eif import load_eif
from enclave_image.fetch import input_path
from enclave_image.lock import LockedPackage, Role, load_lock
from enclave_image.recipe import find_needed

from .machines import World

pytestmark = pytest.mark.boot

NOBODY = 65534
CLOCK = 2_000_000_000.0  # seconds: in 2033

# Runs a build in a process whose clock, cores and user the arguments decide; needs nothing but the standard library.
DRIVER = """
import json, os, sys, time
from pathlib import Path
clock, core, config, out = float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
if clock:
    time.time, time.time_ns = (lambda: clock), (lambda: int(clock * 10**9))
if core >= 0:
    os.sched_setaffinity(0, {core})
from attestation.errors import VeracruzError
from enclave_image.config import load_config
from enclave_image.lock import load_lock
from enclave_image.recipe import build_image
try:
    built, _ = build_image(load_config(config), load_lock(config / "enclave.lock"), out=out, offline=True)
except VeracruzError as error:
    print(json.dumps({"slug": error.slug, "what": str(error)}))
else:
    print(json.dumps({"pcrs": [value.hex() for value in built.measurements.registers]}))
"""


class Checkout:
    """A copy of this project's packages somewhere else, with a cache of its own."""

    def __init__(self, top: Path, uid: int) -> None:
        self.top, self.uid = top, uid
        top.mkdir(parents=True)
        source = DEFAULT_DIR.parent.parent
        for name in ("attestation", "enclave_image"):
            shutil.copytree(source / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
        version = metadata.version("veracruz")
        info = top / f"veracruz-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: veracruz\nVersion: {version}\n")
        (top / "driver.py").write_text(DRIVER)
        for name in ("home", "tmp"):
            (top / name).mkdir()
        self._fill_cache(top / "cache/veracruz")
        for path in (top, *top.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.chown(path, uid, uid if uid else -1)

    @property
    def config(self) -> Path:
        return self.top / "enclave_image/default"

    def _fill_cache(self, cache: Path) -> None:
        config, lock = load_config(), load_lock(DEFAULT_DIR / "enclave.lock")
        for entry in lock.inputs:
            if not (isinstance(entry, LockedPackage) and entry.roles == {Role.KERNEL}):
                target = cache / input_path(entry).relative_to(cache_dir())
                target.parent.mkdir(parents=True)
                shutil.copyfile(input_path(entry), target)
        (kernel,) = (name for name in find_needed(config, lock) if name.startswith("kernel/"))
        shutil.copytree(Cache().base / kernel, cache / "built" / kernel)

    def build(self, name: str, *, clock: float = 0, core: int = -1, **environment: str) -> tuple[Path, dict[str, Any]]:
        out = self.top / f"home/{name}.eif"
        command = [interpreter(self.uid), "-S", "-B", str(self.top / "driver.py"), str(clock), str(core)]
        done = subprocess.run(
            [*command, str(self.config), str(out)],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.top), "HOME": str(self.top / "home"),
                 "XDG_CACHE_HOME": str(self.top / "cache"), "TMPDIR": str(self.top / "tmp"), **environment},
            capture_output=True, text=True, check=False, cwd=self.top, timeout=2400,
            **({"user": self.uid, "group": self.uid, "extra_groups": []} if self.uid else {}),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return out, json.loads(done.stdout)


def interpreter(uid: int) -> str:
    """Return a Python that a user can run: this one may stand in a home that is closed to others."""
    if not uid:
        return sys.executable
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [candidate, "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            done = subprocess.run(command, user=uid, group=uid, extra_groups=[], env={}, check=False, cwd="/")
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    pytest.skip("no Python 3.11 here that another user may run")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that other users may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="veracruz-reproducible-") as top:
        Path(top).chmod(0o755)
        yield Path(top)


@pytest.fixture(scope="module")
def plain(place: Path, image: Path) -> Checkout:
    """Another path, the same user. It needs `image` first: that brings inputs and kernel."""
    return Checkout(place / "a", 0)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_path_and_surroundings_give_the_same_bytes(plain: Checkout, image: Path) -> None:
    old = os.umask(0o077)
    try:
        core = min(os.sched_getaffinity(0))
        out, _ = plain.build(
            "one", clock=CLOCK, core=core, LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8", TZ="Asia/Kathmandu",
            PYTHONHASHSEED="12345", SOURCE_DATE_EPOCH="1", ZSTD_CLEVEL="19",
        )  # fmt: skip
    finally:
        os.umask(old)
    assert digest(out) == digest(image)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_an_unprivileged_user_elsewhere_gets_the_same_bytes(place: Path, image: Path) -> None:
    other = Checkout(place / "a much longer path/with spaces/b", NOBODY)
    out, said = other.build("two", TZ="America/St_Johns", LC_ALL="C")
    if said.get("slug") == "no-sandbox":  # /init cannot be compiled here without root; all else still can
        needed = find_needed(load_config(), load_lock(DEFAULT_DIR / "enclave.lock"))
        (init,) = (name for name in needed if name.startswith("init/"))
        shutil.copytree(Cache().base / init, other.top / "cache/veracruz/built" / init)
        out, said = other.build("two", TZ="America/St_Johns", LC_ALL="C")
    assert "pcrs" in said, said
    assert out.stat().st_uid == NOBODY
    assert digest(out) == digest(image)


def test_a_change_to_our_python_moves_pcr0_and_pcr2_alone(plain: Checkout, image: Path, world: World) -> None:
    before = load_eif(image)
    changed = plain.top / "enclave_image/runtime/server.py"
    text = changed.read_text()
    changed.write_text(text + "\nCHANGED = True\n")
    try:
        out, _ = plain.build("changed")
    finally:
        changed.write_text(text)
    after = load_eif(out)
    same = [a == b for a, b in zip(before.measurements.registers, after.measurements.registers, strict=True)]
    assert same == [False, True, False]
    assert before.ramdisks[0] == after.ramdisks[0]
    assert before.metadata == after.metadata
    done = world.run("image", "reproduce", out, "--offline", "--json", expect=None)
    assert done.code == 1
    assert done.json["files"] == [
        {
            "ramdisk": 1, "path": "app/enclave_image/runtime/server.pyc", "difference": "other content",
            "origin": "enclave_image/runtime/server.py",
        }
    ]  # fmt: skip
    assert [row["section"] for row in done.json["sections"] if not row["same"]] == ["ramdisk 1"]
    assert done.json["registers"]["PCR1"]["theirs"] == done.json["registers"]["PCR1"]["ours"]


def test_reproduces_its_own_image(world: World, image: Path) -> None:
    done = world.run("image", "reproduce", image, "--offline", "--json")
    assert done.json["reproduced"] is done.json["identical"] is True
    assert done.json["files"] == done.json["causes"] == []
    assert set(done.json["sources"]) >= {"enclave.lock", "image.toml", "trim.list", "kernel.fragment"}


def test_audits_its_own_image(world: World, image: Path) -> None:
    done = world.run("image", "audit", image, "--offline", "--json")
    assert done.json["oddities"] == []
    assert done.json["behind"] is None
    assert done.json["sizes"]["wasmtime"] > 1 << 20
    assert "ssl" in done.json["modules"]["libpython3.13-stdlib"] + done.json["modules"]["libpython3.13-minimal"]


def test_manifest_and_bill_of_materials_name_every_file_and_input(world: World, image: Path, tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx")
    out, manifest, sbom = tmp_path / "x.eif", tmp_path / "manifest.json", tmp_path / "sbom.json"
    world.run("image", "build", "--out", out, "--manifest", manifest, "--sbom", sbom, "--offline")
    assert digest(out) == digest(image)
    told, bill = json.loads(manifest.read_text()), json.loads(sbom.read_text())
    inputs = {entry.sha256 for entry in load_lock(DEFAULT_DIR / "enclave.lock").inputs}
    inputs |= {patch.sha256 for patch in load_config().kernel_patches}
    assert {c["sha256"] for c in told["components"] if "sha256" in c} == inputs
    names = {c["name"] for c in told["components"]}
    assert {file["component"] for file in told["files"]} <= names
    assert {c["name"] for c in bill["components"]} == names
    assert bill["metadata"]["timestamp"].startswith("2026-01-01")
    world.run("image", "build", "--out", out, "--sbom", tmp_path / "again.json", "--offline")
    assert (tmp_path / "again.json").read_bytes() == sbom.read_bytes()


@pytest.mark.kernel
def test_a_kernel_compiled_anew_elsewhere_is_the_same(place: Path, image: Path) -> None:
    uid = NOBODY if os.geteuid() == 0 else 0
    other = Checkout(place / "kernel", uid)
    config, lock = load_config(), load_lock(DEFAULT_DIR / "enclave.lock")
    (name,) = (name for name in find_needed(config, lock) if name.startswith("kernel/"))
    shutil.rmtree(other.top / "cache/veracruz/built/kernel")
    (source,) = lock.packages_for(Role.KERNEL)
    target = other.top / "cache/veracruz" / input_path(source).relative_to(cache_dir())
    target.parent.mkdir(mode=0o755)
    shutil.copyfile(input_path(source), target)
    os.chown(target.parent, uid, uid if uid else -1)
    out, said = other.build("kernel", TZ="Asia/Kathmandu", clock=CLOCK)
    assert "pcrs" in said, said
    again = other.top / "cache/veracruz/built" / name / "bzImage"
    assert digest(again) == digest(Cache().base / name / "bzImage")
    assert digest(out) == digest(image)
    assert not list((other.top / "cache/veracruz/built/kernel").glob(".making-*")), "its tree is cleaned up"
