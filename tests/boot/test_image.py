# SPDX-License-Identifier: MIT
"""The built image: small, written whole or not at all, and only when it changed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enclave_image.config import cache_dir

from .machines import World

pytestmark = pytest.mark.boot

MIB = 1 << 20


def borrow(target: Path, *names: str) -> None:
    """Give another cache the inputs and the kernel of this one: it compiles everything else itself."""
    for name in names:
        link = target / "veracruz" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(cache_dir() / name)


def test_is_small_enough_for_its_memory(image: Path) -> None:
    assert image.stat().st_size < 40 * MIB


def test_nothing_is_written_when_nothing_changed(world: World, image: Path) -> None:
    before = image.stat()
    done = world.run("image", "build", "--out", image, "--json")
    assert done.json["changed"] is False
    assert image.stat().st_mtime_ns == before.st_mtime_ns


def test_an_interrupted_build_leaves_nothing_half_made(world: World, image: Path, tmp_path: Path) -> None:
    borrow(tmp_path, "inputs", "built/kernel")
    environment = {**world.environment, "XDG_CACHE_HOME": str(tmp_path)}
    out = tmp_path / "out.eif"
    command = [sys.executable, "-m", "host_shim.cli", "image", "build", "--out", str(out), "--offline"]
    for pause in (1.5, 4.0):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in err
    assert not out.exists()
    left = [path.name for path in (tmp_path / "veracruz/built").glob("*/.making-*")]
    assert left == []
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert out.read_bytes() == image.read_bytes()
