# SPDX-License-Identifier: MIT
"""The kernel has no console once /init has checked where it is: not even a panic shows registers to the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Scene
from .machines import World, copy_source

pytestmark = pytest.mark.boot


@pytest.mark.parametrize("silenced", [True, False], ids=["after the console is off", "before: the control"])
def test_a_panic_says_nothing(scene: Scene, tmp_path: Path, silenced: bool) -> None:
    """An /init that ends makes the kernel panic and print processor state, if it can."""
    source = copy_source(tmp_path / "source")
    program = source / "enclave_image/runtime/init.c"
    text = program.read_text()
    call = "\tsilence_kernel();\n"
    assert text.count(call) == 1
    program.write_text(text.replace(call, call + "\t_exit(1);\n" if silenced else "\t_exit(1);\n" + call))
    world = World(tmp_path / "world", source)
    image = world.build("panics")
    policy = world.policy("panics", image.with_suffix(".json"))
    done = world.run(
        "enclave", "run", image, "--policy", policy, "--name", "panics", "--boot-limit", "60", "--accel", "tcg",
        expect=5,
    )  # fmt: skip
    console = world.run("enclave", "console", "panics").out
    assert "init: ready" in console, done.err
    assert ("Kernel panic" in console) is not silenced
    if silenced:
        assert console.splitlines()[-1] == "init: ready"
