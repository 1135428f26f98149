# SPDX-License-Identifier: MIT
"""What every verb shares: data on stdout, talk on stderr, progress, errors with a hint, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from .errors import EXIT_ENVIRONMENT, VeracruzError, escape

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

Verb = Callable[[argparse.Namespace], int]
Commands = Any  # argparse's subparsers object; its class is private and generic only in stubs


def say(text: str) -> None:
    """Write one line of talk to stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(args: argparse.Namespace, data: Mapping[str, Any], text: str) -> None:
    """Write the verb's result to stdout: `data` as one JSON object under --json, else `text`."""
    if args.json:
        print(json.dumps(data, indent=2, sort_keys=False), flush=True)
    elif text:
        print(text, flush=True)


def use_colour() -> bool:
    """Return whether stderr is a terminal that wants colour (https://no-color.org)."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str) -> str:
    """Return `text` in an ANSI colour (`code` such as "32"), plain where colour is not wanted."""
    return f"\033[{code}m{text}\033[0m" if use_colour() else text


class Progress:
    """A line on stderr that counts up while something takes longer than a second; silent otherwise.

    Call `update(done)` as often as you like; `total` is None where it is not known.
    """

    def __init__(self, what: str, *, total: int | None = None, unit: str = "B") -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._start = time.monotonic()
        self._last = self._start
        self._shown = False

    def update(self, done: int) -> None:
        """Show that `done` units are done, at most four times a second (every ten seconds when not a terminal)."""
        now = time.monotonic()
        pause = 0.25 if sys.stderr.isatty() else 10.0
        if now - self._start < 1.0 or now - self._last < pause:
            return
        self._last = now
        self._shown = True
        amount = f"{done / 1e6:.1f} MB" if self._unit == "B" else f"{done} {self._unit}"
        part = f" ({100 * done // self._total} %)" if self._total else ""
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{self._what}: {amount}{part}, {now - self._start:.0f} s ", end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        if self._shown and sys.stderr.isatty():
            print("\033[2K\r", end="", file=sys.stderr, flush=True)


def new_parser(commands: Commands, name: str, *, summary: str, run: Verb | None = None) -> argparse.ArgumentParser:
    """Add a verb with the options that every verb has; `run(args)` returns the exit code."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
    )
    if run is not None:
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.set_defaults(run=run)
    return parser


def new_group(commands: Commands, name: str, *, summary: str) -> Commands:
    """Add a noun that holds verbs (`veracruz image ...`); return its subparsers object."""
    parser = new_parser(commands, name, summary=summary)
    return parser.add_subparsers(dest=f"{name}_verb", metavar="VERB", required=True)


def report(error: VeracruzError, *, as_json: bool) -> None:
    """Print an error as it is printed everywhere: what, expected, got; hint; as JSON on stdout under --json."""
    if as_json:
        body = {
            "slug": error.slug, "message": error.what, "expected": error.expected, "actual": error.actual,
            "hint": error.hint,
        }  # fmt: skip
        print(json.dumps({"error": body}, indent=2), flush=True)
    say(f"{paint('error:', '31')} {error}")
    if error.hint:
        say(f"{paint('hint:', '33')} {error.hint}")


def run_verb(args: argparse.Namespace) -> int:
    """Run the chosen verb and turn whatever it raises into a message and an exit code."""
    verb: Verb = args.run
    try:
        return verb(args)
    except VeracruzError as error:
        if args.debug:
            traceback.print_exc()
        report(error, as_json=args.json)
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 -- the interpreter flushes it once more at exit
        return EXIT_INTERRUPTED
    except OSError as error:
        if args.debug:
            traceback.print_exc()
        where = f" ({escape(error.filename)})" if error.filename else ""
        say(f"{paint('error:', '31')} {escape(error.strerror or error)}{where}")
        if args.json:
            print(json.dumps({"error": {"slug": "environment", "message": escape(error), "hint": None}}), flush=True)
        return EXIT_ENVIRONMENT
