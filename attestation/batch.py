# SPDX-License-Identifier: MIT
"""Many documents at once: verified on all cores, results in the order of the documents, one bad one stops no other.

Processes, not threads: `cryptography` keeps Python's global lock while it verifies a signature, so that threads take
as long as one (docs/verifier-speed.md has the measurement). They are spawned, not forked, on every platform: a script
that calls this needs the usual `if __name__ == "__main__":`. Each has a chain cache of its own.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from multiprocessing import get_context
from types import MappingProxyType

from .chain import Root
from .chain_cache import DEFAULT_ENTRIES, ChainCache
from .errors import AttestationError, EnvironmentLacks, MalformedInput
from .expectations import Expectations
from .verifier import Appraisal, require_arguments, require_roots, verify

CHUNK = 16  # documents handed to a process at once: with fewer, handing over takes its share
CHUNKS_AHEAD = 2  # for each process: one that it works at, one that waits
MAX_PROCESSES = 61 if sys.platform == "win32" else 256  # there a process waits for 63 others at most


@dataclass(frozen=True, slots=True)
class Item:
    """A document with expectations or a time of its own (its nonce, say); None takes the batch's."""

    document: bytes
    expected: Expectations | None = None
    at: datetime | None = None


Outcome = Appraisal | AttestationError | MalformedInput  # the last: what was asked of this item makes no sense


def verify_batch(
    documents: Iterable[bytes | Item],
    *,
    expected: Expectations,
    at: datetime,
    roots: Iterable[Root],
    processes: int | None = None,
    entries: int = DEFAULT_ENTRIES,
) -> Iterator[Outcome]:
    """Verify documents, each as `verify` does; yield for each, in their order, its appraisal or the error it raised.

    `documents` is read as results are taken, at most CHUNKS_AHEAD * CHUNK documents a process and CHUNK more ahead of
    them; nothing is held longer. `processes` is the number to use, by default as many as this process has cores; with
    1, or where there are fewer than CHUNK documents, all is done in this one. `entries` is the size of each one's chain
    cache. Ending early (`close()`, an exception, Ctrl-C) ends the processes, after what each has in hand. An error that
    `documents` raises itself comes after the results of what it gave before. What cannot be sent to another process
    (pickled), such as a demand of the caller's own made on the spot, is verified in this one. Raises EmptyExpectations
    and MalformedInput at once for what concerns all documents, and EnvironmentLacks if processes cannot be started or
    die.
    """
    if not isinstance(roots, Iterable):
        require_roots(roots)  # which raises
    trusted = tuple(roots)
    require_arguments(expected, at, trusted)
    count = usable_cores() if processes is None else processes
    if not 1 <= count <= MAX_PROCESSES:
        raise MalformedInput("batch: wrong number of processes", expected=f"1..{MAX_PROCESSES}", actual=count)
    ChainCache(entries=entries)  # raises here rather than in a process
    setting = _Setting(expected, at, trusted, entries)
    if count == 1 or not _can_be_sent(setting):
        return _verify_here(documents, setting)
    return _verify_elsewhere(documents, setting, count)


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
    return min(os.cpu_count() or 1, MAX_PROCESSES)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What holds for all documents."""

    expected: Expectations
    at: datetime
    roots: tuple[Root, ...]
    entries: int

    def worker(self) -> Callable[[bytes | Item], Outcome]:
        """Return the function that verifies one document, with a chain cache of its own."""
        return partial(_verify_one, setting=self, links=ChainCache(entries=self.entries))


def _verify_one(item: bytes | Item, *, setting: _Setting, links: ChainCache) -> Outcome:
    given = item if isinstance(item, Item) else Item(item)
    try:
        expected = setting.expected if given.expected is None else given.expected
        at = setting.at if given.at is None else given.at
        return verify(given.document, expected=expected, at=at, roots=setting.roots, links=links)
    except (AttestationError, MalformedInput) as error:
        error.__cause__ = error.__context__ = None  # tracebacks keep the document and all that was made of it
        return error.with_traceback(None)


def _can_be_sent(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # PicklingError, TypeError, AttributeError, and whatever a class of the caller's raises
        return False
    return True


def _verify_here(documents: Iterable[bytes | Item], setting: _Setting) -> Iterator[Outcome]:
    worker = setting.worker()
    for item in documents:
        yield worker(item)


def _verify_elsewhere(documents: Iterable[bytes | Item], setting: _Setting, count: int) -> Iterator[Outcome]:
    source = _Chunks(documents)
    first, worker = source.next(), setting.worker()
    if len(first) < CHUNK:
        yield from map(worker, first)
        return source.finish()
    try:
        pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start_worker, initargs=(setting,))
    except (OSError, ImportError, NotImplementedError) as error:  # no semaphores, no /dev/shm
        raise EnvironmentLacks("batch: processes cannot be started", actual=error, hint="processes=1") from error
    pending: deque[tuple[list[bytes | Item], Future[list[Outcome]] | None]] = deque()
    chunk = first
    try:
        while chunk or pending:
            while chunk and len(pending) < CHUNKS_AHEAD * count:
                pending.append((chunk, _submit(pool, chunk) if _can_be_sent(chunk) else None))
                chunk = source.next()
            items, future = pending.popleft()
            yield from map(_unpack, future.result()) if future else map(worker, items)
    except BrokenProcessPool as error:
        raise EnvironmentLacks(
            "batch: a process ended that should not",
            actual=error,
            hint="call it under `if __name__ == '__main__':`, or with processes=1; memory may be short",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return source.finish()


def _submit(pool: ProcessPoolExecutor, chunk: list[bytes | Item]) -> Future[list[Outcome]]:
    with _interrupts_held():  # a process that starts here inherits it: Ctrl-C ends it through us alone
        return pool.submit(_verify_chunk, chunk)


class _Chunks:
    """An iterable cut into chunks; what it raises is kept until `finish`."""

    def __init__(self, documents: Iterable[bytes | Item]) -> None:
        self._iterator = iter(documents)
        self._error: Exception | None = None

    def next(self) -> list[bytes | Item]:
        """Return the next chunk; empty at the end."""
        chunk: list[bytes | Item] = []
        if self._error is None:
            try:
                for item in islice(self._iterator, CHUNK):
                    chunk.append(item)
            except Exception as error:
                self._error = error
        return chunk

    def finish(self) -> None:
        """Raise what the iterable raised."""
        if self._error is not None:
            raise self._error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back for a moment; where there is no such thing (Windows), do nothing."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the processes

_worker: Callable[[bytes | Item], Outcome]  # of this process, which does nothing else


def _start_worker(setting: _Setting) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows has no mask to inherit
    _worker = setting.worker()


def _verify_chunk(items: list[bytes | Item]) -> list[Outcome]:
    return [_pack(_worker(item)) for item in items]


def _pack(outcome: Outcome) -> Outcome:
    return replace(outcome, pcrs=dict(outcome.pcrs)) if isinstance(outcome, Appraisal) else outcome


def _unpack(outcome: Outcome) -> Outcome:
    return replace(outcome, pcrs=MappingProxyType(outcome.pcrs)) if isinstance(outcome, Appraisal) else outcome
