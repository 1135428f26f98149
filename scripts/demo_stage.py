# SPDX-License-Identifier: MIT
"""The demo's stage: persons with folders of their own, commands that can be copied, one line a step, nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TextIO

WIDTH = 100  # columns of a step's line, and of a command before it is folded
QUIET = 1.0  # seconds before a step shows that it is still under way
PLAIN_PAUSE = 15.0  # seconds before the first such line where the output is no terminal; each next pause is doubled
LONGEST_PLAIN_PAUSE = 60.0  # seconds
STOPPING = 20.0  # seconds that a command has to end after it was told to
MAX_OUTPUT = 4 * 1024 * 1024  # bytes kept of a command's standard output


class StepFailed(Exception):
    """A step did not go as it must; the text says how."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a command must fail: with exactly this exit code and slug."""

    exit_code: int
    slug: str


@dataclass(frozen=True, slots=True)
class Person:
    """Someone with a machine of their own: a folder to work in, and a state that nobody else sees."""

    name: str
    folder: Path
    environment: Mapping[str, str]


@dataclass(slots=True)
class Step:
    """A step under way: what is shown beside its title while it lasts and when it is over."""

    title: str
    started: float
    news: str = ""  # the last line that a command said
    result: str = ""
    commands: list[str] = field(default_factory=list)


def printable(text: str, limit: int = 400) -> str:
    """Return text that a program wrote as one line of printable ASCII."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text.strip())[:limit]


def fold(prompt: str, command: Sequence[str]) -> str:
    """Return a command as a shell takes it, folded before its options where it is long."""
    parts: list[str] = []
    for word in command:
        if word.startswith("--") or not parts:
            parts.append(shlex.quote(word))
        else:
            parts[-1] += " " + shlex.quote(word)
    lines = [f"{prompt} {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append(" " * (len(prompt) + 5) + part)
        else:
            lines[-1] += " " + part
    return "\n".join(lines)


class Stage:
    """Tells the story on stdout and runs its commands. On leaving, whatever still runs is stopped, scratch removed."""

    def __init__(self, command: Path, *, keep: bool = False, out: TextIO = sys.stdout) -> None:
        self._command = command
        self._keep = keep
        self._out = out
        self._live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and "NO_COLOR" not in os.environ
        self._children: list[subprocess.Popen[bytes]] = []
        self._isolates: list[tuple[Person, str]] = []
        self._step: Step | None = None
        self._leaving = False
        self.steps = 0
        self.scratch = Path(tempfile.mkdtemp(prefix="veracruz-demo-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        # A second Ctrl-C must not leave an isolate behind.
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        self._leaving = True
        try:
            for child in list(self._children):
                stop_group(child)
            for person, name in reversed(self._isolates):
                self._stop_isolate(person, name)
            if self._keep:
                self.say(f"kept: {self.scratch}")
            else:
                shutil.rmtree(self.scratch, ignore_errors=True)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    # ---- telling ----

    def say(self, text: str = "") -> None:
        """Write one line of the story."""
        print(text, file=self._out, flush=True)

    def title(self, text: str) -> None:
        """Begin a part of the story."""
        self.say()
        self.say(self._paint(text, "1"))

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Tell a step: its line when it is over, and how long it has lasted when that is more than a second."""
        step = Step(title, time.monotonic())
        over = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(step, over), daemon=True)
        ticker.start()
        self._step, mark, colour = step, "failed", "31"
        try:
            yield step
            mark, colour = "ok", "32"
            self.steps += 1
        except KeyboardInterrupt:
            mark, colour = "interrupted", "33"
            raise
        finally:
            over.set()
            ticker.join()
            self._step = None
            seconds = f"{time.monotonic() - step.started:5.1f} s"
            text = title + (f": {step.result}" if step.result else "")
            if self._live:
                print("\r\033[2K", end="", file=self._out)
            self.say(f"  {self._paint(f'{mark:<6}', colour)} {seconds}  {text}")
            for command in step.commands:
                self.say(self._paint("\n".join(" " * 18 + line for line in command.split("\n")), "2"))

    def _tick(self, step: Step, over: threading.Event) -> None:
        wait = QUIET if self._live else PLAIN_PAUSE
        while not over.wait(wait):
            wait = 0.25 if self._live else min(2 * wait, LONGEST_PLAIN_PAUSE)
            line = f"  ...    {time.monotonic() - step.started:5.0f} s  {step.title}"
            line += f" ({step.news})" if step.news else ""
            if self._live:
                columns = shutil.get_terminal_size().columns
                print(f"\r\033[2K{line[: columns - 1]}", end="", file=self._out, flush=True)
            else:
                self.say(line[: 2 * WIDTH])

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    # ---- acting ----

    def person(self, name: str) -> Person:
        """Return a new person, with an empty folder and state."""
        folder = self.scratch / name
        folder.mkdir()
        environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "NO_COLOR": "1"}
        return Person(name, folder, environment)

    def show(self, person: Person, command: Sequence[str]) -> None:
        """Put a command under the line of the step that is under way."""
        if self._step is not None:
            self._step.commands.append(fold(f"{person.name}$", command))

    def veracruz(
        self,
        person: Person,
        *arguments: str,
        refusal: Refusal | None = None,
        checkout: Path | None = None,
        shown: bool = True,
    ) -> dict[str, Any]:
        """Run `veracruz ARGUMENTS --json` as a person and return its answer.

        Raises StepFailed if it fails, or with `refusal` if it does anything else than to fail in exactly that way.
        `checkout` is the folder of other packages than the installed ones. Other threads call this too, for what is
        begun early; then with `shown` false.
        """
        if shown:
            self.show(person, ["veracruz", *arguments])
        program, environment = [str(self._command)], dict(person.environment)
        if checkout is not None:
            program = [str(self._command.with_name("python")), "-m", "host_shim.cli"]
            environment |= {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
        step = self._step if shown else None
        code, output, talk = self._run([*program, *arguments, "--json"], person, environment, step)
        try:
            answer = json.loads(output) if output.strip() else {}
        except ValueError as error:
            raise StepFailed(f"veracruz {arguments[0]} printed no JSON: {printable(output)}") from error
        if refusal is None:
            if code != 0:
                raise StepFailed(f"veracruz {shlex.join(arguments)}: exit {code}: {talk}")
            return dict(answer)
        told = answer.get("error") or answer  # `attest verify` prints a whole appraisal
        slug = told.get("slug") if isinstance(told, dict) else None
        if (code, slug) != (refusal.exit_code, refusal.slug):
            raise StepFailed(
                f"veracruz {shlex.join(arguments)}: must be refused with exit {refusal.exit_code}, {refusal.slug}; "
                f"got exit {code}, {slug}: {talk}"
            )
        if step is not None:
            step.result = step.result or f"refused, {slug}"
        return dict(answer)

    def started(self, person: Person, name: str) -> None:
        """Remember an isolate that is to be stopped when the story ends, however it ends."""
        self._isolates.append((person, name))

    def stop(self, person: Person, name: str) -> None:
        """Stop an isolate now."""
        self.veracruz(person, "enclave", "stop", name, shown=False)
        self._isolates.remove((person, name))

    def ended(self, person: Person, name: str) -> None:
        """Forget an isolate that has ended by itself."""
        self._isolates.remove((person, name))

    def _stop_isolate(self, person: Person, name: str) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [str(self._command), "enclave", "stop", name], env=person.environment, cwd=person.folder,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=2 * STOPPING, check=False, process_group=0,
            )  # fmt: skip

    def _run(
        self, command: list[str], person: Person, environment: Mapping[str, str], step: Step | None
    ) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code, its output and the last of what it said."""
        if self._leaving:
            raise StepFailed("the story is over")
        child = subprocess.Popen(
            command, cwd=person.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, process_group=0,  # Ctrl-C reaches it from us alone, in `stop_group`
        )  # fmt: skip
        self._children.append(child)
        talk: list[str] = []
        assert child.stdout is not None
        assert child.stderr is not None
        listener = threading.Thread(target=self._listen, args=(child.stderr, talk, step), daemon=True)
        listener.start()
        try:
            with child.stdout as stream:
                output = stream.read(MAX_OUTPUT)
            code = child.wait()
        except BaseException:
            stop_group(child)
            raise
        finally:
            self._children.remove(child)
        listener.join(timeout=STOPPING)  # an isolate that stays may hold the other end
        return code, output.decode("utf-8", "replace"), " / ".join(talk[-4:])

    @staticmethod
    def _listen(stream: IO[bytes], talk: list[str], step: Step | None) -> None:
        with stream:
            for raw in stream:
                for part in raw.decode("utf-8", "replace").split("\r"):
                    if line := printable(part):
                        talk.append(line)
                        del talk[:-20]
                        if step is not None:
                            step.news = line


def stop_group(child: subprocess.Popen[bytes]) -> None:
    """End a command that we started in a process group of its own, and whatever it started there."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        for number, patience in ((signal.SIGINT, STOPPING), (signal.SIGTERM, STOPPING / 4)):
            os.killpg(child.pid, number)
            if _has_ended(child.pid, patience):
                break
        os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still this group's
    child.wait()


def _has_ended(pid: int, patience: float) -> bool:
    """Wait for a child to end, and leave it to be reaped."""
    deadline = time.monotonic() + patience
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
