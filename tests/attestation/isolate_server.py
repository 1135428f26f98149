# SPDX-License-Identifier: MIT
"""The server's side of the channel as design says, in a thread: the API over files in memory, and all that it saw.

It enforces no rights and runs no program; what participants send, and to whom, is what it is for. Faults of hosts and
servers are made by its arguments: another key, tickets, an older TLS, an answer out of form.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from attestation.endpoint import Endpoint
from attestation.identity import make_identity
from attestation.policy import Policy

Attest = Callable[[bytes, bytes], bytes]  # nonce and SPKI to a document


@dataclass(frozen=True)
class ServerKey:
    """A key and a certificate, as files for OpenSSL."""

    key_pem: bytes
    certificate_pem: bytes

    @classmethod
    def new(cls, name: str = "veracruz isolate") -> ServerKey:
        """Make a key and its self-signed certificate, of an isolate's form."""
        return cls(*make_identity(name))

    @property
    def certificate(self) -> bytes:
        """DER."""
        return ssl.PEM_cert_to_DER_cert(self.certificate_pem.decode())

    @property
    def spki(self) -> bytes:
        """DER."""
        key = x509.load_pem_x509_certificate(self.certificate_pem).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def copy(self) -> ServerKey:
        """Return what a host has that copied the certificate and not the key.

        The key file holds another scalar beside the right public point, which OpenSSL compares, but does not compute.
        """
        own = ec.generate_private_key(ec.SECP256R1())
        der = own.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        point = own.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        assert der.count(point) == 1
        forged = base64.encodebytes(der.replace(point, self.spki[-len(point) :])).decode()
        pem = f"-----BEGIN PRIVATE KEY-----\n{forged}-----END PRIVATE KEY-----\n"
        return ServerKey(pem.encode(), self.certificate_pem)

    def load_into(self, context: ssl.SSLContext, folder: Path) -> None:
        """Give OpenSSL both."""
        path = folder / f"{hashlib.sha256(self.key_pem + self.certificate_pem).hexdigest()[:16]}.pem"
        path.write_bytes(self.key_pem + self.certificate_pem)
        context.load_cert_chain(path)


def issue(name: str, issuer_key_pem: bytes, issuer_pem: bytes) -> tuple[bytes, bytes]:
    """Return a key and a certificate that another's key signed, both as PEM."""
    issuer = x509.load_pem_x509_certificate(issuer_pem)
    issuer_key = load_pem_private_key(issuer_key_pem, password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, certificate.public_bytes(Encoding.PEM)


@dataclass
class Seen:
    """What reached the server."""

    certificates: list[bytes | None] = field(default_factory=list)  # of finished handshakes
    requests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # of handshakes


@dataclass
class Request:
    """One request, read whole."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[[Request], bytes | None]


class Last(bytes):
    """An answer after which the server closes the connection."""


class IsolateServer:
    """Serve on a TCP port of this machine until closed; `override` may answer a request in its own bytes."""

    def __init__(
        self,
        folder: Path,
        policy: Policy,
        attest: Attest,
        *,
        key: ServerKey | None = None,
        tickets: int = 0,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        override: Handler | None = None,
    ) -> None:
        self.key = key or ServerKey.new()
        self.policy = policy
        self.seen = Seen()
        self.files: dict[str, bytes] = {}
        self.job: dict[str, object] = {}
        self.override = override
        self._attest = attest
        self._context = self._make_context(folder, tickets, version)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop, and wait for every thread."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> IsolateServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_context(self, folder: Path, tickets: int, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = min(version, ssl.TLSVersion.TLSv1_3)
        context.maximum_version = version
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=b"".join(party.certificate for party in self.policy.participants))
        context.num_tickets = tickets
        self.key.load_into(context, folder)
        return context

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        try:
            tls = self._context.wrap_socket(sock, server_side=True)
        except OSError as error:
            self.seen.failures.append(getattr(error, "reason", None) or type(error).__name__)
            sock.close()
            return
        self._open.append(tls)
        with tls, contextlib.suppress(OSError, EOFError):
            certificate = tls.getpeercert(binary_form=True)
            self.seen.certificates.append(certificate)
            if certificate is not None and self.policy.participant_of(certificate) is None:
                return
            for request in self._requests(tls):
                self.seen.requests.append(f"{request.method} {request.target}")
                answer = self.override(request) if self.override else None
                tls.sendall(answer if answer is not None else self._answer(request, certificate))
                if certificate is None or isinstance(answer, Last):
                    return

    @staticmethod
    def _requests(tls: ssl.SSLSocket) -> Iterator[Request]:
        with tls.makefile("rb") as stream:
            while line := stream.readline(4096):
                method, target, _ = line.decode("ascii").split(" ")
                headers: dict[str, str] = {}
                while (field_ := stream.readline(4096).strip()) != b"":
                    name, _, value = field_.decode("ascii").partition(":")
                    headers[name.strip().lower()] = value.strip()
                length = int(headers.get("content-length", "0"))
                body = stream.read(length)
                if len(body) < length:
                    raise EOFError
                yield Request(method, target, headers, body)

    def _answer(self, request: Request, certificate: bytes | None) -> bytes:
        path, _, query = request.target.partition("?")
        if path == "/v1/attestation":
            nonce = bytes.fromhex(query.removeprefix("nonce="))
            return reply(200, self._attest(nonce, self.key.spki), close=certificate is None)
        if certificate is None:
            return refusal(401, "certificate-needed")
        if path == "/v1/policy":
            return reply(200, self.policy.raw)
        if path.startswith("/v1/files/"):
            return self._files(request, unquote(path.removeprefix("/v1/files")))
        if path == "/v1/shutdown":
            return reply_json(202, {"agreed": False})
        if path == "/v1/jobs" and request.method == "POST":
            self.job = {"id": "ab" * 16, "state": "running", "request": json.loads(request.body)}
            return reply_json(202, {"id": self.job["id"]})
        if path == f"/v1/jobs/{self.job.get('id')}":
            known = {name: value for name, value in self.job.items() if name != "request"}
            self.job["state"] = "ended"
            return reply_json(200, known)
        return refusal(404, "not-available")

    def _files(self, request: Request, path: str) -> bytes:
        content = self.files.get(path)
        if request.method in ("PUT", "PATCH"):
            digest = hashlib.sha256(request.body).hexdigest()
            if request.headers["x-content-sha256"] != digest:
                return refusal(409, "digest-mismatch")
            before = (content or b"") if request.method == "PATCH" else b""
            self.files[path] = before + request.body
            return reply_json(201, {"path": path, "size": len(request.body), "sha256": digest})
        if path.endswith("/"):
            names = [name.removeprefix(path) for name in self.files if name.startswith(path)]
            entries = [{"name": name, "kind": "file", "size": len(self.files[path + name])} for name in names]
            return reply_json(200, {"entries": entries})
        if content is None:
            return refusal(404, "not-available")
        if request.method == "DELETE":
            del self.files[path]
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        return reply(200, content, headers={"X-Content-SHA256": hashlib.sha256(content).hexdigest()})


def reply(status: int, body: bytes, *, headers: dict[str, str] | None = None, close: bool = False) -> bytes:
    """Return an answer's bytes."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply_json(status: int, value: object) -> bytes:
    """Return a JSON answer's bytes."""
    return reply(status, json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def refusal(status: int, slug: str, message: str = "no") -> bytes:
    """Return an error in the API's one form."""
    return reply_json(status, {"error": {"slug": slug, "message": message}})


def outcome(*, exit_code: int | None = 0, trap: str | None = None, stdout: bytes = b"") -> dict[str, object]:
    """Return what a job tells to an observer."""
    return {
        "exit_code": exit_code,
        "trap": trap,
        "usage": {"fuel": 12, "wall_ms": 3, "memory_bytes": 65536},
        "stdout": base64.b64encode(stdout).decode(),
        "stderr": "",
    }


class RecordingRelay:
    """A host in the middle: passes bytes on, keeps those of each client, and may send a connection elsewhere."""

    def __init__(self, *targets: Endpoint) -> None:
        self.clients: list[bytearray] = []
        self._targets = list(targets)  # one a connection, the last for all later ones
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint("127.0.0.1", self._listener.getsockname()[1])

    def __enter__(self) -> RecordingRelay:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            target = self._targets.pop(0) if len(self._targets) > 1 else self._targets[0]
            server = target.dial(timeout=10)
            record = bytearray()
            self.clients.append(record)
            for source, sink, keep in ((client, server, record), (server, client, bytearray())):
                thread = threading.Thread(target=_pump, args=(source, sink, keep))
                self._threads.append(thread)
                thread.start()


def _pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR if sock is sink else socket.SHUT_RD)
    sink.close()
