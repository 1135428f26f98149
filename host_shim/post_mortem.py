# SPDX-License-Identifier: MIT
"""The error that tells how an isolate ended: its cause first, then who ended how, then the last lines of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enclave_image.runtime.wire import Event

from .children import GONE
from .console_log import tail
from .diagnosis import EXAMINED, NOTHING_PRINTED, Diagnosis, find_cause, find_killer, signal_name
from .errors import IsolateDied, IsolateHalted, IsolateRefused, IsolateSilent
from .news import HALTS, REPEATING_HALTS

SHOWN_COMPLAINTS = 4  # lines


def tell_death(
    name: str,
    code: int,
    *,
    process: str,
    awaited: str,
    console: Path,
    complaints: Sequence[str],
    kills_before: int | None,
) -> IsolateDied:
    """Return the error of the isolate `name` whose `process` ended with `code` while `awaited` was waited for."""
    cause = find_cause(tail(console, EXAMINED), complaints) or find_killer(code, kills_before)
    when = f" before its {awaited}" if awaited else ""
    why = f"{cause.cause}; " if cause else ""
    text = f"the isolate died{when}: {why}{process} ended {tell_code(code)}"
    text += "".join(f"\n  {process}: {line}" for line in complaints[-SHOWN_COMPLAINTS:])
    return _make(cause, with_console(text, console), name, IsolateDied)


def tell_silence(name: str, *, awaited: str, seconds: float, console: Path, complaints: Sequence[str]) -> IsolateDied:
    """Return the error of an isolate that was not up in time."""
    lines = tail(console, EXAMINED)
    cause = find_cause(lines, complaints) or (None if lines else NOTHING_PRINTED)
    why = f": {cause.cause}" if cause else ""
    text = with_console(f"the isolate did not come up: no {awaited} within {seconds:.0f} s{why}", console)
    if cause is None or cause.hint is None:
        return IsolateSilent(text, hint=f"veracruz enclave console {name}; for a slow machine, --boot-limit")
    kind = IsolateSilent if cause.kind is IsolateDied else cause.kind
    return kind(text, hint=cause.hint)


def tell_halt(event: Event, console: Path) -> IsolateHalted:
    """Return the error of an isolate that said why it goes on no more."""
    text, hint = HALTS.get(event, ("it does not say why", None))
    kind = IsolateRefused if event in REPEATING_HALTS else IsolateHalted
    return kind(with_console(f"the isolate halted: {text}", console), hint=hint)


def tell_code(code: int) -> str:
    """Return an exit code in words; a negative one is a signal's."""
    if code == GONE:
        return "by itself"
    return f"by {signal_name(-code)}" if code < 0 else f"with exit code {code}"


def with_console(text: str, console: Path) -> str:
    """Return the text with the console's last lines below it."""
    return text + ("".join(f"\n  console: {line}" for line in tail(console)) or "\n  its console is empty")


def _make(cause: Diagnosis | None, text: str, name: str, kind: type[IsolateDied]) -> IsolateDied:
    look = f"veracruz enclave console {name}"
    if cause is None:
        return kind(text, hint=look)
    return cause.kind(text, hint=cause.hint or look)
