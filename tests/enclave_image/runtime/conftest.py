# SPDX-License-Identifier: MIT
"""Parties and isolates that a module's tests share: an isolate starts in half a second, but there are many tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .household import Isolate, Party, isolate


@pytest.fixture(scope="session")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Party:
    return Party(tmp_path_factory.mktemp("alice"), "alice")


@pytest.fixture(scope="session")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Party:
    return Party(tmp_path_factory.mktemp("bob"), "bob")


@pytest.fixture(scope="session")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Party:
    return Party(tmp_path_factory.mktemp("mallory"), "mallory")


@pytest.fixture
def start() -> Iterator[Callable[..., Isolate]]:
    """Start isolates of one test's own."""
    with ExitStack() as stack:

        def run(policy: bytes | dict[str, Any], **more: Any) -> Isolate:
            return stack.enter_context(isolate(policy, **more))

        yield run


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parties")
