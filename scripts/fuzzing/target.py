# SPDX-License-Identifier: MIT
"""A fuzz target: what it feeds with bytes, which refusals are right, and the judge of one input."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import NoReturn

SECONDS = 2.0  # of processor time for one input; the slowest sound one takes a few hundredths
MEMORY = 512 * 1024 * 1024  # bytes of address space for one input, beyond what the process has
SHOWN = 400  # characters of an error that a finding repeats

TOP = Path(__file__).resolve().parents[2]

Mutator = Callable[[bytes, Random], bytes]


class WrongVerdict(Exception):
    """A reader accepted what it must not, or said of it what is not so."""


class OutOfTime(BaseException):
    """One input took too long. A BaseException: no `except Exception` of a reader's takes it for a refusal."""


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of the table: `run` reads the bytes, and may raise `refusals` and nothing else."""

    name: str
    what: str
    run: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], Mapping[str, bytes]]  # deterministic; what tests/fuzz_corpus holds
    mutate: Mutator | None = None  # of its structure, used in turn with changes of bytes
    largest: int = 8192  # bytes of an input
    seconds: float = SECONDS


@dataclass(frozen=True, slots=True)
class Finding:
    """What one input brought about; `place` is the same for inputs that show the same defect."""

    place: str
    message: str
    trace: str
    data: bytes = field(repr=False)


def judge(target: Target, data: bytes) -> Finding | None:
    """Run a target on an input within its time; return what is wrong, None if nothing is."""
    try:
        with _within(target.seconds):
            target.run(data)
    except KeyboardInterrupt:
        raise
    except target.refusals as error:
        # Wrapping it does not make it a refusal of the input.
        hidden = next((each for each in _causes(error) if isinstance(each, MemoryError | OutOfTime)), None)
        return None if hidden is None else _finding(hidden, data)
    except BaseException as error:
        return _finding(error, data)
    return None


def address_space() -> int:
    """Return how many bytes of address space the process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Within this, the process may take MEMORY more than it has; an allocation beyond fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGVTALRM, _ring)  # processor time: a busy machine is no finding
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _ring(_number: int, _frame: FrameType | None) -> NoReturn:
    raise OutOfTime


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _finding(error: BaseException, data: bytes) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(TOP) and ".venv" not in frame.filename]
    if isinstance(error, OutOfTime | MemoryError):  # wherever it struck, it is the same defect
        where = ""
    else:
        last = (ours or list(frames))[-1]
        where = f" at {Path(last.filename).name}:{last.lineno}"
    message = str(error).encode("unicode_escape").decode("ascii")[:SHOWN]
    trace = "".join(traceback.format_exception(error)).encode("unicode_escape").decode("ascii").replace("\\n", "\n")
    return Finding(f"{type(error).__name__}{where}", message, trace, data)
