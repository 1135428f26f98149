# SPDX-License-Identifier: MIT
"""The parts of `scripts/bench vsock` that need no machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import vsock

    yield vsock
    for name in [name for name in sys.modules if name in ("vsock", "boot") or name.startswith("vsock_parts")]:
        del sys.modules[name]


def test_ratios_are_of_runs_next_to_each_other(bench: Any) -> None:
    assert bench.compare({"ours": [30.0, 10.0, 20.0], "theirs": [10.0, 10.0, 10.0]}) == 2.0
    assert bench.compare({"ours": [30.0], "theirs": None}) is None
    assert bench.compare({"ours": [30.0]}) is None


@pytest.mark.parametrize("to_guest", [False, True])
def test_the_backends_cost_is_measured_without_a_machine(bench: Any, to_guest: bool) -> None:
    assert 1 < bench.measure_cost(to_guest=to_guest, packets=40, rounds=2) < 100_000


def test_the_other_backend_is_pinned(bench: Any) -> None:
    package = bench.PACKAGE
    assert package.path.endswith(f"/{package.name}_{package.version}_amd64.deb")
    assert len(package.sha256) == 64
    assert package.size > 0
