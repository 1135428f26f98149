# SPDX-License-Identifier: MIT
"""The one door for subprocesses: a clean environment, no stdin, a log whose commands can be pasted."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import BuildFailed

CLEAN_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}
LOG_TAIL = 15  # lines of a failed command's output that its error shows


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,  # seconds
) -> bytes:
    """Run a command to its end; return its stdout.

    With `log`, its stdout and stderr are appended there instead. Raises BuildFailed with the last lines.
    """
    words = [str(word) for word in command]
    environment = dict(CLEAN_ENVIRONMENT if env is None else env)
    if log is None:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=timeout, check=False
        )
        tail = done.stderr
    else:
        with log.open("ab") as stream:
            shown = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
            stream.write(f"+ env -i {' '.join(shown)} {shlex.join(words)}\n".encode())
            stream.flush()
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment,
                timeout=timeout, check=False,
            )  # fmt: skip
        tail = log.read_bytes()[-16384:]
    if done.returncode != 0:
        last = "\n  ".join(tail.decode("utf-8", "replace").splitlines()[-LOG_TAIL:])
        raise BuildFailed(
            f"{what} failed with exit code {done.returncode}:\n  {last}",
            hint=f"the whole log is in {log}" if log else None,
        )
    return done.stdout or b""
