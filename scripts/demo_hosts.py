# SPDX-License-Identifier: MIT
"""Hosts that lie: they answer participants with a key of their own instead of the isolate's, and note what comes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

TIMEOUT = 20.0  # seconds for everything on a connection
MAX_HEAD = 16 * 1024  # bytes of a request's or an answer's head
MAX_ANSWER = 64 * 1024  # bytes


def fetch_certificate(isolate: tuple[str, int]) -> bytes:
    """Return the certificate (DER) that the isolate shows to everybody."""
    with _dial(isolate) as tls:
        return tls.getpeercert(binary_form=True) or b""


def forge_certificate(genuine: bytes, folder: Path) -> tuple[Path, Path]:
    """Write a certificate with every word of the genuine one but over a new key, and that key; return both files."""
    model = x509.load_der_x509_certificate(genuine)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(model.subject)
        .issuer_name(model.issuer)
        .serial_number(model.serial_number)
        .not_valid_before(model.not_valid_before_utc)
        .not_valid_after(model.not_valid_after_utc)
        .public_key(key.public_key())
    )
    for extension in model.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    certificate_file, key_file = folder / "forged.pem", folder / "forged.key"
    certificate_file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate_file, key_file


class LyingHost:
    """Listens on a port of its own and ends TLS there, under a copy of the isolate's certificate over its own key.

    relay_evidence: each request for evidence is answered with a genuine document, which the isolate has just made for
    the very nonce of the client. `honest` is the number of connections that are passed on untouched before that: with
    1, a participant verifies the true isolate, and it is the next connection that meets the impostor.
    """

    def __init__(self, isolate: tuple[str, int], *, victims: list[Path], honest: int) -> None:
        self._isolate = isolate
        self._honest = honest
        self._folder = tempfile.TemporaryDirectory(prefix="veracruz-host-")
        certificate_file, key_file = forge_certificate(fetch_certificate(isolate), Path(self._folder.name))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(certificate_file, key_file)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        for certificate in victims:  # public: they stand in the policy; with them a handshake would succeed
            self._context.load_verify_locations(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.25)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.met = 0  # connections that came to the impostor
        self.documents = 0  # genuine documents that it passed on
        self.certificates = 0  # certificates of clients that it saw
        self.requests: list[bytes] = []  # requests that it could read
        self._thread.start()

    @property
    def address(self) -> str:
        """Where participants are made to connect to."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()
        self._folder.cleanup()

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            client.settimeout(TIMEOUT)
            with contextlib.suppress(OSError), client:
                if self._honest > 0:
                    self._honest -= 1
                    self._pass_on(client)
                else:
                    self.met += 1
                    self._impersonate(client)

    def _pass_on(self, client: socket.socket) -> None:
        with socket.create_connection(self._isolate, timeout=TIMEOUT) as isolate:
            back = threading.Thread(target=_copy, args=(isolate, client), daemon=True)
            back.start()
            _copy(client, isolate)
            back.join(TIMEOUT)

    def _impersonate(self, client: socket.socket) -> None:
        with self._context.wrap_socket(client, server_side=True) as tls:
            head = _read_head(tls)  # only now has the client sent all that belongs to its handshake
            if tls.getpeercert(binary_form=True):
                self.certificates += 1
            if not head:
                return
            self.requests.append(head)
            if head.startswith(b"GET /v1/attestation"):
                with _dial(self._isolate) as isolate:
                    isolate.sendall(head)
                    tls.sendall(_read_answer(isolate))
                self.documents += 1


def _dial(isolate: tuple[str, int]) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(isolate, timeout=TIMEOUT))


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _read_head(tls: ssl.SSLSocket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
        data = tls.recv(4096)
        if not data:
            break
        head += data
    return head


def _read_answer(tls: ssl.SSLSocket) -> bytes:
    answer = b""
    with contextlib.suppress(ssl.SSLError):
        while len(answer) < MAX_ANSWER:
            data = tls.recv(4096)
            if not data:
                break
            answer += data
    return answer
