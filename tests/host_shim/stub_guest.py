# SPDX-License-Identifier: MIT
"""A guest's side of every port, without the machine: `stub_guest.py BASE WAY`, for tests of the host's side."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from attestation.nsm import DescribeNsm, encode_request
from enclave_image.runtime.frames import recv_frame, send_frame
from enclave_image.runtime.transport import UnixSockets
from enclave_image.runtime.wire import (
    HEARTBEAT,
    PORT_API,
    PORT_EVENTS,
    PORT_HEARTBEAT,
    PORT_NSM,
    PORT_POLICY,
    Event,
)


def echo(sock: socket.socket) -> None:
    """Answer one connection with its own bytes."""
    with sock:
        while data := sock.recv(65536):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def serve(ports: UnixSockets, port: int = PORT_API) -> None:
    """Listen where participants arrive."""
    listener = ports.listen(port)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def ask_module(ports: UnixSockets) -> None:
    """Take the emulator's one connection and keep it."""
    module = ports.dial(PORT_NSM)
    send_frame(module, encode_request(DescribeNsm()))
    recv_frame(module, 0x3000)
    kept.append(module)
    with ports.dial(PORT_NSM) as second:
        assert second.recv(1) == b""  # one connection in a boot


kept: list[socket.socket] = []


def main(base: str, way: str) -> int:
    """Boot, and live or die in the given way."""
    ports = UnixSockets(base)
    way, _, device = way.partition("+")  # "+nsm": a module of its own
    print("stub guest: booting \x1b[31m", flush=True)
    if way == "dies-at-once":
        return 3
    if way == "silent":
        time.sleep(600)
    with ports.dial(PORT_HEARTBEAT) as sock:
        sock.sendall(HEARTBEAT)
        assert sock.recv(1) == HEARTBEAT
    if way.startswith("foreign:"):  # all that others' images do
        assert not [name for name in (PORT_POLICY, PORT_EVENTS, PORT_NSM) if Path(f"{base}_{name}").exists()]
        serve(ports, int(way.removeprefix("foreign:")))
        time.sleep(600)
    events = ports.dial(PORT_EVENTS)
    if device:
        assert not Path(f"{base}_{PORT_NSM}").exists()
    else:
        ask_module(ports)
    events.sendall(bytes([Event.ATTESTOR_READY]))
    with ports.dial(PORT_POLICY) as sock:
        policy = recv_frame(sock, 1 << 20)
        answer = Event.HALT_POLICY if b"malformed" in policy else Event.POLICY_TAKEN
        sock.sendall(bytes([answer]))
    if answer.halts:
        return 0
    serve(ports)
    events.sendall(bytes([Event.SERVING]))
    way, _, helper = way.partition("-after-")
    if way.startswith("dies-until:"):  # a file that it makes and the next one finds
        mark = Path(way.removeprefix("dies-until:"))
        way = "serves" if mark.exists() else "dies"
        mark.touch()
    if way == "agreed":
        events.sendall(bytes([Event.SHUTDOWN_AGREED]))
    if helper:
        Path(base).with_name("helper").unlink()
        time.sleep(0.1)
    if way == "agreed":
        return 0
    if way in ("dies", "dies-later"):
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
