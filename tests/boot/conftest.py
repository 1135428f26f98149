# SPDX-License-Identifier: MIT
"""What the boot tests share: one built image, one booted isolate for what does not change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .machines import Enclave, World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def image(world: World) -> Path:
    return world.build()


@dataclass(frozen=True, slots=True)
class Scene:
    """An isolate that enforces the policy of the tests, in which both parties have joined."""

    world: World
    enclave: Enclave
    policy: Path
    image: Path


@pytest.fixture(scope="session")
def scene(world: World, image: Path) -> Iterator[Scene]:
    policy = world.policy("shared", image.with_suffix(".json"))
    with world.enclave(image, policy) as enclave:
        yield Scene(world, enclave, policy, image)
    assert world.processes() == []
