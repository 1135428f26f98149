# SPDX-License-Identifier: MIT
"""`veracruz enclave` as its user meets it: whole commands, real processes, the real runtime in a `process` isolate."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attestation.chain import load_root
from attestation.channel import fetch_evidence
from attestation.cose import parse_sign1
from attestation.endpoint import Endpoint
from attestation.expectations import Expectations, UnsafeAcceptDebug
from attestation.identity import make_identity
from attestation.policy import parse_policy
from attestation.verifier import Verdict, verify
from enclave_image.eif import SectionType, write_eif
from host_shim.children import ProcessId
from host_shim.cli import main

from ..enclave_image.eif_specimens import make_arm_kernel, make_kernel

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
IMAGE = {f"PCR{index}": f"{index + 1:02x}" * 48 for index in range(3)}


class Host:
    """A user of this machine with a home of their own."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys
        self.sockets = Path(f"/tmp/vt-{os.getpid()}-{home.name}")
        self.sockets.mkdir(mode=0o700)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
        monkeypatch.setenv("TMPDIR", str(self.sockets))
        self.policy = home / "policy.json"
        _, certificate = make_identity("alice")
        party = {"name": "alice", "certificate": certificate.decode(), "rights": {"/": ["list"]}}
        self.policy.write_text(
            json.dumps(
                {
                    "schema": "veracruz.policy/1", "name": "test", "images": [IMAGE], "participants": [party],
                    "join": ["alice"], "programs": [],
                }
            )
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "host_shim.cli", "enclave", *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command to its end: in this process, unless it would leave one behind."""
        if "--detach" in arguments:
            with self.start(*arguments) as process:
                out, err = process.communicate(timeout=30)
            code = process.returncode
        else:
            self._capsys.readouterr()
            code = main(["enclave", *arguments])
            out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def json(self, *arguments: str) -> Any:
        code, out, err = self.run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    def isolates(self) -> list[Any]:
        listed: list[Any] = self.json("list")["isolates"]
        return listed


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    host = Host(tmp_path, monkeypatch, capsys)
    try:
        yield host
    finally:
        host.run("stop", "--all")
        left = list(host.sockets.rglob("*"))
        shutil.rmtree(host.sockets)
    assert left == []


PROCESS = ("run", "--isolate", "process", "--policy")


def test_a_detached_isolate_serves_evidence_until_it_is_stopped(host: Host) -> None:
    told = host.json(*PROCESS, str(host.policy), "--detach", "--name", "one")
    assert (told["name"], told["isolate"], told["accel"], told["stage"]) == ("one", "process", None, "serving")
    assert told["Measurements"]["PCR0"] == "00" * 48
    supervisor = ProcessId.of(told["pid"])
    assert supervisor is not None

    nonce = os.urandom(32)
    evidence = fetch_evidence(Endpoint.parse(told["endpoint"]), nonce)
    policy = parse_policy(host.policy.read_bytes())
    expected = Expectations.for_session(policy, list(policy.images), nonce, evidence.public_key) & UnsafeAcceptDebug()
    root = load_root(Path(told["root"]).read_bytes())
    appraisal = verify(evidence.document, expected=expected, at=datetime.now(UTC), roots=[root])
    assert appraisal.verdict is Verdict.DEBUG

    code, out, _ = host.run("list")
    assert code == 0
    assert re.search(rf"^one +serving +process +- +{re.escape(told['endpoint'])} ", out, re.MULTILINE)
    code, out, _ = host.run("console", "one")
    assert (code, "protects nothing" in out) == (0, True)
    code, out, _ = host.run("stop", "one")
    assert (code, out) == (0, "one ended: stopped by SIGTERM\n")
    assert not supervisor.alive
    assert host.isolates() == []
    assert host.json("list", "--all")["isolates"][0]["stage"] == "ended"
    assert host.run("stop", "one")[0] == 0  # again is no error


@pytest.mark.parametrize(("words", "head"), [((), 0xBF), (("--old-documents",), 0xA9)])
def test_documents_have_the_form_of_today_or_on_request_the_one_before(
    host: Host, words: tuple[str, ...], head: int
) -> None:
    told = host.json(*PROCESS, str(host.policy), "--detach", *words)
    evidence = fetch_evidence(Endpoint.parse(told["endpoint"]), os.urandom(32))
    assert parse_sign1(evidence.document).payload[0] == head  # RFC 8949 3.2.2: an indefinite-length map, or one of nine


def test_says_that_a_process_protects_nothing(host: Host) -> None:
    _, _, err = host.run(*PROCESS, str(host.policy), "--detach")
    assert "protects nothing" in err
    assert "debug mode: PCR0, PCR1 and PCR2 are zero" in err


def test_ctrl_c_in_the_foreground_ends_everything(host: Host) -> None:
    with host.start(*PROCESS, str(host.policy)) as process:
        assert process.stdout is not None
        name, endpoint = process.stdout.readline().split()
        assert name == "isolate"
        assert endpoint.startswith("127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopping" in err
    assert host.isolates() == []


def test_ctrl_c_while_a_detached_one_starts_ends_it(host: Host) -> None:
    with host.start(*PROCESS, str(host.policy), "--detach") as process:
        log = host.home / "state/veracruz/enclaves/isolate/state.json"
        deadline = time.monotonic() + 10
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert host.isolates() == []


def test_sigterm_while_a_detached_one_starts_ends_it_too(host: Host) -> None:
    with host.start(*PROCESS, str(host.policy), "--detach") as process:
        assert process.stderr is not None
        process.stderr.readline()  # the supervisor tells of itself: it is on its way
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert host.isolates() == []


def test_a_hangup_is_ignored_under_nohup(host: Host) -> None:
    command = [sys.executable, "-m", "host_shim.cli", "enclave", *PROCESS, str(host.policy)]
    with subprocess.Popen(["nohup", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert [one["stage"] for one in host.isolates()] == ["serving"]
        host.run("stop", "--all")
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_stops_none_if_one_is_not_known(host: Host) -> None:
    host.json(*PROCESS, str(host.policy), "--detach", "--name", "one")
    assert host.run("stop", "one", "two")[0] == 2
    assert [one["stage"] for one in host.isolates()] == ["serving"]


def test_several_at_once_get_names_and_ports_of_their_own(host: Host) -> None:
    first, second = (host.json(*PROCESS, str(host.policy), "--detach") for _ in range(2))
    assert (first["name"], second["name"]) == ("isolate", "isolate-2")
    assert first["endpoint"] != second["endpoint"]
    stopped = host.json("stop", "--all")["isolates"]
    assert [one["stage"] for one in stopped] == ["ended", "ended"]


def test_a_detached_error_reads_as_in_the_foreground(host: Host) -> None:
    endpoint = host.json(*PROCESS, str(host.policy), "--detach")["endpoint"]
    shown = [host.run(*PROCESS, str(host.policy), "--listen", endpoint, *more) for more in ([], ["--detach"])]
    assert [code for code, _, _ in shown] == [3, 3]
    assert shown[0][2] == shown[1][2]
    assert f"error: cannot listen on {endpoint}: Address already in use" in shown[0][2]
    assert "hint: " in shown[0][2]


def bad_image(host: Host) -> list[str]:
    image = host.home / "image.eif"
    parts = [
        (SectionType.KERNEL, b"kernel"), (SectionType.CMDLINE, b"quiet"), (SectionType.METADATA, b"{}"),
        (SectionType.RAMDISK, bytes(1000)),
    ]  # fmt: skip
    image.write_bytes(write_eif(parts)[:-1])
    return ["run", str(image), "--policy", str(host.policy)]


def made_by(host: Host, tool: str) -> list[str]:
    image = host.home / "image.eif"
    parts = [
        (SectionType.KERNEL, b"kernel"), (SectionType.CMDLINE, b"quiet"),
        (SectionType.METADATA, json.dumps({"ImageName": "x", "BuildMetadata": {"BuildTool": tool}}).encode()),
        (SectionType.RAMDISK, bytes(1000)),
    ]  # fmt: skip
    image.write_bytes(write_eif(parts))
    return ["run", str(image)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (lambda host: ["run", "--policy", str(host.policy)], 2, "an image is needed"),
        (lambda host: ["run", "/none.eif", "--policy", str(host.policy)], 2, "cannot read the image /none.eif"),
        (bad_image, 2, "truncated"),
        (lambda host: [*PROCESS, "/none.json"], 2, "cannot read the policy /none.json"),
        (lambda host: [*PROCESS, "/dev/null"], 2, "policy"),
        (lambda host: [*PROCESS, str(host.policy), "--listen", "example.org:5"], 2, "no address"),
        (lambda host: [*PROCESS, str(host.policy), "--name", "../x"], 2, "name has another form"),
        (lambda host: ["run", "x", "--policy", "y", "--memory", "1"], 2, "--memory is out of range"),
        (lambda host: ["run", "x", "--policy", "y", "--boot-limit", "nan"], 2, "--boot-limit is out of range"),
        (lambda host: ["run", "/dev/zero", "--policy", str(host.policy)], 2, "image /dev/zero is too large"),
        (lambda host: [*PROCESS, str(host.policy), "--listen", "unix:/none/x"], 3, "cannot listen on unix:/none/x"),
        (lambda host: ["run", "x", "--no-policy"], 2, "--port N: its vsock port"),
        (lambda host: ["run", "x", "--no-policy", "--port", "-1"], 2, "--port is out of range"),
        (lambda host: ["run", "x", "--policy", "y", "--port", "80"], 2, "an image of ours serves at its port 5000"),
        (lambda host: ["run", "--isolate", "process", "--no-policy", "--port", "1"], 2, "which wants a policy"),
        (lambda host: [*made_by(host, "veracruz"), "--no-policy", "--port", "1"], 2, "our runtime, which waits for a"),
        (
            lambda host: [*made_by(host, "nitro-cli"), "--policy", str(host.policy)],
            2,
            "it would never ask for the policy",
        ),
        (
            lambda host: ["run", "x", "--policy", "y", "--old-documents", "--isolate", "nitro"],
            2,
            "a form of our own module's evidence",
        ),
        (lambda host: ["stop"], 2, "which isolate"),
        (lambda host: ["stop", "nobody"], 2, "no isolate of this name"),
        (lambda host: ["console", "nobody"], 2, "no isolate of this name"),
    ],
)
def test_bad_input_is_an_error_with_its_code(host: Host, arguments: Any, code: int, says: str) -> None:
    found, out, err = host.run(*arguments(host))
    assert found == code, err
    assert out == ""
    assert err.startswith("error: ")
    assert says in err


@pytest.mark.parametrize(
    ("kernel", "package"), [(make_kernel(), "qemu-system-x86"), (make_arm_kernel(), "qemu-system-arm")]
)
def test_no_qemu_names_its_package(host: Host, monkeypatch: pytest.MonkeyPatch, kernel: bytes, package: str) -> None:
    monkeypatch.setenv("PATH", "/none")
    image = host.home / "image.eif"
    image.write_bytes(
        write_eif([(SectionType.KERNEL, kernel), (SectionType.CMDLINE, b"quiet"), (SectionType.METADATA, b"{}"),
                   (SectionType.RAMDISK, b"r")])
    )  # fmt: skip
    code, out, _ = host.run("run", str(image), "--policy", str(host.policy), "--json")
    assert code == 3
    error = json.loads(out)["error"]
    assert error["slug"] == "no-qemu"
    assert error["hint"] == f"apt-get install --no-install-recommends {package}"
