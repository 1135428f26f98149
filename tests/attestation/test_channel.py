# SPDX-License-Identifier: MIT
"""The channel against real TLS servers: who is refused, when, and that no certificate of ours was sent to them."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestation import channel, http_connection
from attestation.channel import connect, fetch_evidence
from attestation.endpoint import Endpoint
from attestation.errors import (
    ApiRefusal,
    Busy,
    CertificateRefused,
    KeyMismatch,
    MalformedAnswer,
    MalformedInput,
    Unreachable,
    UsageError,
    VeracruzError,
)
from attestation.identity import Identity
from attestation.limits import MAX_DOCUMENT
from attestation.policy import Policy, parse_policy

from .isolate_server import IsolateServer, RecordingRelay, Request, ServerKey, issue, refusal, reply
from .parties import Parties

NONCE = bytes(range(32))
DOCUMENT = b"a document"


@pytest.fixture
def policy(parties: Parties) -> Policy:
    return parse_policy(parties.policy())


def _attest(nonce: bytes, spki: bytes) -> bytes:
    return DOCUMENT + nonce + spki


Serve = Callable[..., IsolateServer]


@pytest.fixture
def serve(tmp_path: Path, policy: Policy) -> Iterator[Serve]:
    servers: list[IsolateServer] = []

    def start(**arguments: object) -> IsolateServer:
        servers.append(IsolateServer(tmp_path, policy, _attest, **arguments))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# Evidence


def test_fetches_evidence_without_a_certificate_and_names_the_key_of_the_handshake(serve: Serve) -> None:
    server = serve()
    evidence = fetch_evidence(server.endpoint, NONCE)
    assert evidence.document == DOCUMENT + NONCE + server.key.spki
    assert evidence.nonce == NONCE
    assert evidence.public_key == server.key.spki
    assert evidence.certificate == server.key.certificate
    assert server.seen.certificates == [None]
    assert server.seen.requests == [f"GET /v1/attestation?nonce={NONCE.hex()}"]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_refuses_a_nonce_of_another_length(serve: Serve, size: int) -> None:
    with pytest.raises(MalformedInput, match="nonce"):
        fetch_evidence(Endpoint("127.0.0.1", 1), bytes(size))


def test_refuses_evidence_beside_a_certificate_that_could_vouch_for_others(serve: Serve) -> None:
    authority = ServerKey.new("authority")
    issued = ServerKey(*issue("isolate", authority.key_pem, authority.certificate_pem))
    with pytest.raises(KeyMismatch, match="not self-signed"):
        fetch_evidence(serve(key=issued).endpoint, NONCE)


# The pinned connection


def test_connects_to_the_attested_isolate_and_asks_several_things(serve: Serve, parties: Parties) -> None:
    server = serve()
    with connect(server.endpoint, server.key.certificate, parties.alice) as connection:
        assert connection.request("GET", "/v1/policy").body == parties.policy()
        assert connection.request("GET", "/v1/policy").status == 200
        assert connection.usable
    assert server.seen.certificates == [parties.alice.certificate]


@contextmanager
def _refused_before_our_certificate(
    server: IsolateServer, certificate: bytes, identity: Identity, error: type[VeracruzError]
) -> Iterator[None]:
    """Connect through a recording host; check what was refused, and that nothing of the client's came through."""
    with RecordingRelay(server.endpoint) as relay:
        with pytest.raises(error):
            connect(relay.endpoint, certificate, identity)
        yield
    sent = bytes(relay.clients[0])
    hello = 5 + int.from_bytes(sent[3:5], "big")
    assert sent[0] == 0x16  # RFC 8446 5.1: a handshake record, the ClientHello
    assert len(sent) - hello < 80  # a change_cipher_spec and an alert; a certificate alone is far longer
    assert len(identity.certificate) > 300
    assert server.seen.certificates == []
    assert server.seen.requests == []


def test_a_host_with_its_own_key_sees_no_certificate(serve: Serve, parties: Parties) -> None:
    server, isolate = serve(), ServerKey.new()
    with _refused_before_our_certificate(server, isolate.certificate, parties.alice, KeyMismatch):
        pass


def test_a_host_with_a_copy_of_the_certificate_sees_no_certificate(serve: Serve, parties: Parties) -> None:
    isolate = ServerKey.new()
    with _refused_before_our_certificate(serve(key=isolate.copy()), isolate.certificate, parties.alice, KeyMismatch):
        pass


def test_a_host_whose_certificate_was_issued_by_the_isolates_key_is_refused(serve: Serve, parties: Parties) -> None:
    isolate = ServerKey.new()
    issued = ServerKey(*issue("veracruz isolate", isolate.key_pem, isolate.certificate_pem))
    with _refused_before_our_certificate(serve(key=issued), isolate.certificate, parties.alice, KeyMismatch):
        pass


def test_a_server_of_an_older_tls_is_refused(serve: Serve, parties: Parties) -> None:
    server = serve(version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises((MalformedAnswer, Unreachable)):
        connect(server.endpoint, server.key.certificate, parties.alice)
    with pytest.raises((MalformedAnswer, Unreachable)):
        fetch_evidence(server.endpoint, NONCE)
    assert server.seen.certificates == []


def test_never_resumes_even_where_the_server_gives_tickets(serve: Serve, parties: Parties) -> None:
    server = serve(tickets=2)
    for _ in range(3):
        with connect(server.endpoint, server.key.certificate, parties.alice) as connection:
            connection.request("GET", "/v1/policy")
            assert connection._tls.session_reused is False
    assert server.seen.certificates == [parties.alice.certificate] * 3  # each a full handshake


def test_refuses_a_connection_that_was_resumed(serve: Serve, parties: Parties, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(tickets=2)
    context = channel._new_context(ssl.CERT_NONE)
    with socket.create_connection((server.endpoint.host, server.endpoint.port or 0)) as sock:
        first = context.wrap_socket(sock)
        first.sendall(b"GET /v1/attestation?nonce=00 HTTP/1.1\r\n\r\n")
        while first.recv(4096):
            pass
        session = first.session
        first.close()
    wrap = context.wrap_socket
    address = (server.endpoint.host, server.endpoint.port or 0)
    with socket.create_connection(address) as sock, wrap(sock, session=session) as again:
        if not again.session_reused:
            pytest.skip(f"{ssl.OPENSSL_VERSION} does not resume this session, so there is nothing to refuse")
    monkeypatch.setattr(context, "wrap_socket", lambda sock: wrap(sock, session=session), raising=False)
    with pytest.raises(MalformedAnswer, match="full handshake"):
        channel._open(server.endpoint, context, timeout=5, identified=False)


def test_a_certificate_that_is_not_in_the_policy_is_reported_as_such(serve: Serve, parties: Parties) -> None:
    server = serve()
    with connect(server.endpoint, server.key.certificate, parties.mallory) as connection:
        with pytest.raises(CertificateRefused) as caught:
            connection.request("GET", "/v1/policy")
        assert (caught.value.slug, caught.value.exit_code) == ("certificate-refused", 1)
    assert server.seen.requests == []


def test_a_certificate_for_bob_signed_by_alice_is_refused(serve: Serve, parties: Parties, tmp_path: Path) -> None:
    key, pem = issue("bob", parties.alice.key_file.read_bytes(), parties.alice.certificate_file.read_bytes())
    (tmp_path / "bob.key").write_bytes(key)
    (tmp_path / "bob.pem").write_bytes(pem)
    forged = Identity(ssl.PEM_cert_to_DER_cert(pem.decode()), tmp_path / "bob.pem", tmp_path / "bob.key")
    server = serve()
    with (
        connect(server.endpoint, server.key.certificate, forged) as connection,
        pytest.raises(CertificateRefused),
    ):
        connection.request("GET", "/v1/policy")
    assert server.seen.requests == []


def test_an_end_after_the_first_answer_is_no_refusal_of_the_certificate(serve: Serve, parties: Parties) -> None:
    server = serve()
    with connect(server.endpoint, server.key.certificate, parties.alice) as connection:
        connection.request("GET", "/v1/policy")
        server.close()
        with pytest.raises(Unreachable):
            connection.request("GET", "/v1/policy")
        assert not connection.usable


# Answers


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (reply(200, bytes(MAX_DOCUMENT + 1)), MalformedAnswer, "too large"),
        (b"HTTP/1.1 200 OK\r\n\r\nbody", MalformedAnswer, "length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", MalformedAnswer, "length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", MalformedAnswer, "length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", MalformedAnswer, "another HTTP"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", MalformedAnswer, "another HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", Unreachable, "broke off"),
        (b"SSH-2.0-OpenSSH\r\n", MalformedAnswer, "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", MalformedAnswer, "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 200 + b"\r\n", MalformedAnswer, "does not answer in HTTP"),
        (b"", Unreachable, "cut the connection"),
        (reply(500, b"<html>"), MalformedAnswer, "answered 500 in no form"),
        (reply(302, b"", headers={"Location": "http://elsewhere"}), MalformedAnswer, "answered 302"),
        (refusal(418, "tea\x1b[2J", "\x1b]0;title\x07"), ApiRefusal, r"\\x1b"),
        (refusal(429, "busy"), Busy, "refused"),
    ],
)
def test_refuses_an_answer_out_of_form(serve: Serve, answer: bytes, error: type[VeracruzError], match: str) -> None:
    server = serve(override=lambda _: answer)
    with pytest.raises(error, match=match) as caught:
        fetch_evidence(server.endpoint, NONCE)
    assert str(caught.value).isprintable()


def test_a_slow_server_meets_a_deadline_however_it_drips(
    serve: Serve, parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "SLOWEST", 1 << 20)
    drip = threading.Event()

    def override(request: Request) -> bytes | None:
        drip.wait(5)
        return None

    server = serve(override=override)
    begin = time.monotonic()
    with (
        connect(server.endpoint, server.key.certificate, parties.alice) as connection,
        pytest.raises(Unreachable, match="in time"),
    ):
        connection.request("GET", "/v1/policy", timeout=0.3)
    assert time.monotonic() - begin < 3
    drip.set()


def test_dripping_bytes_do_not_move_the_deadline() -> None:
    with DrippingServer() as server:
        begin = time.monotonic()
        with pytest.raises(Unreachable):
            fetch_evidence(server.endpoint, NONCE, timeout=0.5)
        assert time.monotonic() - begin < 3


def test_nobody_there_is_unreachable_with_the_isolates_exit_code(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = Endpoint("127.0.0.1", closed.getsockname()[1])
    for nowhere in (endpoint, Endpoint(str(tmp_path / "no.sock"), None), Endpoint("x" * 70 + ".invalid", 1)):
        with pytest.raises(Unreachable) as caught:
            fetch_evidence(nowhere, NONCE)
        assert caught.value.exit_code == 5


def test_a_server_that_does_not_speak_tls_is_told_apart() -> None:
    with PlainServer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server, pytest.raises(MalformedAnswer, match="TLS"):
        fetch_evidence(server.endpoint, NONCE)


# Addresses


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("localhost:5000", Endpoint("localhost", 5000)),
        ("[::1]:5000", Endpoint("::1", 5000)),
        ("unix:/run/x/v_5000", Endpoint("/run/x/v_5000", None)),
    ],
)
def test_reads_an_address(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    ["", "localhost", ":5000", "localhost:", "localhost:0", "localhost:65536", "localhost:٣", "::1:5000", "unix:"],
)
def test_refuses_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        Endpoint.parse(text)


class PlainServer:
    """Sends the same bytes to whoever connects, and keeps what it received."""

    def __init__(self, answer: bytes) -> None:
        self.received = bytearray()
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self._listener.getsockname()[1])

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        with sock:
            sock.settimeout(5)
            self.talk(sock)

    def talk(self, sock: socket.socket) -> None:
        self.received += sock.recv(65536)
        sock.sendall(self._answer)

    def __enter__(self) -> PlainServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


class DrippingServer(PlainServer):
    """Sends the record header of a ServerHello, then a byte now and then."""

    def __init__(self) -> None:
        super().__init__(b"")

    def talk(self, sock: socket.socket) -> None:
        sock.recv(65536)
        for byte in b"\x16\x03\x03\x40\x00" + bytes(60):
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                return
            time.sleep(0.1)
