# SPDX-License-Identifier: MIT
"""Runs a supervisor in the background: the command returns once it serves, or with its error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from attestation.console import as_told
from attestation.errors import EXIT_ISOLATE, VeracruzError

from .errors import IsolateDied

Tell = Callable[[Mapping[str, Any]], None]
Body = Callable[[Tell], int]


def relayed(told: Mapping[str, Any]) -> VeracruzError:
    """Return the background process's error, as it would have been in the foreground."""
    kind = type("Relayed", (VeracruzError,), {name: told[name] for name in ("slug", "exit_code", "cure")})
    error: VeracruzError = kind(told["what"], hint=told["hint"])
    error.expected, error.actual = told["expected"], told["actual"]  # escaped there
    return error


def run_detached(body: Body, *, show: Callable[[str], None]) -> Mapping[str, Any]:
    """Run `body(tell)` in a session of its own; return what it tells under "serving".

    It may tell {"line": text} before, to be shown. Raises its error; Ctrl-C ends it.
    """
    source, sink = os.pipe()
    pid = os.fork()  # one thread here, and none in the child until it starts its own processes
    if pid == 0:
        os.close(source)
        _run_child(body, sink)
    os.close(sink)
    with os.fdopen(source, "r", encoding="utf-8") as told:
        try:
            return _follow(told, pid, show)
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            for _ in told:  # until it has cleaned up and closed its end
                pass
            raise


def _follow(told: Any, pid: int, show: Callable[[str], None]) -> Mapping[str, Any]:
    for line in told:
        message = json.loads(line)
        if "line" in message:
            show(message["line"])
        elif "error" in message:
            os.waitpid(pid, 0)
            raise relayed(message["error"])
        elif "serving" in message:
            serving: Mapping[str, Any] = message["serving"]
            return serving
    os.waitpid(pid, 0)
    raise IsolateDied("the supervisor ended before its isolate served", hint="veracruz enclave list --all")


def _run_child(body: Body, sink: int) -> NoReturn:
    """Run the supervisor; never return into the command's own code."""
    code = EXIT_ISOLATE
    try:
        os.setsid()
        _let_go_of_descriptors(keep=sink)

        def tell(message: Mapping[str, Any]) -> None:
            with contextlib.suppress(OSError):  # nobody reads any more
                os.write(sink, json.dumps(message).encode() + b"\n")

        try:
            code = body(tell)
        except VeracruzError as error:
            code = error.exit_code
            tell({"error": describe(error)})
        except (OSError, MemoryError) as error:
            told = as_told(error)
            code = told.exit_code
            tell({"error": describe(told)})
        except BaseException as error:
            traceback.print_exc()
            tell({"error": describe(IsolateDied("the supervisor failed", actual=f"{type(error).__name__}: {error}"))})
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def _let_go_of_descriptors(*, keep: int) -> None:
    """Close whatever the command was started with: its caller may wait for the end of a pipe of its own."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- names, as numbers
        if int(name) > 2 and int(name) != keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def describe(error: VeracruzError) -> dict[str, Any]:
    """Return an error as `relayed` takes it."""
    return {
        "slug": error.slug,
        "cure": error.cure,
        "exit_code": error.exit_code,
        "what": error.what,
        "expected": error.expected,
        "actual": error.actual,
        "hint": error.hint,
    }
