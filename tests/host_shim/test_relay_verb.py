# SPDX-License-Identifier: MIT
"""`veracruz relay` as operators run it: endpoints, limits, drain, PROXY headers, systemd, counters, logs."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_shim.board import Board, read_board, size_of
from host_shim.errors import BadActivation, MalformedEndpoint
from host_shim.listen import parse_endpoint
from host_shim.relay.counters import Counters
from host_shim.relay.dial import Target as Dialled
from host_shim.relay.limits import Source, Sources
from host_shim.relay.proxy_protocol import SIGNATURE
from host_shim.relay.resolve import find_target
from host_shim.systemd import take_sockets

from .relays import LIMIT, Target, is_refused, is_reset, is_silent, read_all, verb, wait_for

pytestmark = pytest.mark.faults

CLIENT = bytes([192, 0, 2, 7, 127, 0, 0, 1]) + (40000).to_bytes(2, "big") + (5000).to_bytes(2, "big")
HEADER = SIGNATURE + b"\x21\x11\x00\x0c" + CLIENT
HEALTH_CHECK = SIGNATURE + b"\x20\x00\x00\x00"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    target = Target(tmp_path / "inside")
    yield target
    target.sock.close()


@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:0", "[::1]:0", "unix:{}/outside"])
@pytest.mark.parametrize("inside", ["unix", "tcp"])
def test_relays_from_any_kind_of_socket_to_any(tmp_path: Path, listen: str, inside: str) -> None:
    target = Target(tmp_path / "inside" if inside == "unix" else None)
    with verb(tmp_path, target.endpoint, listen=listen.format(tmp_path)) as relay, relay.dial() as client:
        with target.accept() as accepted:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(accepted) == b"question"
            accepted.sendall(b"answer")
        assert read_all(client) == b"answer"
    target.sock.close()
    assert not (tmp_path / "outside").exists()


def test_listens_on_several_at_once_and_on_vsock_where_there_is_one(tmp_path: Path, target: Target) -> None:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
        vsock = " vsock:any:0"
    except (OSError, AttributeError):
        vsock = ""
    with verb(tmp_path, target.endpoint, listen=f"127.0.0.1:0 unix:{tmp_path}/outside{vsock}") as relay:
        for index in (0, 1):
            with relay.dial(index) as client, target.accept() as inside:
                client.sendall(b"x")
                assert inside.recv(1) == b"x"
        assert len(relay.listen) == 2 + bool(vsock)
        assert not vsock or not relay.listen[2].endswith(":0")


def test_a_name_is_resolved_once_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    target, told = find_target("tcp:enclave.example:5000")
    assert target == Dialled(socket.AF_INET6, ("2001:db8::1", 5000), "[2001:db8::1]:5000")
    assert told == "enclave.example is 2001:db8::1 (not used: 192.0.2.1); it is not asked for again"
    assert asked == ["enclave.example"]
    for text in ("127.0.0.1:5000", "tcp:[::1]:5000", "unix:/run/x", "vsock:16:5000"):
        assert find_target(text)[1] is None  # nobody is asked
    assert asked == ["enclave.example"]


@pytest.mark.parametrize("text", ["vsock:any:5000", "vsock:16:0", "127.0.0.1:0", "enclave.invalid", "[::g]:1", ":1"])
def test_refuses_targets_that_are_none(text: str) -> None:
    with pytest.raises(MalformedEndpoint):
        find_target(text)


@pytest.mark.parametrize("text", ["vsock:16:5000", "vsock:any:5000", "vsock:4294967294:4294967294"])
def test_vsock_endpoints_read_as_they_are_written(text: str) -> None:
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text", ["vsock:", "vsock:16", "vsock:16:", "vsock::1", "vsock:-1:1", "vsock:4294967296:1", "vsock:3:4294967295"]
)
def test_refuses_other_vsock_endpoints(text: str) -> None:
    with pytest.raises(MalformedEndpoint):
        parse_endpoint(text)


def test_one_source_gets_no_more_than_its_share(tmp_path: Path, target: Target) -> None:
    options = ["--max-per-source", "2", "--accept-proxy", "127.0.0.0/8"]
    with verb(tmp_path, target.endpoint, *options) as relay:
        clients = [relay.dial() for _ in range(2)]
        for client in clients:
            client.sendall(HEADER)
        inside = [target.accept() for _ in clients]
        with relay.dial() as third:
            third.sendall(HEADER)
            assert is_reset(third)
        with relay.dial() as another:
            another.sendall(HEADER.replace(bytes([192, 0, 2, 7]), bytes([192, 0, 2, 8])))
            target.accept().close()
            assert read_all(another) == b""
        for sock in (*clients, *inside):
            sock.close()
        assert wait_for(lambda: relay.counters().refused_source) == 1
        wait_for(lambda: "its source has 2 connections, last 192.0.2.7:40000" in relay.log())
        wait_for(lambda: relay.counters().open == 0)
        with relay.dial() as later:
            later.sendall(HEADER + b"there is room again")
            with target.accept() as inside_later:
                assert inside_later.recv(100) == b"there is room again"


def test_sources_are_counted_as_operators_mean_them() -> None:
    sources = Sources(1)
    mapped, site = ipaddress.ip_address("::ffff:192.0.2.1"), ipaddress.ip_address("2001:db8::1")
    assert sources.take(Source.of_address(mapped, 1))
    assert not sources.take(Source.of_address(ipaddress.ip_address("192.0.2.1"), 2))
    assert sources.take(Source.of_address(site, 1))
    assert not sources.take(Source.of_address(site + 77, 1))  # the same /64
    assert sources.take(Source.of_address(site + (1 << 64), 1))
    sources.give(Source.of_address(mapped, 1))
    assert sources.take(Source.of_address(mapped, 3))


def test_a_balancers_header_names_the_client_and_is_not_passed_on(tmp_path: Path, target: Target) -> None:
    options = ["--accept-proxy", "127.0.0.0/8", "--log-connections"]
    with verb(tmp_path, target.endpoint, *options) as relay:
        with relay.dial() as client:
            for piece in (HEADER[:5], HEADER[5:20], HEADER[20:] + b"payload"):
                client.sendall(piece)
            with target.accept() as inside:
                assert inside.recv(100) == b"payload"
        with relay.dial() as check:
            check.sendall(HEALTH_CHECK)
            target.accept().close()
            assert read_all(check) == b""
        wait_for(lambda: "192.0.2.7:40000: finished, 7 bytes in, 0 out" in relay.log())
        assert "127.0.0.1:" in relay.log()


@pytest.mark.parametrize("first", [b"\x16\x03\x01 a TLS hello", b"\x00", SIGNATURE + b"\x21\x11\xff\xff", b""])
def test_a_balancer_that_introduces_nobody_is_refused(tmp_path: Path, target: Target, first: bytes) -> None:
    with verb(tmp_path, target.endpoint, "--accept-proxy", "127.0.0.0/8") as relay:
        with relay.dial() as client:
            client.sendall(first)
            with contextlib.suppress(OSError):  # reset already
                client.shutdown(socket.SHUT_WR)
            assert is_reset(client)
        assert wait_for(lambda: relay.counters().refused_proxy) == 1
        assert is_silent(target.sock, 0)


def test_nobody_else_may_speak_for_a_client(tmp_path: Path, target: Target) -> None:
    with verb(tmp_path, target.endpoint, "--accept-proxy", "192.0.2.0/24") as relay:
        assert is_refused(relay)
        wait_for(lambda: "not a balancer" in relay.log())
    with verb(tmp_path, target.endpoint) as relay, relay.dial() as client, target.accept() as inside:
        client.sendall(HEADER)  # taken for payload
        assert inside.recv(100) == HEADER


def test_tells_the_target_of_its_client(tmp_path: Path, target: Target) -> None:
    with verb(tmp_path, target.endpoint, "--send-proxy") as relay, relay.dial() as client:
        client.sendall(b"payload")
        with target.accept() as inside:
            got = b""
            while len(got) < 28 + 7:
                got += inside.recv(100)
        here, there = client.getsockname(), client.getpeername()
        ports = here[1].to_bytes(2, "big") + there[1].to_bytes(2, "big")
        assert got == SIGNATURE + b"\x21\x11\x00\x0c" + bytes([127, 0, 0, 1] * 2) + ports + b"payload"


def test_drains_what_is_open_and_takes_no_more(tmp_path: Path, target: Target) -> None:
    with verb(tmp_path, target.endpoint, "--drain", "60") as relay, relay.dial() as client, target.accept() as inside:
        client.sendall(b"before")
        assert inside.recv(100) == b"before"
        relay.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining: 1 open" in relay.log())
        with pytest.raises(ConnectionError):
            relay.dial()
        inside.sendall(b"after")
        assert client.recv(100) == b"after"
        client.close()
        inside.close()
        assert relay.process.wait(LIMIT) == 0


@pytest.mark.parametrize("again", [False, True])
def test_cuts_at_the_end_of_the_drain_or_when_asked_twice(tmp_path: Path, target: Target, again: bool) -> None:
    with (
        verb(tmp_path, target.endpoint, "--drain", "60" if again else "0.3") as relay,
        relay.dial() as client, target.accept() as inside,
    ):  # fmt: skip
        client.sendall(b"x")
        assert inside.recv(1) == b"x"
        relay.process.send_signal(signal.SIGTERM)
        if again:
            wait_for(lambda: "draining" in relay.log())
            relay.process.send_signal(signal.SIGTERM)
        assert is_reset(client)
        assert relay.process.wait(LIMIT) == 0
        assert relay.counters().cut_drain == 1


# systemd

ACTIVATE = """
import os, sys
for number in map(int, sys.argv[1].split(",")): os.set_inheritable(number, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2], LISTEN_FDNAMES=sys.argv[3])
os.execv(sys.executable, [sys.executable, "-m", "host_shim.cli", "relay", *sys.argv[4:]])
"""


def test_takes_systemds_sockets_and_tells_when_it_is_ready(tmp_path: Path, target: Target) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(LIMIT)
        words = ["3", "1", "api", "--listen", "systemd:api", "--to", target.endpoint]
        # The descriptor that systemd would have put there: 3.
        place = f"import os; os.dup2({listener.fileno()}, 3, True)\n"
        with subprocess.Popen(
            [sys.executable, "-c", place + ACTIVATE, *words], pass_fds=[listener.fileno()], stdout=subprocess.PIPE,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        ) as process:  # fmt: skip
            assert ear.recv(100) == b"READY=1"
            with socket.create_connection(listener.getsockname(), timeout=LIMIT) as client:
                client.sendall(b"x")
                with target.accept() as inside:
                    assert inside.recv(1) == b"x"
            process.terminate()
            assert ear.recv(100) == b"STOPPING=1"
            assert process.wait(LIMIT) == 0
    with socket.create_connection(listener.getsockname(), timeout=LIMIT):  # it waits for the next instance
        listener.accept()[0].close()
    listener.close()


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({}, "no socket was handed over"),
        ({"LISTEN_PID": "1"}, "another process"),
        ({"LISTEN_FDS": "0"}, "LISTEN_FDS"),
        ({"LISTEN_FDS": "65"}, "LISTEN_FDS"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS"),
        ({"LISTEN_FDS": "٣"}, "LISTEN_FDS"),
        ({"LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES"),
        ({"LISTEN_FDNAMES": "b"}, "no socket of that name"),
    ],
)
def test_refuses_an_activation_that_is_none(variables: dict[str, str], match: str) -> None:
    sound = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}
    environ = {**sound, **variables} if variables else {}
    with pytest.raises(BadActivation, match=match):
        take_sockets(environ, "a")
    assert not environ  # no child sees them


def make_file() -> Any:
    return Path("/dev/null").open()


def make_datagram() -> Any:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def make_deaf() -> Any:
    return socket.socket(socket.AF_INET)


@pytest.mark.parametrize("make", [make_file, make_datagram, make_deaf])
def test_refuses_a_descriptor_that_does_not_listen(make: Any) -> None:
    script = (
        "import os, sys\nfrom host_shim.systemd import take_sockets\nfrom host_shim.errors import BadActivation\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "try: take_sockets({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})\n"
        "except BadActivation as error: print(error)"
    )
    with make() as wrong:
        done = subprocess.run(
            [sys.executable, "-c", script, str(wrong.fileno())], pass_fds=[wrong.fileno()], capture_output=True,
            text=True, check=True,
        )  # fmt: skip
    assert done.stdout.startswith("descriptor 3; expected a "), done.stdout


# Counters


def test_counters_read_as_they_were_published(tmp_path: Path) -> None:
    with (tmp_path / "counters").open("w+b") as file:
        assert read_board(file.fileno(), Counters) is None
        board = Board(file.fileno(), Counters)
        assert read_board(file.fileno(), Counters) is None
        board.publish(Counters(accepted=3, bytes_out=1 << 40))
        assert read_board(file.fileno(), Counters) == Counters(accepted=3, bytes_out=1 << 40)
        board.close()
        file.seek(8)
        file.write(b"\1")  # a writer that died while it wrote
        file.flush()
        assert read_board(file.fileno(), Counters) is None
        file.seek(0)
        file.write(bytes(size_of(Counters)))
        file.flush()
        assert read_board(file.fileno(), Counters) is None
