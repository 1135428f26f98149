# SPDX-License-Identifier: MIT
"""The people of a run, the isolates of a module, and relays and impostors that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wasmtime", reason="the engine of the isolate: extra [host]")

from attestation.endpoint import Endpoint
from tests.enclave_image.runtime.household import Isolate

from .cast import Cast, make_cast, where
from .impostor import Attest, Impostor
from .relay import Relay


@pytest.fixture(scope="session")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return make_cast(tmp_path_factory.mktemp("cast"))


@pytest.fixture(scope="module")
def genuine(cast: Cast) -> Iterator[Isolate]:
    """The isolate that Alice means."""
    with cast.isolate() as ran:
        yield ran


@pytest.fixture(scope="module")
def clone(cast: Cast) -> Iterator[Isolate]:
    """Another one, of the same image under the same policy: it passes all eight points."""
    with cast.isolate() as ran:
        yield ran


@pytest.fixture
def relay() -> Iterator[Callable[..., Relay]]:
    with ExitStack() as stack:

        def start(*targets: Isolate | Impostor | Endpoint, **more: Any) -> Relay:
            return stack.enter_context(Relay(*map(_endpoint, targets), **more))

        yield start


@pytest.fixture
def impostor(tmp_path: Path, cast: Cast) -> Iterator[Callable[..., Impostor]]:
    with ExitStack() as stack:

        def start(attest: Attest, **more: Any) -> Impostor:
            return stack.enter_context(Impostor(tmp_path, cast.policy(), attest, **more))

        yield start


def _endpoint(target: Isolate | Impostor | Endpoint) -> Endpoint:
    if isinstance(target, Isolate):
        return where(target)
    return target.endpoint if isinstance(target, Impostor) else target


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    """Where Alice's pins are kept."""
    return tmp_path / "pins"
