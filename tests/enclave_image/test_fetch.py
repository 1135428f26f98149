# SPDX-License-Identifier: MIT
"""Inputs reach the cache whole and checked, or not at all; a real HTTP server serves them, well and badly."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from enclave_image.errors import InputMismatch, InputUnavailable
from enclave_image.fetch import fetch_inputs, input_path
from enclave_image.lock import Archive, LockedPackage, Role

BODY = bytes(range(256)) * 4096  # 1 MiB


class Mirror(ThreadingHTTPServer):
    """Serves BODY under pool/good, and its faults under names that say them."""

    daemon_threads = True
    requests: list[tuple[str, str | None]]


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        name = self.path.rsplit("/", 1)[-1]
        if name == "absent.deb":
            self.send_error(404)
            return
        body = {"other.deb": bytes(len(BODY)), "long.deb": BODY + b"x"}.get(name, BODY)[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = name == "always-cut.deb" or (name == "cut.deb" and not start)
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    server = Mirror(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def package(name: str) -> LockedPackage:
    digest = hashlib.sha256(BODY).hexdigest()
    return LockedPackage(name, "1", frozenset({Role.ROOT}), Archive.DEBIAN, f"pool/{name}.deb", len(BODY), digest)


def mirrors(*servers: Mirror) -> dict[Archive, tuple[str, ...]]:
    return {Archive.DEBIAN: tuple(f"http://127.0.0.1:{s.server_address[1]}" for s in servers), Archive.SECURITY: ()}


def leftovers() -> list[Path]:
    return [path for path in input_path(package("x")).parents[1].rglob("*.part") if path.is_file()]


def test_brings_an_input_once(mirror: Mirror) -> None:
    good = package("good")
    assert fetch_inputs([good], mirrors(mirror))["good"].read_bytes() == BODY
    fetch_inputs([good], mirrors(mirror))
    fetch_inputs([good], mirrors(), offline=True)
    assert mirror.requests == [("/pool/good.deb", None)]


def test_goes_on_where_a_connection_was_cut(mirror: Mirror) -> None:
    assert fetch_inputs([package("cut")], mirrors(mirror))["cut"].read_bytes() == BODY
    assert mirror.requests == [("/pool/cut.deb", None), ("/pool/cut.deb", f"bytes={len(BODY) // 2}-")]


def test_asks_the_next_mirror(mirror: Mirror) -> None:
    nobody = {Archive.DEBIAN: ("http://127.0.0.1:9", *mirrors(mirror)[Archive.DEBIAN]), Archive.SECURITY: ()}
    assert fetch_inputs([package("good")], nobody)["good"].read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("other", InputMismatch, "SHA-256 of other.deb"),
        ("long", InputMismatch, "longer than the lock says"),
        ("absent", InputUnavailable, "404"),
        ("always-cut", InputUnavailable, "always-cut.deb: "),
    ],
)
def test_refuses_a_bad_answer_and_leaves_nothing(mirror: Mirror, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fetch_inputs([package(name)], mirrors(mirror))
    assert not input_path(package(name)).exists()
    assert leftovers() == []


def test_says_so_when_no_mirror_is_known() -> None:
    with pytest.raises(InputUnavailable, match="no mirror") as caught:
        fetch_inputs([package("good")], mirrors())
    assert "VERACRUZ_DEBIAN_MIRROR" in str(caught.value.hint)


def test_offline_names_what_is_missing() -> None:
    with pytest.raises(InputUnavailable, match="good, other"):
        fetch_inputs([package("good"), package("other")], mirrors(), offline=True)


def test_a_cache_that_rotted_is_fetched_anew(mirror: Mirror) -> None:
    good = package("good")
    path = fetch_inputs([good], mirrors(mirror))["good"]
    path.write_bytes(bytes(len(BODY)))
    assert fetch_inputs([good], mirrors(mirror))["good"].read_bytes() == BODY


def test_ctrl_c_does_not_wait_for_a_silent_mirror(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "host_shim.cli", "image", "build", "--out", str(tmp_path / "x.eif")]
        environment = {**os.environ, "VERACRUZ_DEBIAN_MIRROR": url, "VERACRUZ_SECURITY_MIRROR": url}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)  # it waits for our answer now
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert leftovers() == []
    assert not (tmp_path / "x.eif").exists()
