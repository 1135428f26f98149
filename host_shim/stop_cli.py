# SPDX-License-Identifier: MIT
"""The host's verbs `veracruz enclave console` and `stop`; what a killed supervisor left is cleared by the second."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from attestation.console import emit, say, warn, write_out
from attestation.errors import EXIT_OK, UsageError

from .children import ProcessId
from .console_log import printable_bytes, read_console
from .errors import NoSuchIsolate, UnsafeState
from .list_cli import summary_of
from .record import Record, Stage
from .state import Isolates, now

STOP_TIMEOUT = 20.0  # seconds; a supervisor needs two times five for processes that do not listen
STOP_PAUSE = 0.05  # seconds


def show_console(args: argparse.Namespace) -> int:
    """Print an isolate's console, escaped."""
    if args.json and args.follow:
        raise UsageError("--json prints one object, and --follow has no end")
    isolates = Isolates()
    path = isolates.directory(args.name) / "console.log"
    try:
        record = isolates.find(args.name)
    except UnsafeState as error:  # the console is told all the same
        warn(str(error))
        record = None
    if args.json:
        text = printable_bytes(b"".join(read_console(path, follow=False)))
        emit(args, {"name": args.name, "lines": text.splitlines()}, "")
        return EXIT_OK
    written = False
    pieces = read_console(path, follow=args.follow)
    for data in pieces if record is None else _until_ended(isolates, args.name, pieces):
        write_out(printable_bytes(data), end="")
        written = written or bool(data)
    if not written:
        say(_why_empty(record, path))
    return EXIT_OK


def _why_empty(record: Record | None, path: Path) -> str:
    if record is not None and record.isolate == "nitro" and not record.debug:
        return "no console: an enclave tells of itself in debug mode only (--debug-mode; its evidence is then refused)"
    return f"its console is empty; what ran it may have said more: {path.with_name('supervisor.log')}"


def _until_ended(isolates: Isolates, name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass pieces on; end at the first pause after the isolate has ended."""
    ended = False
    for piece in pieces:
        yield piece
        if not piece:
            if ended:
                return
            ended = not isolates.find(name).stage.live


def stop_isolates(args: argparse.Namespace) -> int:
    """End isolates; one that has ended already is no error."""
    isolates = Isolates()
    if bool(args.names) == args.all:
        raise UsageError("which isolate is to be stopped?", expected="NAME ... or --all")
    for name in args.names:  # all of them are known, before one is stopped
        _demand_known(isolates, name)
    names = args.names or [
        name for name in isolates.names() if (found := _stage(isolates, name)) is None or _left_over(found)
    ]
    told = [stop_name(isolates, name) for name in dict.fromkeys(names)]
    emit(
        args,
        {"isolates": told},
        "\n".join(f"{one['name']} {one['stage']}: {one['reason']}" for one in told),
    )
    return EXIT_OK


def _demand_known(isolates: Isolates, name: str) -> None:
    with contextlib.suppress(UnsafeState):
        isolates.find(name)


def _left_over(stage: Stage) -> bool:
    return stage.live or stage is Stage.LOST


def _stage(isolates: Isolates, name: str) -> Stage | None:
    """Return an isolate's stage, None for one that cannot be read; a name that only left a lock has ended."""
    try:
        return isolates.find(name).stage
    except UnsafeState:
        return None
    except NoSuchIsolate:
        return Stage.ENDED


def stop_name(isolates: Isolates, name: str) -> dict[str, Any]:
    """End an isolate, whatever is left of it; return what is told of it then."""
    try:
        record = isolates.find(name)
    except UnsafeState as error:
        owner = isolates.owner(name)
        if owner is not None:
            _end(owner)
        if isolates.owner(name) is None:
            try:
                return summary_of(isolates.find(name))  # its supervisor has written it anew
            except UnsafeState:
                moved = isolates.discard(name)
                return {"name": name, "stage": "ended", "reason": f"{error.what}; it is kept as {moved}"}
        raise
    return summary_of(stop_isolate(isolates, record))


def stop_isolate(isolates: Isolates, record: Record) -> Record:
    """Ask the supervisor to end its isolate, kill it if it does not; return what is recorded then."""
    if record.stage.live and record.supervisor is not None:
        _end(record.supervisor)
        found = isolates.find(record.name)  # cleans up after one that was killed
        record = found if found.stage is not Stage.BOOTING else record
    if record.stage is not Stage.LOST:
        return record
    reason = record.reason
    if record.outside is not None:
        from .nitro_cli import NitroCli

        ended = NitroCli(record.outside.tool).terminate(record.outside.name)
        reason = f"its supervisor was killed; its enclave {'was ended now' if ended else 'had ended already'}"
    cleared = replace(record, stage=Stage.ENDED, outside=None, reason=reason, ended=record.ended or now())
    isolates.write(cleared)
    return cleared


def _end(supervisor: ProcessId) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT
    supervisor.signal(signal.SIGTERM)
    while supervisor.alive and time.monotonic() < deadline:
        time.sleep(STOP_PAUSE)
    if supervisor.signal(signal.SIGKILL):
        while supervisor.alive:
            time.sleep(STOP_PAUSE)
