# SPDX-License-Identifier: MIT
"""Many documents at once: in order, none stopped by another, read as needed, ended when told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from attestation.batch import CHUNK, CHUNKS_AHEAD, Item, Outcome, usable_cores, verify_batch
from attestation.errors import EmptyExpectations, FieldMismatch, MalformedInput
from attestation.expectations import Expectations, ImageIs, NonceIs
from attestation.terms import Demand, Evidence
from attestation.verifier import Appraisal, verify

from .documents import IMAGE, MADE_AT, NONCE, OTHER_IMAGE, make_document, make_pki

TOP = Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds for anything
PKI = make_pki()
ROOTS = [PKI.root]
EXPECTED = Expectations.of(ImageIs.any_of([IMAGE]))
GOOD = make_document(PKI)
APPRAISAL = verify(GOOD, expected=EXPECTED, at=MADE_AT, roots=ROOTS)
OTHER = Expectations.of(ImageIs.any_of([OTHER_IMAGE]))
MIXED: list[bytes | Item] = [
    GOOD, GOOD[:-1], b"", Item(GOOD), Item(GOOD, expected=OTHER), Item(GOOD, expected=EXPECTED & NonceIs(NONCE)),
    Item(GOOD, at=datetime(2020, 1, 1, tzinfo=MADE_AT.tzinfo)), Item(GOOD, at=datetime(2020, 1, 1)),
    Item(GOOD, expected=Expectations(())), Item("text"),  # type: ignore[arg-type]
]  # fmt: skip
SLUGS = [
    None, "malformed-evidence", "malformed-evidence", None, "measurement-mismatch", None, "clock-out-of-step",
    "malformed-input", "empty-expectations", "malformed-input",
]  # fmt: skip


def _slug(outcome: Outcome) -> str | None:
    return None if isinstance(outcome, Appraisal) else outcome.slug


@pytest.mark.parametrize("processes", [1, 2])
def test_each_document_has_its_own_result_in_its_own_place(processes: int) -> None:
    outcomes = list(verify_batch(MIXED * 4, expected=EXPECTED, at=MADE_AT, roots=ROOTS, processes=processes))
    assert [_slug(outcome) for outcome in outcomes] == SLUGS * 4
    assert outcomes[0] == APPRAISAL
    assert isinstance(outcomes[0], Appraisal)
    assert isinstance(outcomes[0].pcrs, MappingProxyType)
    refusal = outcomes[4]
    assert not isinstance(refusal, Appraisal)
    assert refusal.expected == OTHER_IMAGE.pcr1.hex() or refusal.expected == OTHER_IMAGE.pcr0.hex()


@dataclass(frozen=True)
class _OfTheSpot(Demand):
    """A demand that holds what no other process can have."""

    what: Callable[[Evidence], bool]

    def check(self, evidence: Evidence) -> None:
        if not self.what(evidence):
            raise FieldMismatch("not what was asked for")

    def __str__(self) -> str:
        return "as asked"


@pytest.mark.parametrize("processes", [1, 2])
def test_what_cannot_be_sent_to_another_process_has_its_own_result_too(processes: int) -> None:
    demands = [EXPECTED & _OfTheSpot(lambda _, passes=passes: passes) for passes in (True, False)]  # type: ignore[misc]
    odd: list[Any] = [
        GOOD,
        memoryview(GOOD),
        Item(GOOD, at="now"),
        Item(GOOD, expected=5),
        Item(GOOD, expected=demands[0]),
        Item(GOOD, expected=demands[1]),
    ]
    slugs = [None, "malformed-input", "malformed-input", "malformed-input", None, "field-mismatch"]
    plain: list[Any] = [GOOD[:-1]] * CHUNK
    outcomes = verify_batch(plain + odd + plain, expected=EXPECTED, at=MADE_AT, roots=ROOTS, processes=processes)
    junk = ["malformed-evidence"] * CHUNK
    assert [_slug(outcome) for outcome in outcomes] == [*junk, *slugs, *junk]
    outcomes = verify_batch([GOOD] * 2 * CHUNK, expected=demands[1], at=MADE_AT, roots=ROOTS, processes=processes)
    assert [_slug(outcome) for outcome in outcomes] == ["field-mismatch"] * 2 * CHUNK


def test_no_documents_give_no_results() -> None:
    assert list(verify_batch([], expected=EXPECTED, at=MADE_AT, roots=ROOTS, processes=2)) == []


def test_documents_are_read_as_results_are_taken() -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"junk"

    outcomes = verify_batch(endless(), expected=EXPECTED, at=MADE_AT, roots=ROOTS, processes=2)
    assert read == 0
    for taken in range(1, 100):
        assert _slug(next(outcomes)) == "malformed-evidence"
        assert read <= taken + (2 * CHUNKS_AHEAD + 1) * CHUNK
    outcomes.close()  # type: ignore[attr-defined]

    alone, read = verify_batch(endless(), expected=EXPECTED, at=MADE_AT, roots=ROOTS, processes=1), 0
    next(alone)
    assert read == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_documents_raise_comes_after_the_results_of_those_before(processes: int) -> None:
    def broken() -> Iterator[bytes]:
        yield from [b"junk"] * (CHUNK + 3)
        raise OSError("the disk is gone")

    outcomes = verify_batch(broken(), expected=EXPECTED, at=MADE_AT, roots=ROOTS, processes=processes)
    assert [_slug(next(outcomes)) for _ in range(CHUNK + 3)] == ["malformed-evidence"] * (CHUNK + 3)
    with pytest.raises(OSError, match="the disk is gone"):
        next(outcomes)


def test_what_makes_no_sense_for_all_is_refused_at_once() -> None:
    with pytest.raises(EmptyExpectations):
        verify_batch([], expected=Expectations(()), at=MADE_AT, roots=ROOTS)
    with pytest.raises(MalformedInput, match="time zone"):
        verify_batch([], expected=EXPECTED, at=datetime(2026, 1, 1), roots=ROOTS)
    with pytest.raises(MalformedInput, match="number of processes"):
        verify_batch([], expected=EXPECTED, at=MADE_AT, roots=ROOTS, processes=0)
    with pytest.raises(MalformedInput, match="chain cache"):
        verify_batch([], expected=EXPECTED, at=MADE_AT, roots=ROOTS, entries=0)


def test_the_cores_that_may_be_used_are_counted() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT goes to a process here")
def test_ctrl_c_ends_it_and_its_processes_without_their_tracebacks(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        textwrap.dedent("""
        import itertools, json, multiprocessing
        from datetime import UTC, datetime
        from attestation.batch import verify_batch
        from attestation.chain import aws_root
        from attestation.expectations import Expectations, UnsafeAcceptAnyImage

        def main():
            expected = Expectations.of(UnsafeAcceptAnyImage())
            outcomes = verify_batch(
                itertools.repeat(b"junk"), expected=expected, at=datetime.now(UTC), roots=[aws_root()], processes=2
            )
            next(outcomes)
            try:
                print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
                for outcome in outcomes:
                    pass
            except KeyboardInterrupt:
                outcomes.close()
                print("interrupted, left:", len(multiprocessing.active_children()), flush=True)

        if __name__ == "__main__":
            main()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            children = json.loads(process.stdout.readline())
            assert children
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
            said, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert said.strip() == "interrupted, left: 0"
    assert errors == ""
    assert process.returncode == 0
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
