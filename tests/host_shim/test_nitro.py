# SPDX-License-Identifier: MIT
"""The `nitro` isolate against a simulated nitro-cli (fake_nitro_cli) that behaves as the real one's source says.

No test here meets Nitro: the device, the driver and the kernel's vsock are not to be had on the machines that run this.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attestation.measurements import ZERO_PCR, Measurements
from host_shim.adopt_cli import demand_adoptable
from host_shim.children import ProcessId
from host_shim.cli import main
from host_shim.errors import NameTaken, NitroCliFailed, NoNitro, NoSuchIsolate, NotEnoughMemory
from host_shim.isolate import Evidence
from host_shim.nitro import Launcher, NitroIsolate, check_nitro_memory, cid_of, find_launcher
from host_shim.nitro_cli import Enclave, NitroCli, parse_enclaves, parse_started, parse_terminated, run_command
from host_shim.qemu import Qemu
from host_shim.record import Stage
from host_shim.state import Isolates
from tests.waiting import eventually

pytestmark = pytest.mark.faults

TOP = Path(__file__).parents[2]
RUN = """
import json, sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from attestation.console import report, say
from attestation.errors import VeracruzError
from attestation.measurements import Measurements
from host_shim.adopted import AdoptedEnclave
from host_shim.dev_pki import open_root
from host_shim.egress.rules import parse_rules
from host_shim.listen import parse_endpoint
from host_shim.nitro import Launcher, NitroIsolate
from host_shim.report import Report
from host_shim.state import Isolates
from host_shim.supervisor import Order, Supervisor
from tests.host_shim.nitro_host import UnixNitroHost

state, enclaves, tool, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
host, egress = UnixNitroHost(enclaves), parse_rules(options["egress"])
measured = Measurements(*(bytes([index + 1]) * 48 for index in range(3)))
if options["adopt"]:
    record = Isolates(state).find("one")
    isolate = replace(AdoptedEnclave.of(record), host=host)
    order = Order([isolate], None, None, parse_endpoint("127.0.0.1:0"), name="one", adopted=record, egress=egress)
else:
    isolate = NitroIsolate(
        Launcher(tool), Path(options["image"]), measured, None, options["memory"], 2, debug_mode=options["debug"],
        host=host, port=5000 if options["policy"] else 7777,
    )
    policy, listen = options["policy"] and b"{}", parse_endpoint("127.0.0.1:0")
    order = Order(
        [isolate], policy, options["image"], listen, name="one", boot_limit=options["limit"], egress=egress
    )
root = open_root(lambda: datetime.now(UTC), state)
try:
    asked = Supervisor(order, root, Report(say), lambda r: print(r.endpoint, flush=True)).run(Isolates(state))
except VeracruzError as error:
    report(error, as_json=False)
    sys.exit(error.exit_code)
sys.exit(40 + asked if asked else 0)
"""


class Nitro:
    """A host with a simulated nitro-cli."""

    def __init__(self, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.enclaves = place / "enclaves"
        self.enclaves.mkdir()
        self.sockets = place / "run"
        self.sockets.mkdir()
        self.tool = place / "nitro-cli"
        self.tool.write_text(
            f'#!/bin/sh\ncd {TOP} && exec {sys.executable} -S -m tests.host_shim.fake_nitro_cli "$@"\n'
        )
        self.tool.chmod(0o755)
        self.image = home / "image.eif"
        self.image.write_bytes(bytes(1 << 20))
        self.home = home / "state/veracruz"
        self.set = monkeypatch.setenv
        self.set("FAKE_NITRO", str(self.enclaves))
        self.set("FAKE_NITRO_WAY", "serves+nsm")
        self.set("TMPDIR", str(self.sockets))
        self.set("XDG_STATE_HOME", str(home / "state"))
        self.isolates = Isolates(self.home)
        self.cli = NitroCli(str(self.tool))

    @contextmanager
    def run(
        self,
        *,
        memory: int = 64,
        debug: bool = False,
        adopt: bool = False,
        limit: float = 30,
        policy: bool = True,
        egress: tuple[str, ...] = (),
    ) -> Iterator[subprocess.Popen[str]]:
        options = {
            "memory": memory, "debug": debug, "adopt": adopt, "image": str(self.image), "limit": limit,
            "policy": policy or None, "egress": egress,
        }  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-c", RUN, str(self.home), str(self.enclaves), str(self.tool), json.dumps(options)],
            cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def stage(self) -> tuple[Stage, str]:
        record = self.isolates.find("one")
        return record.stage, record.reason or ""


@pytest.fixture
def nitro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nitro]:
    place = Path(f"/tmp/vn-{os.getpid()}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    nitro = Nitro(place, tmp_path, monkeypatch)
    try:
        yield nitro
        assert nitro.cli.list() == ()
        assert list(nitro.sockets.iterdir()) == []
    finally:
        for enclave in nitro.cli.list():
            nitro.cli.terminate(enclave.name)
        shutil.rmtree(place)


def endpoint(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.communicate()
    host, _, port = line.rpartition(":")
    return host, int(port)


def echo(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(b"through the relay")
        return client.recv(100)


def test_an_enclave_serves_until_it_is_asked_to_end(nitro: Nitro) -> None:
    with nitro.run() as process:
        assert echo(endpoint(process)) == b"through the relay"
        record = nitro.isolates.find("one")
        assert (record.stage, record.isolate, record.evidence, record.root) == (Stage.SERVING, "nitro", "aws", None)
        (enclave,) = nitro.cli.list()
        assert record.outside is not None
        assert (enclave.name, enclave.cid) == (record.outside.name, record.outside.cid)
        assert enclave.cid == cid_of(enclave.name)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 40 + signal.SIGTERM, said
    assert "simulated nitro-cli" in said
    assert nitro.stage() == (Stage.ENDED, "stopped by SIGTERM")


def test_an_enclave_of_anothers_making_serves_once_nitro_cli_had_its_heartbeat(nitro: Nitro) -> None:
    nitro.set("FAKE_NITRO_WAY", "foreign:7777")
    with nitro.run(policy=False) as process:
        address = endpoint(process)
        assert eventually(lambda: echo(address) == b"through the relay")
        record = nitro.isolates.find("one")
        assert (record.stage, record.policy, record.evidence) == (Stage.SERVING, None, "aws")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 40 + signal.SIGTERM, said


def test_what_it_may_reach_is_served_before_and_after_it_was_adopted(nitro: Nitro) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        place.settimeout(10)
        rule = f"8000=127.0.0.1:{place.getsockname()[1]}"

        def reach() -> None:
            enclave = nitro.isolates.find("one").outside
            assert enclave is not None
            with socket.socket(socket.AF_UNIX) as inside:
                inside.connect(str(nitro.enclaves / enclave.name / "v_8000"))
                outside, _ = place.accept()
                with outside:
                    inside.sendall(b"out")
                    assert outside.recv(3, socket.MSG_WAITALL) == b"out"

        with nitro.run(egress=(rule,)) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            reach()
            process.kill()
            process.wait(30)
        with nitro.run(adopt=True, egress=(rule,)) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            reach()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 40 + signal.SIGTERM
    log = (nitro.isolates.directory("one") / "supervisor.log").read_text()
    assert log.count(f"egress {rule}: allowed: 127.0.0.1") == 2  # an adoption goes on with the log that is there


def test_what_it_does_by_itself_is_told(nitro: Nitro) -> None:
    """Its participants end it: no accident. It dies: an error, though its exit code is nitro-cli's alone."""
    nitro.set("FAKE_NITRO_WAY", "agreed+nsm")
    with nitro.run() as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert nitro.stage() == (Stage.ENDED, "shut down by its participants")
    nitro.set("FAKE_NITRO_WAY", "dies-later+nsm")
    with nitro.run() as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "the isolate died: enclave ended by itself" in said


@pytest.mark.parametrize(
    ("fault", "memory", "says", "hint", "slug"),
    [
        ("", 3, "too little memory for its image", "more with --memory MIB", "launch-refused"),
        ("no-device", 64, "no Nitro Enclaves device", "--enclave-options Enabled=true", "launch-refused"),
        ("boot", 64, "did not greet on port 9000 in time", "--debug-mode", "isolate-died"),
        ("garbage", 64, "answer has another form: run-enclave.EnclaveCID", "veracruz enclave console", "isolate-died"),
    ],
)
def test_a_start_that_fails_names_the_first_cause(
    nitro: Nitro, fault: str, memory: int, says: str, hint: str, slug: str
) -> None:
    """Not E39, which nitro-cli ends with whatever went wrong."""
    nitro.set("FAKE_NITRO_FAULT", fault)
    with nitro.run(memory=memory) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 5, said
    assert says in said
    assert "process ended without an answer" not in said
    assert hint in said.partition("hint: ")[2]
    assert f"explain {slug}" in said
    assert nitro.stage()[0] is Stage.FAILED


def test_asked_twice_to_end_while_it_starts_leaves_no_doubt_of_what_may_be_left(nitro: Nitro) -> None:
    nitro.set("FAKE_NITRO_WAY", "silent+nsm")
    with nitro.run() as process:
        assert eventually(lambda: any(nitro.enclaves.glob("*/console")))

        def ended() -> bool:  # no patience: the guest never greets
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        assert eventually(ended)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (40 + signal.SIGINT, -signal.SIGINT), said  # the last may have come after its end
    assert nitro.stage()[0] is Stage.LOST  # nitro-cli's own process goes on waiting, and it cannot be ended before
    assert "may run on" in nitro.stage()[1]
    (holder,) = nitro.enclaves.glob("*/pid")
    os.kill(int(holder.read_text()), signal.SIGKILL)


def test_an_enclave_outlives_its_supervisor_and_is_adopted(nitro: Nitro, capsys: pytest.CaptureFixture[str]) -> None:
    with nitro.run() as process:
        endpoint(process)
        (enclave,) = nitro.cli.list()
        holder = ProcessId.of(enclave.pid)
        process.kill()
        process.communicate()
    assert nitro.stage()[0] is Stage.LOST
    assert "its enclave runs on by itself" in nitro.stage()[1]
    assert holder is not None
    assert holder.alive
    assert main(["enclave", "list"]) == 0
    assert "lost" in capsys.readouterr().out
    assert main(["enclave", "describe", "one", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["enclave"]
    assert (told["id"], told["state"]) == (enclave.id, "RUNNING")
    with pytest.raises(NameTaken) as taken, nitro.isolates.claim("one"):
        pass
    assert "veracruz enclave adopt one" in (taken.value.hint or "")
    with nitro.isolates.claim(None) as other:
        assert other.name == "isolate"

    record = demand_adoptable(nitro.isolates, "one")
    with nitro.run(adopt=True) as process:
        assert echo(endpoint(process)) == b"through the relay"
        again = nitro.isolates.find("one")
        assert (again.stage, again.policy, again.measurements) == (Stage.SERVING, record.policy, record.measurements)
        assert nitro.cli.list() == (enclave,)
        with pytest.raises(NoSuchIsolate, match="without a supervisor"):
            demand_adoptable(nitro.isolates, "one")
        holder.signal(signal.SIGKILL)  # the adopted one's end is seen
        _, said = process.communicate(timeout=30)
    assert process.returncode == 5, said
    assert nitro.stage()[0] is Stage.FAILED


@pytest.mark.parametrize("alive", [True, False])
def test_stop_ends_what_a_killed_supervisor_left(nitro: Nitro, capsys: pytest.CaptureFixture[str], alive: bool) -> None:
    with nitro.run() as process:
        endpoint(process)
        process.kill()
        process.communicate()
    if not alive:
        (enclave,) = nitro.cli.list()
        nitro.cli.terminate(enclave.name)
        assert nitro.stage()[0] is Stage.LOST
        with pytest.raises(NoSuchIsolate, match="runs no more"):
            demand_adoptable(nitro.isolates, "one")
    assert main(["enclave", "stop", "one"]) == 0
    assert f"its enclave {'was ended now' if alive else 'had ended already'}" in capsys.readouterr().out
    assert nitro.cli.list() == ()
    assert nitro.stage()[0] is Stage.ENDED
    with nitro.isolates.claim("one"):
        pass


def test_the_supervisor_dies_while_nitro_cli_starts_the_enclave(nitro: Nitro) -> None:
    """The name was written down before: what comes up afterwards is found and ended."""
    nitro.set("FAKE_NITRO_FAULT", "slow")
    with nitro.run() as process:
        assert eventually(lambda: len(nitro.cli.list()) == 1)
        process.kill()
        process.communicate()
    record = nitro.isolates.find("one")
    assert record.stage is Stage.LOST
    assert record.outside is not None
    assert main(["enclave", "stop", "--all"]) == 0
    assert nitro.cli.list() == ()


# Answers

GOOD: dict[str, Any] = {
    "EnclaveName": "veracruz-x", "EnclaveID": "i-0123456789abcdef0-enc0183a7f3e0d5c9b1", "ProcessID": 4242,
    "EnclaveCID": 16, "NumberOfCPUs": 2, "CPUIDs": [1, 3], "MemoryMiB": 512, "State": "RUNNING", "Flags": "NONE",
}  # fmt: skip


def test_reads_the_answers_of_its_source() -> None:
    described = parse_enclaves(json.dumps([{**GOOD, "Measurements": {"PCR0": "00"}, "Metadata": {}}]).encode())
    assert described == (Enclave("veracruz-x", GOOD["EnclaveID"], 4242, 16, 512, "RUNNING", debug=False),)
    assert parse_enclaves(b"[]") == ()
    started = {key: value for key, value in GOOD.items() if key not in ("State", "Flags")}
    assert parse_started(json.dumps(started).encode(), "veracruz-x") == described[0]
    without = {key: value for key, value in GOOD.items() if key != "EnclaveName"}  # an older version's
    assert parse_enclaves(json.dumps([without]).encode())[0].name == ""
    parse_terminated(json.dumps({"EnclaveID": "i-1-enc1", "Terminated": True}).encode(), "i-1-enc1")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"EnclaveID": "i-0/../x"}, "EnclaveID"), ({"EnclaveID": None}, "EnclaveID"), ({"ProcessID": "7"}, "ProcessID"),
        ({"ProcessID": True}, "ProcessID"), ({"ProcessID": -1}, "ProcessID"), ({"EnclaveCID": 1 << 32}, "EnclaveCID"),
        ({"EnclaveCID": 16.0}, "EnclaveCID"), ({"State": "ASLEEP"}, "State"), ({"Flags": 0}, "Flags"),
        ({"EnclaveName": "a\x1b[2J"}, "EnclaveName"), ({"MemoryMiB": []}, "MemoryMiB"),
    ],
)  # fmt: skip
def test_refuses_answers_of_another_form(change: dict[str, Any], place: str) -> None:
    with pytest.raises(NitroCliFailed, match=rf"describe-enclaves\[0\]\.{place}"):
        parse_enclaves(json.dumps([{**GOOD, **change}]).encode())


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"null", b"[1]", b"[" * 100_000, b'"' + b"x" * (1 << 20) + b'"', json.dumps([GOOD] * 65).encode()],
)
def test_refuses_answers_that_are_no_list_of_enclaves(raw: bytes) -> None:
    with pytest.raises(NitroCliFailed):
        parse_enclaves(raw)


def test_refuses_an_answer_of_another_enclave() -> None:
    with pytest.raises(NitroCliFailed, match="EnclaveName"):
        parse_started(json.dumps(GOOD).encode(), "veracruz-y")
    for told in ({"EnclaveID": "i-2-enc2", "Terminated": True}, {"EnclaveID": "i-1-enc1", "Terminated": False}, []):
        with pytest.raises(NitroCliFailed):
            parse_terminated(json.dumps(told).encode(), "i-1-enc1")


# Without nitro-cli


def test_the_command_is_nitro_clis() -> None:
    command = run_command("nitro-cli", image="/i.eif", cpus=2, memory_mib=512, cid=16, name="n", debug_mode=True)
    assert command == [
        "nitro-cli", "run-enclave", "--eif-path", "/i.eif", "--cpu-count", "2", "--memory", "512",
        "--enclave-cid", "16", "--enclave-name", "n", "--debug-mode",
    ]  # fmt: skip


def test_no_launcher_is_told_with_what_mends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoNitro, match="nitro-cli is not installed"):
        find_launcher()
    with pytest.raises(NoNitro, match="is no program"):
        find_launcher(tmp_path / "nitro-cli")
    for version, good in (("10.2.0", False), ("11.0.50", True)):
        program = tmp_path / "qemu-system-x86_64"
        program.write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
        program.chmod(0o755)
        if good:
            launcher = find_launcher()
            assert launcher.nitro_cli is None
            assert launcher.qemu is not None
        else:
            with pytest.raises(NoNitro, match="no nitro accelerator"):
                find_launcher()


def test_qemus_accelerator_is_given_the_whole_file() -> None:
    zero = Measurements(ZERO_PCR, ZERO_PCR, ZERO_PCR)
    launcher = Launcher(qemu=Qemu(Path("/q"), (11, 0), "QEMU 11"))
    isolate = NitroIsolate(launcher, Path("/i.eif"), zero, None, 512, 2, cid=16, debug_mode=True)
    command = " ".join(isolate.qemu_command(16))
    assert command == (
        "/q -M nitro -accel nitro,debug-mode=on,enclave-cid=16 -m 512M -smp 2 -nographic -no-user-config -kernel /i.eif"
    )
    assert isolate.outside(Path("/run/veracruz-x/v")) is None  # it is our child, and dies with us
    assert isolate.evidence is Evidence.AWS
    assert isolate.measurements is None
    assert "PCR0-2 are zero" in isolate.caution


def test_memory_is_at_least_four_times_the_image() -> None:
    assert check_nitro_memory(None, 80 << 20) == 320
    assert check_nitro_memory(None, (80 << 20) + 1) == 324  # whole MiB first, as nitro-cli counts
    assert check_nitro_memory(None, 1) == 64
    with pytest.raises(NotEnoughMemory, match="at least 320 MiB"):
        check_nitro_memory(319, 80 << 20)
