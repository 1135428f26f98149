# SPDX-License-Identifier: MIT
"""Test doubles of targets, each with a defect that the fuzzer must find (the engine loads this module by name)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from attestation.errors import MalformedEvidence
from scripts.fuzzing.target import Target


def _seeds() -> Mapping[str, bytes]:
    return {"seed": b"0000"}


def leak(data: bytes) -> None:
    """Refuse what is no number, but let one exception of the standard library's out."""
    if data[:1] == b"%":
        int(data, 16)
    raise MalformedEvidence("refused")


def hang(data: bytes) -> None:
    while True:
        pass


def take_memory(data: bytes) -> None:
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise MalformedEvidence("refused") from error


def panic(data: bytes) -> None:
    raise SystemExit("whatever is no refusal")


def die(data: bytes) -> None:
    if data[:1] == b"%":
        os.abort()


TARGETS = {
    run.__name__: Target(run.__name__, "a test double", run, (MalformedEvidence,), _seeds, seconds=0.2)
    for run in (leak, hang, take_memory, panic, die)
}
