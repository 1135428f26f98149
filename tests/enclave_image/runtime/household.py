# SPDX-License-Identifier: MIT
"""Everything around a `process` isolate that a test needs: the host's ports with an emulated NSM, parties, a policy."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from attestation.measurements import Measurements
from enclave_image.runtime.frames import BrokenFrame, recv_frame, send_frame
from enclave_image.runtime.wire import HEARTBEAT, PORT_API, PORT_EVENTS, PORT_HEARTBEAT, PORT_NSM, PORT_POLICY, Event
from host_shim.dev_pki import Authority, Chain, make_root
from host_shim.nsm_emulator import BootState, Identity, NsmEmulator

REPOSITORY = Path(__file__).resolve().parents[3]
SOME_IMAGE = Measurements(b"\1" * 48, b"\2" * 48, b"\3" * 48)
PATIENCE = 30.0  # seconds


class Party:
    """A key with a certificate, in a file for OpenSSL."""

    def __init__(self, directory: Path, name: str, *, issuer: Party | None = None, authority: bool = False) -> None:
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(issuer.subject if issuer else self.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(issuer.key if issuer else self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(Encoding.PEM).decode()
        self.file = directory / f"{name}.pem"
        chain = self.pem + (issuer.pem if issuer else "")
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.file.write_text(private + chain)


@dataclass(slots=True)
class Answer:
    """What the API answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        return str(self.json["error"]["slug"])


def knock(base: str) -> socket.socket:
    """Connect to an isolate and say nothing yet."""
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.settimeout(PATIENCE)
    raw.connect(f"{base}_{PORT_API}")
    return raw


class Client:
    """One TLS connection that speaks plain HTTP/1.1; it checks nothing, which is another package's task."""

    def __init__(self, base: str, party: Party | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if party is not None:
            context.load_cert_chain(party.file)
        raw = knock(base)
        try:
            self.tls = context.wrap_socket(raw)
        except BaseException:
            raw.close()
            raise
        self.certificate = self.tls.getpeercert(binary_form=True) or b""
        self.http = http.client.HTTPConnection("isolate")
        self.http.sock = self.tls

    def ask(self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        self.http.request(method, target, body=body, headers=headers or {})
        response = self.http.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def put(self, path: str, content: bytes, *, method: str = "PUT", sha256: str | None = None) -> Answer:
        digest = hashlib.sha256(content).hexdigest() if sha256 is None else sha256
        return self.ask(method, f"/v1/files{path}", content, {"X-Content-SHA256": digest})

    def get(self, path: str) -> Answer:
        return self.ask("GET", f"/v1/files{path}")

    def run(self, program: str, **more: Any) -> dict[str, Any]:
        """Start a job and wait for its end."""
        started = self.ask("POST", "/v1/jobs", json.dumps({"program": program, **more}).encode())
        assert started.status == 202, started
        return self.wait(started.json["id"])

    def wait(self, job: str) -> dict[str, Any]:
        while True:
            answer = self.ask("GET", f"/v1/jobs/{job}?wait=30")
            assert answer.status == 200, answer
            if answer.json["state"] == "ended":
                ended: dict[str, Any] = answer.json
                return ended

    def close(self) -> None:
        self.http.close()
        self.tls.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Host:
    """The untrusted side: four ports and an emulated NSM, as a supervisor serves them."""

    def __init__(
        self,
        base: str,
        policy: bytes,
        *,
        root: Authority,
        measurements: Measurements | None = None,
        prepare: Any = None,
        now: Any = lambda: datetime.now(UTC),
    ) -> None:
        identity = Identity.random()
        self.base = base
        self.policy = policy
        self.emulator = NsmEmulator(
            BootState(measurements, identity), Chain(root, module_id=identity.module_id), clock=now
        )
        if prepare is not None:
            prepare(self.emulator)
        self.answers: list[Event] = []
        self.events: list[Event] = []
        self.news = threading.Condition()
        self.beats = 0
        self._sockets: list[socket.socket] = []
        ports = {
            PORT_HEARTBEAT: self._heartbeat, PORT_POLICY: self._policy, PORT_NSM: self._nsm, PORT_EVENTS: self._events,
        }  # fmt: skip
        for port, serve in ports.items():
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(f"{base}_{port}")
            listener.listen()
            self._sockets.append(listener)
            threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()

    def _accept(self, listener: socket.socket, serve: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=self._run, args=(sock, serve), daemon=True).start()

    @staticmethod
    def _run(sock: socket.socket, serve: Any) -> None:
        with sock, contextlib.suppress(OSError):
            serve(sock)

    def _heartbeat(self, sock: socket.socket) -> None:
        assert sock.recv(1) == HEARTBEAT
        sock.sendall(HEARTBEAT)
        self.beats += 1

    def _policy(self, sock: socket.socket) -> None:
        send_frame(sock, self.policy)
        answer = sock.recv(1)
        with self.news:
            with self.news:
                self.answers.append(Event(answer[0]))
                self.news.notify_all()
            self.news.notify_all()

    def _nsm(self, sock: socket.socket) -> None:
        with contextlib.suppress(BrokenFrame):
            while True:
                request = recv_frame(sock, 1 << 16)
                send_frame(sock, self.emulator.answer(request))

    def _events(self, sock: socket.socket) -> None:
        while code := sock.recv(1):
            with self.news:
                self.events.append(Event(code[0]))
                self.news.notify_all()

    def wait_for_answer(self) -> list[Event]:
        """Return what the policy port was answered; it comes on another connection than the events."""
        with self.news:
            assert self.news.wait_for(lambda: bool(self.answers), PATIENCE)
            return self.answers

    def wait_for(self, event: Event) -> None:
        with self.news:
            assert self.news.wait_for(
                lambda: event in self.events or any(seen.halts for seen in self.events), PATIENCE
            ), self.events
            assert event in self.events, self.events

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Isolate:
    """A running `process` isolate and its host."""

    def __init__(self, host: Host, process: subprocess.Popen[bytes]) -> None:
        self.host = host
        self.process = process

    def connect(self, party: Party | None) -> Client:
        return Client(self.host.base, party)

    def knock(self) -> socket.socket:
        return knock(self.host.base)

    def evidence(self, nonce: bytes) -> bytes:
        with self.connect(None) as client:
            answer = client.ask("GET", f"/v1/attestation?nonce={nonce.hex()}")
            assert answer.status == 200, answer
            return answer.body

    def ended(self) -> str:
        """Wait for the end; return what the isolate said on stdout and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return (out + err).decode()


@contextlib.contextmanager
def isolate(
    policy: bytes | dict[str, Any], *, python: str = sys.executable, trace: bool = True, wait: bool = True, **host: Any
) -> Iterator[Isolate]:
    """Start an isolate under a policy; end it and its host whatever happens."""
    raw = policy if isinstance(policy, bytes) else json.dumps(policy).encode()
    with tempfile.TemporaryDirectory(prefix="vz") as directory:
        base = f"{directory}/v"
        root = host.pop("root", None) or make_root(datetime.now(UTC))
        side = Host(base, raw, root=root, **host)
        command = [python, "-m", "enclave_image.runtime.process", base, f"{directory}/scratch"]
        process = subprocess.Popen(
            command + (["--trace"] if trace else []),
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        try:
            if wait:
                side.wait_for(Event.SERVING)
            yield Isolate(side, process)
        finally:
            process.terminate()
            out, err = process.communicate(timeout=PATIENCE)
            sys.stderr.write((out + err).decode())
            side.close()


def make_policy(*parties: Party, **changes: Any) -> dict[str, Any]:
    """Return a policy in which everybody may do everything, unless `changes` (by top-level key) say otherwise."""
    policy: dict[str, Any] = {
        "schema": "veracruz.policy/1",
        "name": "test",
        "images": [{f"PCR{index}": value.hex() for index, value in enumerate(SOME_IMAGE.registers)}],
        "participants": [participant(party) for party in parties],
        "join": [party.name for party in parties[:1]],
        "programs": [],
    }
    return policy | changes


ALL = ["read", "write", "append", "execute", "observe", "list", "delete"]


def participant(party: Party, rights: dict[str, list[str]] | None = None) -> dict[str, Any]:
    return {"name": party.name, "certificate": party.pem, "rights": rights or {"/": ALL}}


def program(path: str, code: bytes, rights: dict[str, list[str]], **more: Any) -> dict[str, Any]:
    return {"path": path, "sha256": hashlib.sha256(code).hexdigest(), "rights": rights, **more}


def text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
