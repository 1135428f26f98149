# SPDX-License-Identifier: MIT
"""One run of the fuzzer on one target: its process, started again where an input takes it down; its figures."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from attestation.console import say
from attestation.errors import EnvironmentLacks

from .seeds import CORPUS
from .target import MEMORY, TOP, Target

HARD_SECONDS = 30  # of wall time for one input, even in a library that no Python signal interrupts
GRACE_SECONDS = 300  # beyond its time: a busy machine takes more than a minute to load and instrument everything
MAX_DEATHS = 10  # times that an input takes the fuzzing process down before we give up
_DONE = re.compile(r"^(?:stat::number_of_executed_units:\s+|#)(\d+)", re.MULTILINE)
_COVERAGE = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass(frozen=True, slots=True)
class Result:
    """What one run came to."""

    target: str
    inputs: int
    seconds: float
    edges: int  # of our own code, as atheris counts them
    corpus: int  # inputs that each reach something of their own
    findings: tuple[Path, ...]


def fuzz(
    target: Target,
    *,
    seconds: float | None,
    runs: int | None,
    corpus: Path,
    findings: Path,
    seed: int,
    module: str = "scripts.fuzzing.targets",
) -> Result:
    """Fuzz a target until time or inputs are used up; where an input kills the process, another one goes on.

    `module` is where the process finds the target again, in a table TARGETS.
    """
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    before = _times(findings)
    started = time.monotonic()
    inputs = edges = kept = 0
    for death in range(MAX_DEATHS):
        left = None if seconds is None else seconds - (time.monotonic() - started)
        if (left is not None and left < 1) or (runs is not None and inputs >= runs):
            break
        earlier = _times(findings)
        options = [
            f"-seed={seed + death}", f"-max_len={target.largest}", f"-timeout={HARD_SECONDS}", "-print_final_stats=1",
            f"-rss_limit_mb={2 * MEMORY >> 20}", f"-artifact_prefix={findings}/", "-verbosity=1",
        ]  # fmt: skip
        if left is not None:
            options.append(f"-max_total_time={int(left)}")
        if runs is not None:
            options.append(f"-runs={runs - inputs}")
        seeds = [str(CORPUS / target.name)] if (CORPUS / target.name).is_dir() else []
        done, log = _run_engine([module, target.name, str(findings), *options, str(corpus), *seeds], left)
        inputs += int(match[-1]) if (match := _DONE.findall(log)) else 0
        if covered := _COVERAGE.findall(log):
            edges, kept = max(edges, int(covered[-1][0])), int(covered[-1][2])
        if done == 0:
            break
        if _times(findings) == earlier:
            say(log[-2000:])
            late = f"no end within {GRACE_SECONDS} s beyond its time"
            raise EnvironmentLacks("the fuzzer failed", actual=late if done == -signal.SIGKILL else f"exit code {done}")
        say(f"the process ended with {done}: an input took it down")
    found = tuple(path for path, changed in _times(findings).items() if before.get(path) != changed)
    return Result(target.name, inputs, time.monotonic() - started, edges, kept, found)


def _times(folder: Path) -> dict[Path, int]:
    """Return the inputs in a folder, each with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.iterdir()) if path.suffix != ".txt"}


def _run_engine(arguments: list[str], seconds: float | None) -> tuple[int, str]:
    command = [sys.executable, "-m", "scripts.fuzzing.engine", *arguments]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, cwd=TOP, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            code = process.wait(None if seconds is None else seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        return code, log.read()
