# SPDX-License-Identifier: MIT
"""The supervisor in a process of its own, with a guest that is a process too: every way to live and to die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from host_shim.children import ProcessId
from host_shim.state import Isolates, Stage
from tests.waiting import eventually

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path
from attestation.console import report, say
from attestation.errors import VeracruzError
from host_shim.dev_pki import open_root
from host_shim.egress.rules import parse_rules
from host_shim.isolate import Evidence
from host_shim.listen import parse_endpoint
from host_shim.report import Report
from host_shim.restart import RestartPolicy
from host_shim.state import Isolates
from host_shim import supervisor
from host_shim.supervisor import Order, Supervisor
from tests.host_shim.stub_isolate import StubIsolate

home, options = Path(sys.argv[1]), json.loads(sys.argv[2])
supervisor.RELAY_SETTLED = options["settled"]
policy = options["policy"] and options["policy"].encode()
foreign = {} if policy else {"evidence": Evidence.NONE, "port": 7777}
ways = [StubIsolate(*way, **foreign) for way in options["ways"]]
order = Order(
    ways, policy, None, parse_endpoint(options["listen"]), name="one", boot_limit=options["limit"],
    restart=RestartPolicy.parse(options["restart"]),
    egress=parse_rules(options["egress"]),
    works=lambda isolate: print("works", isolate.way, flush=True),
)
root = open_root(lambda: datetime.now(UTC), home)
try:
    asked = Supervisor(order, root, Report(say), lambda r: print(r.endpoint, flush=True)).run(Isolates(home))
except VeracruzError as error:
    report(error, as_json=False)
    sys.exit(error.exit_code)
sys.exit(40 + asked if asked else 0)
"""


class Run:
    """A supervisor under test."""

    def __init__(self, home: Path, process: subprocess.Popen[str]) -> None:
        self.home = home
        self.process = process
        self.pid = process.pid

    def endpoint(self) -> tuple[str, int]:
        """Wait until it serves."""
        assert self.process.stdout is not None
        worked, line = self.process.stdout.readline(), self.process.stdout.readline()
        assert worked.startswith("works"), self.finish()
        host, _, port = line.strip().rpartition(":")
        return host, int(port)

    def finish(self, *, within: float = 15) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it said."""
        _, said = self.process.communicate(timeout=within)
        return self.process.returncode, said

    def children(self) -> list[ProcessId]:
        """Return its processes."""
        return list(Isolates(self.home).find("one").children)


@contextmanager
def run(
    home: Path, *ways: Any, policy: str | None = "{}", listen: str = "127.0.0.1:0", limit: float = 10,
    egress: tuple[str, ...] = (), restart: str = "never", settled: float = 60,
) -> Iterator[Run]:  # fmt: skip
    told = {
        "ways": ways or [["serves"]], "policy": policy, "listen": listen, "limit": limit, "egress": egress,
        "restart": restart, "settled": settled,
    }  # fmt: skip
    options = json.dumps(told)
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(home), options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Run(home, process)
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give each test a place for sockets, and see that nothing is left there."""
    place = Path("/tmp") / f"vt-{os.getpid()}-{tmp_path_factory.mktemp('x').name}"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("TMPDIR", str(place))
    yield place
    left = [path for path in place.rglob("*") if not path.is_dir()]
    subprocess.run(["rm", "-rf", str(place)], check=True)
    assert left == []


def wait_for_end(processes: list[ProcessId]) -> None:
    deadline = time.monotonic() + 5
    while any(process.alive for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [process for process in processes if process.alive]


def stage(home: Path) -> tuple[Stage, str | None]:
    record = Isolates(home).find("one")
    return record.stage, record.reason


def test_serves_until_it_is_asked_to_end(tmp_path: Path, temporary: Path) -> None:
    with run(tmp_path) as running:
        endpoint = running.endpoint()
        with socket.create_connection(endpoint, timeout=10) as client:
            client.sendall(b"through the relay")
            assert client.recv(100) == b"through the relay"
        record = Isolates(tmp_path).find("one")
        assert record.stage is Stage.SERVING
        assert record.supervisor == ProcessId.of(running.pid)
        children = list(record.children)
        assert len(children) == 2  # the guest and the relay
        running.process.send_signal(signal.SIGTERM)
        code, said = running.finish()
    assert code == 40 + signal.SIGTERM
    for step in ("heartbeat answered", "attestor ready", "taken", "serving", "listening on 127.0.0.1:", "stopping"):
        assert step in said
    wait_for_end(children)
    assert stage(tmp_path) == (Stage.ENDED, "stopped by SIGTERM")
    assert list(temporary.iterdir()) == []


def test_an_isolate_of_anothers_making_serves_once_its_heartbeat_was_answered(tmp_path: Path) -> None:
    with run(tmp_path, ["foreign:7777"], policy=None) as running:
        endpoint = running.endpoint()
        assert eventually(lambda: answers(endpoint))  # nothing tells when it listens
        record = Isolates(tmp_path).find("one")
        assert (record.stage, record.policy, record.evidence, record.root) == (Stage.SERVING, None, "none", None)
        running.process.send_signal(signal.SIGTERM)
        code, said = running.finish()
    assert code == 40 + signal.SIGTERM
    assert "heartbeat answered" in said
    assert "policy" not in said


def answers(endpoint: tuple[str, int]) -> bool:
    with socket.create_connection(endpoint, timeout=10) as client:
        client.sendall(b"hello")
        with contextlib.suppress(ConnectionError):
            return client.recv(100) == b"hello"
    return False


def test_ctrl_c_during_the_boot_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    with run(tmp_path, ["silent"]) as running:
        deadline = time.monotonic() + 10
        while not (tmp_path / "enclaves/one/console.log").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        running.process.send_signal(signal.SIGINT)
        code, _ = running.finish()
    assert code == 40 + signal.SIGINT
    assert stage(tmp_path) == (Stage.ENDED, "stopped by SIGINT while it started")
    assert list(temporary.iterdir()) == []


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    with run(tmp_path, ["stubborn"]) as running:
        running.endpoint()
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        begin = time.monotonic()
        running.process.send_signal(signal.SIGINT)
        code, _ = running.finish()
    assert code == 40 + signal.SIGINT
    assert time.monotonic() - begin < 2


def test_a_guest_that_dies_at_once_is_told_with_its_console(tmp_path: Path) -> None:
    with run(tmp_path, ["dies-at-once"]) as running:
        code, said = running.finish()
    assert code == 5
    assert "the isolate died before its first sign of life: stub guest ended with exit code 3" in said
    assert "console: stub guest: booting \\x1b[31m" in said  # escaped
    assert "hint: veracruz enclave console one" in said
    found, reason = stage(tmp_path)
    assert found is Stage.FAILED
    assert reason is not None
    assert reason.startswith("the isolate died")


def test_a_guest_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with run(tmp_path, ["silent"], limit=1) as running:
        code, said = running.finish()
    assert code == 5
    assert "no first sign of life within 1 s" in said


def test_a_halt_is_told_in_words(tmp_path: Path) -> None:
    with run(tmp_path, policy="malformed") as running:
        code, said = running.finish()
    assert code == 5
    assert "the isolate halted: it refuses the policy as malformed" in said
    assert "hint: veracruz policy check FILE" in said


def test_a_guest_that_dies_later_is_no_regular_end(tmp_path: Path) -> None:
    with run(tmp_path, ["dies-later"]) as running:
        code, said = running.finish()
    assert code == 5
    assert "the isolate died: somebody on this machine killed it (SIGKILL); stub guest ended by SIGKILL" in said


def test_an_agreed_shutdown_is_a_regular_end(tmp_path: Path) -> None:
    with run(tmp_path, ["agreed"]) as running:
        code, said = running.finish()
    assert code == 0, said
    assert stage(tmp_path) == (Stage.ENDED, "shut down by its participants")


def relay_of(running: Run) -> ProcessId | None:
    found = Isolates(running.home).find("one")
    return dict(zip(found.roles, found.children, strict=True)).get("relay")


def test_a_relay_that_ends_is_replaced_and_the_isolate_goes_on(tmp_path: Path, temporary: Path) -> None:
    with run(tmp_path, settled=0) as running:
        place = running.endpoint()
        before = running.children()
        first = relay_of(running)
        with socket.create_connection(place, timeout=10) as client:
            client.sendall(b"first")
            assert client.recv(5) == b"first"
            assert first is not None
            first.signal(signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        with socket.create_connection(place, timeout=10) as client:  # it waits for the next one
            client.sendall(b"again")
            assert client.recv(5) == b"again"
        eventually(lambda: relay_of(running) not in (first, None))
        after = running.children()
        assert [one for one in before if one != first] == [one for one in after if one != relay_of(running)]
        running.process.send_signal(signal.SIGTERM)
        code, said = running.finish()
    assert code == 40 + signal.SIGTERM
    assert "the relay ended by SIGKILL: another takes its place" in said
    wait_for_end(after)
    assert list(temporary.iterdir()) == []


def test_ends_with_a_relay_that_did_not_last(tmp_path: Path) -> None:
    with run(tmp_path) as running:
        running.endpoint()
        guest = running.children()
        relay = relay_of(running)
        assert relay is not None
        relay.signal(signal.SIGKILL)
        code, said = running.finish()
    assert code == 5
    assert "the relay ended by SIGKILL" in said
    wait_for_end(guest)


def test_what_it_may_reach_is_served_said_and_ended_with_it(tmp_path: Path, temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        place.settimeout(10)
        port = place.getsockname()[1]
        with run(tmp_path, egress=(f"8000=127.0.0.1:{port}",)) as running:
            running.endpoint()
            sockets = Isolates(tmp_path).find("one").sockets
            assert sockets is not None
            with socket.socket(socket.AF_UNIX) as guest:  # as the vsock backend does for the guest
                guest.connect(f"{sockets}/v_8000")
                outside, _ = place.accept()
                outside.close()
            children = running.children()
            running.process.send_signal(signal.SIGTERM)
            code, said = running.finish()
    assert code == 40 + signal.SIGTERM
    assert f"the isolate may reach 127.0.0.1:{port}, by its parent's port 8000" in said
    wait_for_end(children)
    assert list(temporary.iterdir()) == []
    log = (Isolates(tmp_path).directory("one") / "supervisor.log").read_text()
    assert f"egress 8000=127.0.0.1:{port}: allowed: 127.0.0.1" in log


def test_nothing_survives_a_killed_supervisor(tmp_path: Path, temporary: Path) -> None:
    with run(tmp_path) as running:
        running.endpoint()
        children = running.children()
        running.process.kill()
        running.finish()
    wait_for_end(children)
    assert stage(tmp_path)[0] is Stage.LOST
    assert list(temporary.iterdir()) == []


def test_a_tentative_way_that_fails_gives_way_to_the_next(tmp_path: Path) -> None:
    with run(tmp_path, ["dies-at-once", "kvm", True], ["serves", "tcg"]) as running:
        running.endpoint()
        assert Isolates(tmp_path).find("one").accel == "tcg"
        running.process.send_signal(signal.SIGTERM)
        _, said = running.finish()
    assert "KVM does not work here: the isolate died before its first sign of life" in said
    assert "started stub guest with TCG" in said


def test_a_guest_that_halts_is_not_blamed_on_a_tentative_way(tmp_path: Path) -> None:
    with run(tmp_path, ["serves", "kvm", True], ["serves", "tcg"], policy="malformed") as running:
        code, said = running.finish()
    assert code == 5
    assert "KVM does not work" not in said
    assert Isolates(tmp_path).find("one").accel == "kvm"  # what failed is told


def test_a_port_in_use_is_found_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with run(tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}") as running:
            code, said = running.finish()
    assert code == 3
    assert "Address already in use" in said
    assert "started" not in said


def test_a_name_in_use_is_an_error(tmp_path: Path) -> None:
    with run(tmp_path) as first:
        first.endpoint()
        with run(tmp_path) as second:
            code, said = second.finish()
        assert (code, "runs already" in said) == (3, True)
        assert stage(tmp_path)[0] is Stage.SERVING
        first.process.send_signal(signal.SIGTERM)
        first.finish()


def test_the_guests_end_explains_that_of_its_helpers(tmp_path: Path) -> None:
    """A backend ends when its QEMU does, and may be seen to end first."""
    with run(tmp_path, ["dies-after-helper"]) as running:
        code, said = running.finish()
    assert code == 5
    assert "the isolate died: somebody on this machine killed it (SIGKILL); stub guest ended by SIGKILL" in said


def test_a_regular_end_is_one_whichever_process_is_seen_first(tmp_path: Path) -> None:
    with run(tmp_path, ["agreed-after-helper"]) as running:
        code, said = running.finish()
    assert code == 0, said
    assert stage(tmp_path) == (Stage.ENDED, "shut down by its participants")
