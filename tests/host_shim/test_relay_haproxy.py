# SPDX-License-Identifier: MIT
"""The relay between a real haproxy and an isolate: both speak the same PROXY protocol, version 2."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from host_shim.relay.proxy_protocol import SIGNATURE

from ..waiting import eventually
from .relays import LIMIT, Target, verb

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
pytestmark = [pytest.mark.faults, pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")]

CONFIG = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen balancer
    bind unix@{front}
    server relay {address} send-proxy-v2
"""


@contextmanager
def balancer(folder: Path, address: str) -> Iterator[socket.socket]:
    """Run haproxy before the relay; give a connection through it."""
    config, front = folder / "haproxy.cfg", folder / "front"
    config.write_text(CONFIG.format(front=front, address=address.removeprefix("tcp:")))
    with subprocess.Popen([str(HAPROXY), "-q", "-db", "-f", config], stdin=subprocess.DEVNULL) as process:
        try:
            assert eventually(front.exists)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(LIMIT)
                client.connect(str(front))
                yield client
        finally:
            process.kill()


def test_takes_haproxys_header_and_writes_one_of_its_own(tmp_path: Path) -> None:
    target = Target(tmp_path / "inside")
    options = ("--accept-proxy", "127.0.0.0/8", "--send-proxy")
    with verb(tmp_path, target.endpoint, *options) as relay, balancer(tmp_path, relay.listen[0]) as client:
        client.sendall(b"question")
        with target.accept() as inside:
            got = b""
            while not got.endswith(b"question"):
                got += inside.recv(500)
            inside.sendall(b"answer")
        assert client.recv(100) == b"answer"
        assert got.startswith(SIGNATURE)
        assert got.count(SIGNATURE) == 1  # haproxy's was taken off
        assert relay.counters().refused_proxy == 0
    target.sock.close()
