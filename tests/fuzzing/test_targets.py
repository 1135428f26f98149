# SPDX-License-Identifier: MIT
"""Each fuzz target over its seeds and some hundred changes of them, without a fuzzer; the seeds are what they were."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random

import pytest

from scripts.fuzzing.mutations import change_bytes
from scripts.fuzzing.seeds import CORPUS, write_seeds
from scripts.fuzzing.target import Target, judge
from scripts.fuzzing.targets import TARGETS

CHANGED = 120  # inputs of each target; evidence takes 2 ms each
MAX_CORPUS = 1_000_000  # bytes in the checkout

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def _seeds(target: Target) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target.name).iterdir())}


def _judge(target: Target, data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography's remarks on odd names
        finding = judge(target, data)
    assert finding is None, f"{finding.place}: {finding.message}\n{finding.trace}\n{data.hex()}"


@each_target
def test_no_seed_is_a_finding(target: Target) -> None:
    for data in _seeds(target).values():
        _judge(target, data)


@each_target
def test_no_changed_seed_is_a_finding(target: Target) -> None:
    random, seeds = Random(target.name), list(_seeds(target).values())
    for number in range(CHANGED):
        data = random.choice(seeds)
        for _ in range(random.randint(1, 3)):
            data = (
                change_bytes(data, random) if target.mutate is None or number % 3 == 0 else target.mutate(data, random)
            )
        _judge(target, data)


@each_target
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 5, bytes(5000)], ids=["empty", "zero", "ones", "zeros"])
def test_no_simple_input_is_a_finding(target: Target, data: bytes) -> None:
    _judge(target, data)
    if target.mutate is not None:
        target.mutate(data, Random(1))


def test_the_seeds_are_made_by_the_factory_always_the_same(tmp_path: Path) -> None:
    made = tmp_path / "corpus"
    write_seeds(made)
    here = {path.relative_to(CORPUS): path.read_bytes() for path in CORPUS.rglob("*") if path.is_file()}
    assert {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()} == here
    assert sum(map(len, here.values())) < MAX_CORPUS
