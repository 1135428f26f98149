# SPDX-License-Identifier: MIT
"""Metrics and health: what isolates leave on disk, told on loopback; strangers' questions end in time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from attestation.errors import EXIT_ISOLATE, EXIT_OK
from host_shim.board import Board, look_at, open_board
from host_shim.children import ProcessId
from host_shim.cli import main
from host_shim.errors import MalformedEndpoint
from host_shim.metrics import exposition
from host_shim.metrics_server import listen_on
from host_shim.nsm_emulator import ModuleCounters
from host_shim.record import Record, Stage
from host_shim.relay.counters import Counters
from host_shim.state import Isolates
from tests.waiting import eventually

LIMIT = 30.0  # seconds for anything here


def record(name: str, stage: Stage = Stage.SERVING) -> Record:
    return Record(
        name=name, stage=stage, isolate="qemu", endpoint="127.0.0.1:5000", image=None, policy="ab" * 32,
        measurements={}, root=None, started="2026-11-22T10:00:00+00:00", accel="tcg", restarts=2,
        supervisor=ProcessId.of(os.getpid()) if stage.live else None,
    )  # fmt: skip


@pytest.fixture
def isolates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Isolates:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return Isolates()


def put(isolates: Isolates, one: Record, relay: Counters | None = None, module: ModuleCounters | None = None) -> None:
    with isolates.claim(one.name) as claim:
        for path, numbers in ((claim.counters, relay), (claim.module, module)):
            if numbers is not None:
                descriptor = open_board(path, type(numbers))
                board = Board(descriptor, type(numbers))
                board.publish(numbers)
                board.close()
                os.close(descriptor)
        claim.write(one)


def told(isolates: Isolates) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(exposition(isolates).decode()):
        for sample in family.samples:
            found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    return found


def test_numbers_are_read_as_they_were_published(tmp_path: Path) -> None:
    descriptor = open_board(tmp_path / "numbers", Counters)
    board = Board(descriptor, Counters)
    assert look_at(tmp_path / "numbers", Counters) is None  # nothing was published yet
    board.publish(Counters(accepted=3, bytes_out=1 << 40))
    assert look_at(tmp_path / "numbers", Counters) == Counters(accepted=3, bytes_out=1 << 40)
    assert look_at(tmp_path / "numbers", ModuleCounters) is None  # another kind's
    assert look_at(tmp_path / "none", Counters) is None
    board.close()
    os.close(descriptor)


def test_every_isolate_is_told_with_its_traffic_and_evidence(isolates: Isolates) -> None:
    put(isolates, record("one"), Counters(accepted=5, open=2, bytes_in=7, refused_late=1), ModuleCounters(9, 4, 1))
    put(isolates, record("two", Stage.FAILED), Counters(accepted=1, open=1))
    found = told(isolates)
    assert found["veracruz_isolate_up", "tcg", "development", "qemu", "one"] == 1
    assert found["veracruz_isolate_up", "tcg", "development", "qemu", "two"] == 0
    assert found["veracruz_isolate_stage", "two", "failed"] == 1
    assert found["veracruz_isolate_restarts_total", "one"] == 2
    assert found["veracruz_isolate_started_seconds", "one"] == 1795341600
    assert found["veracruz_connections_total", "one"] == 5
    assert found["veracruz_connections_open", "one"] == 2
    assert found["veracruz_connections_open", "two"] == 0  # nobody is connected to what has ended
    assert found["veracruz_relayed_bytes_total", "in", "one"] == 7
    assert found["veracruz_connections_refused_total", "one", "late"] == 1
    assert found["veracruz_evidence_served_total", "one"] == 4
    assert found["veracruz_nsm_requests_total", "one"] == 9


def test_an_isolate_whose_process_is_gone_is_not_up(isolates: Isolates) -> None:
    gone = ProcessId(os.getpid(), 1)  # this number, another start
    put(isolates, replace(record("one"), children=(gone,)))
    assert told(isolates)["veracruz_isolate_up", "tcg", "development", "qemu", "one"] == 0


def test_damaged_state_is_counted(isolates: Isolates) -> None:
    put(isolates, record("one"))
    (isolates.directory("one") / "state.json").write_text("{")
    assert told(isolates)["veracruz_damaged_records",] == 1


def test_no_isolates_are_no_error(isolates: Isolates) -> None:
    assert told(isolates)["veracruz_damaged_records",] == 0


@pytest.mark.parametrize("place", ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464", "vsock:3:9464", "nonsense"])
def test_serves_on_loopback_alone(place: str) -> None:
    with pytest.raises(MalformedEndpoint):
        listen_on(place)


@pytest.fixture
def address(isolates: Isolates) -> Iterator[str]:
    """Serve in a process of its own."""
    command = [sys.executable, "-m", "host_shim.cli", "metrics", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
            assert match is not None
            yield match.group()
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=LIMIT)
    assert "Traceback" not in err


def ask(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=LIMIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_answers_metrics_and_health(isolates: Isolates, address: str) -> None:
    assert ask(address, "/health")[0] == 503  # nothing serves
    put(isolates, record("one"))
    code, text = ask(address, "/metrics")
    assert (code, "veracruz_isolate_up{" in text) == (200, True)
    assert ask(address, "/health")[0] == ask(address, "/health/one")[0] == 200
    put(isolates, record("two", Stage.BOOTING))
    code, text = ask(address, "/health")
    assert (code, json.loads(text)["isolates"]) == (503, {"one": "serving", "two": "booting"})
    for path in ("/health/none", "/", "/etc/passwd", "/health/../one", "/health/one/more"):
        assert ask(address, path)[0] == 404


def test_a_silent_or_rude_stranger_keeps_nobody_waiting_for_long(isolates: Isolates, address: str) -> None:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT) as silent:
        with socket.create_connection((host, int(port)), timeout=LIMIT) as rude:
            rude.sendall(b"\x00\xff" * 40_000 + b"\r\n\r\n")
            assert eventually(lambda: ask(address, "/metrics")[0] == 200)
        assert silent.fileno() >= 0


def test_a_stranger_who_asks_a_byte_at_a_time_is_cut_off(isolates: Isolates, address: str) -> None:
    host, _, port = address.rpartition(":")
    start = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10) as drip, contextlib.suppress(OSError):
        while time.monotonic() - start < 30:
            drip.sendall(b"G")
            drip.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                if drip.recv(4096) == b"":
                    break
    assert time.monotonic() - start < 15


def test_health_is_an_exit_code(isolates: Isolates, capsys: pytest.CaptureFixture[str]) -> None:
    put(isolates, record("one"))
    put(isolates, record("two", Stage.FAILED))
    assert main(["enclave", "health", "one"]) == EXIT_OK
    assert main(["enclave", "health", "two", "--json"]) == EXIT_ISOLATE
    assert json.loads(capsys.readouterr().out.partition("\n")[2]) == {
        "name": "two", "healthy": False, "stage": "failed",
    }  # fmt: skip


def test_metrics_once_prints_and_ends(isolates: Isolates, capsys: pytest.CaptureFixture[str]) -> None:
    put(isolates, record("one"))
    assert main(["metrics", "--once"]) == EXIT_OK
    assert 'veracruz_isolate_stage{name="one",stage="serving"} 1.0' in capsys.readouterr().out
