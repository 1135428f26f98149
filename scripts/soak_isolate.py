# SPDX-License-Identifier: MIT
"""The soak's second rig: `enclave run` with a `process` isolate, and participants that attest, send, fetch and leave.

The isolate is killed now and then, and so is its supervisor: what was started again must serve again. Whatever a
participant is told outside such a time must be good, what comes back must be what was sent, and no process that goes
on may hold more than when it was young.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.appraising import Trust, appraise
from attestation.endpoint import Endpoint
from attestation.errors import VeracruzError
from attestation.identity import Identity, load_identity, write_identity
from attestation.input_files import read_root
from attestation.participant import open_session
from attestation.pins import PinStore
from attestation.policy import parse_policy
from host_shim.children import ProcessId
from host_shim.record import Record, Stage
from host_shim.state import Isolates

NAME = "soak"
PARTICIPANTS = 2  # processes at once
LARGEST = 2 << 20  # bytes of a file
SERVES = 90.0  # seconds in which whatever was killed must be there again: pauses between starts, a loaded machine
FIRST_KILL = 30.0  # seconds
KILLS = (60.0, 400.0)  # seconds between two kills; five minutes of service end a row of deaths
YOUNG = 30.0  # seconds of age at which it is noted what a process holds
GROWTH = 48 << 20  # bytes
SPARE = 40  # descriptors
PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT = 60.0  # seconds for anything else


def held_by(pid: int) -> dict[str, int]:
    """Return what a process has now; raise OSError if it is gone."""
    proc = Path(f"/proc/{pid}")
    return {
        "descriptors": len(list((proc / "fd").iterdir())),
        "threads": len(list((proc / "task").iterdir())),
        "resident": int((proc / "statm").read_text().split()[1]) * PAGE,
    }


# Participants


def be_participant(endpoint: str, folder: Path, root: Path, seed: int) -> None:
    """Do one thing after the other until killed; print a line for each: what, how it ended, from when to when."""
    chance = random.Random(seed)
    place = Endpoint.parse(endpoint)
    identity = load_identity(folder / "alice")
    policy = (folder / "policy.json").read_bytes()
    trust = Trust(read_root(str(root)), (), allow_debug=True)
    pins = PinStore(folder / f"pins-{seed}")
    while True:
        kind = chance.choice(("files", "files", "files", "evidence", "abrupt"))
        begin = time.monotonic()
        try:
            if kind == "files":
                told = _exchange_files(chance, place, policy, trust, identity, pins)
            elif kind == "evidence":
                appraise(place, parse_policy(policy), trust, clock=lambda: datetime.now(UTC))
                told = "ok"
            else:
                told = _leave(chance, place)
        except VeracruzError as error:
            told = error.slug
        print(json.dumps([kind, told, begin, time.monotonic()]), flush=True)
        time.sleep(2 * chance.random())  # documents are given four a second; who asks more often is told so


def _exchange_files(
    chance: random.Random, place: Endpoint, policy: bytes, trust: Trust, identity: Identity, pins: PinStore
) -> str:
    with open_session(
        place, policy, trust=trust, identity=identity, pins=pins, clock=lambda: datetime.now(UTC), new_isolate=True
    ) as session:
        for _ in range(chance.randrange(1, 8)):
            path = f"/data/{chance.randrange(1 << 48):x}"
            data = chance.randbytes(chance.choice((1, 1000, 70_000, chance.randrange(LARGEST))))
            stored = session.put(path, _file(data))
            came = io.BytesIO()
            session.read(path, came)
            session.delete(path)
            if came.getvalue() != data or stored.sha256 != hashlib.sha256(data).digest():
                return "wrong bytes"
    return "ok"


def _file(data: bytes) -> Any:
    file = os.fdopen(os.memfd_create("soak"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _leave(chance: random.Random, place: Endpoint) -> str:
    """Break off in the middle of a handshake, or send what is none."""
    with place.dial(timeout=LIMIT) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(chance.choice((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n\r\n", b"")))
        if chance.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return "left"


# The rig


@dataclass(slots=True)
class Life:
    """A process as long as it lives: when it was first seen, and what it held young and last."""

    role: str
    since: float
    young: dict[str, int] | None = None
    last: dict[str, int] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Return what it holds more than it did."""
        if self.young is None:
            return []
        more = {name: self.last[name] - value for name, value in self.young.items()}
        allowed = {"descriptors": SPARE, "threads": 8, "resident": GROWTH}
        return [f"the {self.role} holds {more[name]} more {name}" for name in more if more[name] > allowed[name]]


class IsolateRig:
    """An isolate with its supervisor, in a home of their own, and participants."""

    def __init__(self, folder: Path, command: list[str], chance: random.Random) -> None:
        self._folder = folder
        self._me = command
        self._chance = chance
        self._environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "TMPDIR": str(folder)}
        folder.mkdir(mode=0o700)
        identity = write_identity("alice", folder)
        self._write_policy(identity)
        self._isolates = Isolates(folder / "state" / "veracruz")
        self._endpoint = "127.0.0.1:0"
        self._lives: dict[ProcessId, Life] = {}
        self._participants: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._told: list[tuple[str, str, float, float]] = []
        self._down: list[tuple[float, float]] = []
        self.killed = {"runtime": 0, "relay": 0, "supervisor": 0}
        self.problems: list[str] = []
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._supervisor = self._start()
        for _ in range(PARTICIPANTS):
            self._start_participant()
        self._next_kill = time.monotonic() + FIRST_KILL
        self._watcher.start()

    def _write_policy(self, identity: Identity) -> None:
        party = {
            "name": "alice", "certificate": identity.certificate_file.read_text(),
            "rights": {"/data/": ["read", "write", "delete", "list"]},
        }  # fmt: skip
        image = {f"PCR{index}": "11" * 48 for index in range(3)}
        policy = {
            "schema": "veracruz.policy/1", "name": "soak", "images": [image], "participants": [party],
            "join": ["alice"], "programs": [],
        }  # fmt: skip
        (self._folder / "policy.json").write_text(json.dumps(policy))

    def _start(self) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-m", "host_shim.cli", "enclave", "run", "--isolate", "process", "--json", "--name", NAME,
            "--policy", str(self._folder / "policy.json"), "--listen", self._endpoint, "--restart", "on-failure",
        ]  # fmt: skip
        talk = (self._folder / "supervisor.txt").open("ab")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True, env=self._environment)
        talk.close()
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        if not text:
            raise SystemExit(f"the isolate did not start: {(self._folder / 'supervisor.txt').read_text()}")
        told = json.loads(text)
        self._endpoint, self._root = told["endpoint"], Path(told["root"])
        return process

    def _start_participant(self) -> None:
        words = [self._endpoint, str(self._folder), str(self._root), str(self._chance.randrange(1 << 32))]
        process = subprocess.Popen([*self._me, "participant", *words], stdout=subprocess.PIPE, text=True)
        self._participants.append(process)
        threading.Thread(target=self._listen, args=(process,)).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.endswith("\n"):
                    kind, how, begin, end = json.loads(line)
                    with self._lock:
                        self._told.append((kind, how, begin, end))

    def _record(self) -> Record:
        return self._isolates.find(NAME)

    def _watch(self) -> None:
        while not self._over.wait(2.0):
            try:
                self._look()
            except Exception as error:
                self.problems.append(f"the soak itself: {error!r}")
                return

    def _look(self) -> None:
        """Note what its processes hold; kill something when it is time."""
        record, at = self._record(), time.monotonic()
        processes = [("supervisor", record.supervisor), *zip(record.roles, record.children, strict=True)]
        for role, process in processes:
            if process is None:
                continue
            life = self._lives.setdefault(process, Life(role, at))
            with contextlib.suppress(OSError):  # gone meanwhile
                life.last = held_by(process.pid)
                if life.young is None and at - life.since >= YOUNG:
                    life.young = life.last
        ended = [process.returncode for process in self._participants if process.poll() is not None]
        if ended and not self.problems:
            self.problems.append(f"participants ended by themselves: {ended}")
        if at >= self._next_kill:
            self._kill_something(record)
            self._next_kill = time.monotonic() + self._chance.uniform(*KILLS)

    def _kill_something(self, record: Record) -> None:
        role = self._chance.choice(("runtime", "runtime", "relay", "supervisor"))
        begin = time.monotonic()
        self.killed[role] += 1
        if role == "supervisor":
            self._supervisor.kill()
            self._supervisor.communicate()
            if not _wait_for(lambda: not any(child.alive for child in record.children)):
                self.problems.append("processes outlived their supervisor")
            self._supervisor = self._start()
        else:
            dict(zip(record.roles, record.children, strict=True))[role].signal(signal.SIGKILL)
            if not _wait_for(lambda: self._serves_after(record), SERVES):
                self.problems.append(f"it does not serve after a kill of its {role}: {self._record()}")
        self._down.append((begin, time.monotonic() + 1))

    def _serves_after(self, before: Record) -> bool:
        now = self._record()
        return now.stage is Stage.SERVING and now.children != before.children

    def close(self) -> None:
        """End it all, and look whether anything is left."""
        self._over.set()
        self._watcher.join()
        for process in self._participants:
            process.kill()
            process.wait()
        record = self._record()
        self._supervisor.terminate()
        try:
            self._supervisor.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.problems.append("the supervisor does not end")
            self._supervisor.kill()
            self._supervisor.communicate()
        if not _wait_for(lambda: not any(child.alive for child in record.children)):
            self.problems.append("processes are left")
        left = [str(path) for path in self._folder.rglob("*") if path.is_socket()]
        self.problems += [f"sockets are left: {left}"] * bool(left)

    def tell(self) -> dict[str, Any]:
        """Return what was seen, with the faults under "faults"; after close()."""
        faults = list(self.problems)
        counted: dict[str, int] = {}
        for kind, how, begin, end in self._told:
            counted[f"{kind}: {how}"] = counted.get(f"{kind}: {how}", 0) + 1
            excused = any(begin <= until and since <= end for since, until in self._down)
            if how == "wrong bytes" or (how not in ("ok", "left", "busy") and not excused):
                faults.append(f"{kind}: {how}, while nothing was killed")
        for life in self._lives.values():
            faults += life.faults()
        talk = (self._folder / "supervisor.txt").read_text()
        faults += ["a traceback of the supervisor's"] * ("Traceback" in talk)
        if not counted.get("files: ok") or not counted.get("evidence: ok"):
            faults.append("nothing was exchanged")
        held = {f"{life.role} ({process.pid})": [life.young, life.last] for process, life in self._lives.items()
                if life.young is not None}  # fmt: skip
        return {"faults": faults, "told": dict(sorted(counted.items())), "killed": self.killed, "held": held}


def _wait_for(condition: Callable[[], bool], limit: float = LIMIT) -> bool:
    until = time.monotonic() + limit
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
