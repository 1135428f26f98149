# SPDX-License-Identifier: MIT
"""The relay for minutes under mixed traffic with random kills: every byte is checked, and what it holds is watched.

Behind it stands an isolate's side (an echo, in a process that is killed and started again now and then); before it
clients in processes that are killed too. An echo that comes back wrong is a fault, and so is anything that the relay
holds at the end and did not at the start. A connection that ends early must end by a reset, but for those open when the
isolate's side was killed: what a killed process had read to the end, its kernel closes as if it were done.
Beside it runs a whole isolate with participants (soak_isolate).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soak_isolate import IsolateRig, be_participant, held_by

from attestation.console import say
from host_shim.board import read_board
from host_shim.children import python_command
from host_shim.listen import Listener, TcpEndpoint, parse_endpoint
from host_shim.relay.counters import Counters

SHORT = 10_000  # connections in the first phase
CLIENTS = 4  # processes at once
IDLE = 20.0  # seconds; the relay's limit
TOLD = (errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED, errno.ENOTCONN)  # ways in which a kernel says "reset"
STALL = 30.0  # seconds without a byte until a client calls it a fault
SPARE = 40  # descriptors: the pipes that the relay keeps, and its listener
GROWTH = 16 << 20  # bytes


# The isolate's side


def echo(place: str) -> None:
    """Send back what comes, slowly on some connections, until killed."""
    Path(place).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(4096)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_echo_one, args=(connection,), daemon=True).start()


def _echo_one(connection: socket.socket) -> None:
    slow = random.random() < 0.1
    with contextlib.suppress(OSError), connection:
        while data := connection.recv(1 << 18):
            connection.sendall(data)
            if slow:
                time.sleep(0.005)


# Clients


def be_client(port: int, seed: int) -> None:
    """Open one connection after the other until killed; print a line for each: what it was, and how it ended."""
    chance = random.Random(seed)
    while True:
        kind = chance.choice(("small", "small", "bulk", "half", "abrupt", "idle"))
        try:
            told = _exchange(chance, kind, port)
        except TimeoutError:
            told = "stalled"
        except OSError as error:
            if error.errno not in TOLD:
                raise
            told = "reset"
        print(json.dumps([kind, told]), flush=True)


def _exchange(chance: random.Random, kind: str, port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=STALL) as sock:
        if kind == "small":
            for _ in range(chance.randrange(1, 50)):
                if (told := _round(sock, chance.randbytes(chance.randrange(1, 3000)))) != "ok":
                    return told
            return "ok"
        if kind == "idle":
            time.sleep(chance.random())
            return _round(sock, b"late")
        data = chance.randbytes(chance.randrange(1, 1 << 20)) * (chance.randrange(1, 16) if kind == "bulk" else 1)
        if kind == "abrupt":
            sock.sendall(data[: chance.randrange(1, 65536)])
            return "left"
        return _round(sock, data, ends=kind == "half" or chance.random() < 0.5)


def _round(sock: socket.socket, data: bytes, *, ends: bool = False) -> str:
    """Send and receive at once; return how it went."""
    sent, got = memoryview(data), 0
    sock.setblocking(False)
    try:
        while got < len(data):
            readable, writable, _ = select.select([sock], [sock] if sent else [], [], STALL)
            if not (readable or writable):
                return "stalled"
            if writable:
                sent = sent[sock.send(sent[: 1 << 18]) :]
                if not sent and ends:
                    sock.shutdown(socket.SHUT_WR)
            if readable:
                piece = sock.recv(1 << 18)
                if not piece:
                    return "cut without an error"
                if piece != data[got : got + len(piece)]:
                    return "wrong bytes"
                got += len(piece)
        if ends:
            select.select([sock], [], [], STALL)
            if sock.recv(1):
                return "more bytes than sent"
        return "ok"
    finally:
        sock.settimeout(STALL)


# The rig


class Rig:
    """The relay, what stands behind it, and what it held over time."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "inside"
        self._listener = Listener(parse_endpoint("127.0.0.1:0"))
        assert isinstance(self._listener.endpoint, TcpEndpoint)
        self.port = self._listener.endpoint.port
        self._counters = os.open(folder / "counters", os.O_RDWR | os.O_CREAT)
        self.isolate = self._start_isolate()
        fds = [self._listener.fileno(), self._counters]
        command = python_command(
            "host_shim.relay", "--listen-fd", str(fds[0]), "--counters-fd", str(fds[1]), "--target", str(self.place),
            "--idle", str(IDLE), "--max-connections", "512", "--max-per-source", "500",
        )  # fmt: skip
        self.relay = subprocess.Popen(command, pass_fds=fds, stderr=(folder / "log").open("wb"))
        self.log = folder / "log"

    def _start_isolate(self) -> subprocess.Popen[str]:
        isolate = subprocess.Popen([*ME, "echo", str(self.place)], stdout=subprocess.PIPE, text=True)
        assert isolate.stdout is not None
        isolate.stdout.readline()
        return isolate

    def kill_isolate(self) -> None:
        """Kill -9, and start another in its place."""
        self.isolate.kill()
        self.isolate.communicate()
        self.isolate = self._start_isolate()

    def held(self) -> dict[str, int]:
        """Return what the relay's process has now."""
        return held_by(self.relay.pid)

    def counters(self) -> Counters:
        """Return what it has counted."""
        return read_board(self._counters, Counters) or Counters()

    def settle(self) -> dict[str, int]:
        """Wait until no connection is open; return what is held then."""
        until = time.monotonic() + 2 * IDLE
        time.sleep(2.5)  # the counters are at most a second old
        while self.counters().open and time.monotonic() < until:
            time.sleep(0.2)
        return self.held()

    def close(self) -> None:
        """End it all."""
        for process in (self.relay, self.isolate):
            process.terminate()
            process.wait(20)
        if self.isolate.stdout is not None:
            self.isolate.stdout.close()
        self._listener.close()
        os.close(self._counters)


class Clients:
    """Client processes, killed at random and started again; counts what they told."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port = port
        self._chance = chance
        self._running: list[subprocess.Popen[str]] = []
        self.told: dict[str, int] = {}
        self.killed = 0
        self._lock = threading.Lock()
        for _ in range(CLIENTS):
            self._start()

    def _start(self) -> None:
        seed = str(self._chance.randrange(1 << 32))
        process = subprocess.Popen([*ME, "client", str(self._port), seed], stdout=subprocess.PIPE, text=True)
        self._running.append(process)
        threading.Thread(target=self._listen, args=(process,)).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.endswith("\n"):
                    kind, how = json.loads(line)
                    with self._lock:
                        self.told[f"{kind}: {how}"] = self.told.get(f"{kind}: {how}", 0) + 1

    def kill_one(self) -> None:
        """Kill -9, and start another."""
        process = self._running.pop(self._chance.randrange(len(self._running)))
        process.kill()
        process.wait()
        self.killed += 1
        self._start()

    def ended(self) -> list[int]:
        """Return the exit codes of those that ended by themselves: a bug in this script."""
        return [process.returncode for process in self._running if process.poll() is not None]

    def close(self) -> None:
        """Kill them all."""
        for process in self._running:
            process.kill()
            process.wait()


def short_connections(port: int, count: int) -> float:
    """Open, use and close one connection after the other; return the seconds."""
    begin = time.monotonic()
    for index in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=STALL) as sock:
            payload = b"%d" % index
            sock.sendall(payload)
            if sock.recv(100) != payload:
                raise SystemExit("a short connection's echo came back wrong")
    return time.monotonic() - begin


@contextlib.contextmanager
def closing(thing: Any) -> Iterator[Any]:
    """Close it, whatever happens."""
    try:
        yield thing
    finally:
        thing.close()


def soak(minutes: float, seed: int, short: int) -> dict[str, Any]:
    """Run it; return what was seen, with the faults under "faults"."""
    chance = random.Random(seed)
    peak = {"descriptors": 0, "threads": 0, "resident": 0}
    isolates_killed = 0
    with tempfile.TemporaryDirectory(prefix="veracruz-soak-") as folder, closing(Rig(Path(folder))) as rig:
        short_connections(rig.port, 200)
        before = rig.settle()
        seconds = short_connections(rig.port, short)
        say(f"{short} short connections in {seconds:.1f} s")
        whole = IsolateRig(Path(folder) / "home", ME, chance)
        with closing(whole), closing(Clients(rig.port, chance)) as clients:
            until = time.monotonic() + 60 * minutes
            next_kill = time.monotonic() + 20
            while time.monotonic() < until and rig.relay.poll() is None and not clients.ended():
                time.sleep(chance.random() * 2)
                peak = {name: max(value, peak[name]) for name, value in rig.held().items()}
                if chance.random() < 0.5:
                    clients.kill_one()
                if time.monotonic() >= next_kill:
                    next_kill = time.monotonic() + chance.uniform(5, 30)
                    rig.kill_isolate()
                    isolates_killed += 1
            ended = clients.ended()
        died = rig.relay.poll()
        after = rig.settle() if died is None else before
        counters, log, isolate = rig.counters(), rig.log.read_text(), whole.tell()
    cut = sum(count for what, count in clients.told.items() if what.endswith("cut without an error"))
    wrong = ("wrong bytes", "stalled", "more bytes than sent")
    faults = [f"{what}: {count}" for what, count in clients.told.items() if what.endswith(wrong)]
    faults += [f"{cut} cut without an error"] * (cut > CLIENTS * isolates_killed)
    faults += [f"the relay died with {died}"] * (died is not None)
    faults += [f"a client ended with {code}" for code in ended]
    faults += [f"{counters.open} connections open at the end"] * bool(counters.open)
    faults += ["descriptors leaked"] * (after["descriptors"] > before["descriptors"] + SPARE)
    faults += ["threads leaked"] * (after["threads"] > before["threads"])
    faults += ["memory leaked"] * (after["resident"] > before["resident"] + GROWTH)
    faults += ["a traceback in the log"] * ("Traceback" in log)
    faults += isolate.pop("faults")
    return {
        "faults": faults, "minutes": minutes, "seed": seed, "short_connections": short,
        "short_connections_s": round(seconds, 1), "told": dict(sorted(clients.told.items())),
        "clients_killed": clients.killed, "isolates_killed": isolates_killed, "before": before, "peak": peak,
        "after": after, "counters": asdict(counters), "isolate": isolate, "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


ME = [sys.executable, str(Path(__file__).resolve()), "--as"]


def main() -> int:
    """Run the soak, or be one of its processes."""
    if sys.argv[1:2] == ["--as"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rig ends them
        what, *rest = sys.argv[2:]
        if what == "echo":
            echo(rest[0])
        if what == "participant":
            be_participant(rest[0], Path(rest[1]), Path(rest[2]), int(rest[3]))
        be_client(int(rest[0]), int(rest[1]))
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="of the kills and the traffic (default: a new one, which is shown)")
    parser.add_argument("--short", type=int, default=SHORT, help=f"connections of the first phase (default {SHORT})")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.randrange(1 << 32)
    found = soak(args.minutes, seed, args.short)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:20} {value}")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
