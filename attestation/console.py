# SPDX-License-Identifier: MIT
"""What every verb shares: data on stdout, talk on stderr, progress, errors with a hint, exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import AttestationError, EnvironmentLacks, VeracruzError

if TYPE_CHECKING:
    import argparse  # little is imported here: until it is, Ctrl-C ends in a traceback

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
LONG_VALUE = 48  # characters; hex that the eye compares better when it stands below its like
# Of these the message says all: their cure is to read it.
PLAIN_SLUGS = frozenset({"usage", "environment", "malformed-input"})

Verb = Callable[["argparse.Namespace"], int]
Commands = Any  # argparse's subparsers object; its class is private and generic only in stubs


def printable(text: str) -> str:
    """Return others' text safe for a terminal: its line breaks and tabs stay, any other control character does not."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def say(text: str, *, label: str = "", colour: str = "") -> None:
    """Write one line of talk to stderr, after a label in an ANSI colour (such as "32")."""
    line = f"{paint(label, colour)} {printable(text)}" if label else printable(text)
    with contextlib.suppress(OSError):  # talk that nobody can hear ends no verb
        print(line, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Write a warning to stderr."""
    say(text, label="warning:", colour="33")


def emit(args: argparse.Namespace, data: Mapping[str, Any], text: str) -> None:
    """Write the verb's result to stdout: `data` as one JSON object under --json, else `text`."""
    if args.json:
        write_out(json.dumps(data, indent=2, sort_keys=False))
    elif text:
        write_out(printable(text))


def write_out(text: str, *, end: str = "\n") -> None:
    """Write to stdout; raise EnvironmentLacks where it takes no more, BrokenPipeError where nobody reads it."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        raise EnvironmentLacks(f"cannot write to standard output: {error.strerror}") from error


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
        self._what = printable(what)
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
        with contextlib.suppress(EnvironmentLacks):  # what went wrong before is told in any case
            write_out(json.dumps({"error": error_fields(error)}, indent=2))
    say(_laid_out(error), label="error:", colour="31")
    hint = find_hint(error)
    if hint:
        say(hint, label="hint:", colour="33")
    if (error.hint or isinstance(error, AttestationError)) and error.cure and error.slug not in PLAIN_SLUGS:
        say(f"{_program()} explain {error.slug}", label="more:", colour="33")


def error_fields(error: VeracruzError) -> dict[str, Any]:
    """Return an error's part of every JSON answer."""
    return {
        "slug": error.slug, "message": error.what, "expected": error.expected, "actual": error.actual,
        "hint": find_hint(error),
    }  # fmt: skip


def find_hint(error: VeracruzError) -> str | None:
    """Return what to do: the error's own hint, else its class's cure, but for those that only say "read on"."""
    return error.hint or (error.cure if error.slug not in PLAIN_SLUGS else None) or None


def _laid_out(error: VeracruzError) -> str:
    """Return an error's text; two long values, such as registers, stand one above the other."""
    if error.expected is None or error.actual is None or min(len(error.expected), len(error.actual)) < LONG_VALUE:
        return str(error)
    return f"{error.what}\n  expected {error.expected}\n  got      {error.actual}"


def _program() -> str:
    alone = sys.argv[0].replace(os.sep, "/").endswith("attestation/__main__.py")
    return "python -m attestation" if alone else "veracruz"


def run_verb(args: argparse.Namespace) -> int:
    """Run the chosen verb and turn whatever it raises into a message and an exit code."""
    verb: Verb = args.run
    try:
        return verb(args)
    except BrokenPipeError:
        raise  # whoever read our output is gone
    except (VeracruzError, OSError, MemoryError) as error:
        if args.debug:
            import traceback

            traceback.print_exc()
        told = as_told(error)
        report(told, as_json=args.json)
        return told.exit_code


def as_told(error: VeracruzError | OSError | MemoryError) -> VeracruzError:
    """Return an error in the one form of all: what the system refused is a lack of this machine."""
    if isinstance(error, VeracruzError):
        return error
    if isinstance(error, MemoryError):
        return EnvironmentLacks("this machine, or a limit on this process, gives too little memory")
    limit = "raise a limit of this process: ulimit -n 1024 -u 1024"
    hint = limit if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN) else None
    places = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return EnvironmentLacks(": ".join([*places, error.strerror or str(error) or type(error).__name__]), hint=hint)


def run_command(command: Callable[[], int]) -> int:
    """Run a whole command, its imports included: a signal, or a closed or full output, is an end without traceback."""
    _open_standard_files()
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:  # ignored under nohup, and then it stays so
            signal.signal(number, _interrupt)
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted")
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        told = EnvironmentLacks(f"cannot write to standard output: {error.strerror}")
        report(told, as_json=False)
        return told.exit_code
    return EXIT_INTERRUPTED


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _open_standard_files() -> None:
    """Let output be there and take any text, so that a closed descriptor or an odd locale ends no verb half-way."""
    for descriptor in range(3):  # else the next file that is opened becomes, say, standard output
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 -- kept until the process ends
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Send what is left of standard output nowhere: the interpreter flushes it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
