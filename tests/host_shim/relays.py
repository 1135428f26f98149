# SPDX-License-Identifier: MIT
"""What the relay's tests share: a target whose connections the test holds, and `veracruz relay` as a process."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from host_shim.board import read_board
from host_shim.relay.counters import Counters

LIMIT = 20.0  # seconds for anything
RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: closing resets


def wait_for(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait until a condition holds; return its value."""
    until = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.02)
    return value


class Target:
    """A listening socket on the isolate's side."""

    def __init__(self, place: Path | None, backlog: int = 512) -> None:
        self.sock = socket.socket(socket.AF_INET if place is None else socket.AF_UNIX)
        self.sock.bind(("127.0.0.1", 0) if place is None else str(place))
        self.sock.listen(backlog)
        self.sock.settimeout(LIMIT)
        self.endpoint = f"unix:{place}" if place else f"tcp:127.0.0.1:{self.sock.getsockname()[1]}"

    def accept(self) -> socket.socket:
        connection, _ = self.sock.accept()
        connection.settimeout(LIMIT)
        return connection


class Verb:
    """A running `veracruz relay`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = folder / "relay.log"
        self._counters = os.open(folder / "counters", os.O_RDONLY)
        self.listen: list[str] = []

    def dial(self, index: int = 0) -> socket.socket:
        kind, _, place = self.listen[index].partition(":")
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(LIMIT)
            sock.connect(place)
            return sock
        host, _, port = self.listen[index].rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=LIMIT)

    def counters(self) -> Counters:
        return read_board(self._counters, Counters) or Counters()

    def log(self) -> str:
        return self._log.read_text()

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def lowest_free(self) -> int:
        """Return the least number that is no descriptor: a limit of that lets it open none."""
        numbers = {int(entry.name) for entry in Path(f"/proc/{self.pid}/fd").iterdir()}
        return next(number for number in range(len(numbers) + 1) if number not in numbers)

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def resident(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.close(self._counters)


@contextmanager
def verb(folder: Path, to: str, *options: str, listen: str = "tcp:127.0.0.1:0", **popen: Any) -> Iterator[Verb]:
    """Run the relay; give it once it listens, and end it."""
    (folder / "counters").touch()
    listening = [word for one in listen.split() for word in ("--listen", one)]
    command = [
        sys.executable, "-m", "host_shim.cli", "relay", *listening, "--to", to,
        "--counters", str(folder / "counters"), "--json", "--drain", "0", *options,
    ]  # fmt: skip
    with (
        (folder / "relay.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, **popen) as process,
    ):
        running = Verb(process, folder)
        try:
            assert process.stdout is not None
            text = ""
            for line in process.stdout:
                text += line
                if line == "}\n":
                    break
            assert text, running.log()
            running.listen = json.loads(text)["listen"]
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(LIMIT)
            finally:
                process.kill()
                running.close()


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def is_reset(sock: socket.socket) -> bool:
    """Wait for the end; return whether it was a reset."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return True
    return False


def is_refused(relay: Verb) -> bool:
    """Dial; return whether that was reset: while connecting, if the relay is quick."""
    try:
        with relay.dial() as sock:
            return is_reset(sock)
    except ConnectionResetError:
        return True


def is_silent(sock: socket.socket, seconds: float = 0.3) -> bool:
    return not select.select([sock], [], [], seconds)[0]
