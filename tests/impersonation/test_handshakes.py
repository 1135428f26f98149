# SPDX-License-Identifier: MIT
"""Full handshakes of TLS 1.3 only: no resumed session, no older protocol, from either side."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestation import channel
from attestation.errors import KeyMismatch, MalformedAnswer
from tests.enclave_image.runtime.household import Isolate

from .cast import Cast, ForgingHost, where
from .impostor import Impostor
from .relay import Relay, Tape, hello_extensions

StartImpostor = Callable[..., Impostor]
StartRelay = Callable[..., Relay]

SERVER_NAME, SUPPORTED_VERSIONS = 0, 43  # RFC 8446 4.2
PRE_SHARED_KEY, EARLY_DATA, POST_HANDSHAKE_AUTH = 41, 42, 49


def _assert_full(tape: Tape) -> None:
    """Assert that a ClientHello offers a full handshake of TLS 1.3 and nothing else, and names nobody."""
    extensions = hello_extensions(tape.hello)
    assert not {SERVER_NAME, PRE_SHARED_KEY, EARLY_DATA, POST_HANDSHAKE_AUTH} & set(extensions)
    assert extensions[SUPPORTED_VERSIONS] == bytes([2, 3, 4])


# The client


def test_a_client_offers_no_resumption_to_a_server_that_gives_tickets(
    cast: Cast, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    """Even to the key that it has pinned: what makes the evidence here is as good as an isolate."""
    host = ForgingHost(cast.authority, bound=cast.policy())
    server = impostor(lambda nonce, spki: host.session(cast.policy(), nonce=nonce, public_key=spki), tickets=2)
    wire = relay(server)
    for _ in range(2):
        cast.send(wire.endpoint, pins)
    wire.settle()
    server.settle()
    assert len(wire.tapes) == 4
    for tape in wire.tapes:
        _assert_full(tape)
    assert [visit.reused for visit in server.visits] == [False] * 4
    assert [visit.certificate for visit in server.visits] == [None, cast.alice.certificate] * 2


def test_a_ticket_of_the_connection_for_evidence_does_not_stand_for_the_isolates_key(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    """A resumed session has no certificate to compare with the pin: the host's server would be let in by its ticket."""
    server = impostor(lambda nonce, _: channel.fetch_evidence(where(genuine), nonce).document, tickets=2)
    wire = relay(server, genuine, server)
    with pytest.raises(KeyMismatch):
        cast.send(wire.endpoint, pins)
    with pytest.raises(KeyMismatch):
        cast.send(wire.endpoint, pins)
    wire.settle()
    for tape in wire.tapes:
        _assert_full(tape)
    cast.assert_stopped_in_handshake(wire.tapes[2])
    cast.assert_learned_nothing(server, handshakes=1)


def test_a_client_refuses_a_server_of_an_older_tls(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    server = impostor(lambda *_: b"", version=ssl.TLSVersion.TLSv1_2)
    anonymous, pinned = relay(server), relay(genuine, server)
    for wire in (anonymous, pinned):
        with pytest.raises(MalformedAnswer, match=r"TLS 1\.3") as caught:
            cast.send(wire.endpoint, pins)
        assert (caught.value.slug, caught.value.exit_code) == ("malformed-answer", 1)
        wire.settle()
        cast.assert_stopped_in_handshake(wire.tapes[-1])
    cast.assert_learned_nothing(server, handshakes=0)


class DowngradingRelay(Relay):
    """Renames the extension of a ClientHello that says TLS 1.3, so that its reader takes it for one of TLS 1.2."""

    def _passed(self, data: bytes) -> bytes:
        mark = bytes([0, SUPPORTED_VERSIONS, 0, 3, 2, 3, 4])
        return data.replace(mark, b"\x7f\x7f" + mark[2:], 1) if data[5:6] == b"\1" else data


@pytest.mark.parametrize("target", ["isolate", "impostor"])
def test_a_relay_that_hides_tls_1_3_from_the_server(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, pins: Path, target: str
) -> None:
    server = impostor(lambda *_: b"", version=ssl.TLSVersion.TLSv1_2)
    with DowngradingRelay(server.endpoint if target == "impostor" else where(genuine)) as wire:
        with pytest.raises(MalformedAnswer, match=r"TLS 1\.3"):
            cast.send(wire.endpoint, pins)
        wire.settle()
        cast.assert_stopped_in_handshake(wire.tapes[0])
    cast.assert_learned_nothing(server, handshakes=0)


# The isolate


@contextmanager
def _connected(ran: Isolate, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Iterator[ssl.SSLSocket]:
    with where(ran).dial(timeout=20) as raw, context.wrap_socket(raw, session=session) as tls:
        yield tls


def _context(cast: Cast | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if cast is not None:
        context.load_cert_chain(cast.alice.certificate_file, cast.alice.key_file)
    return context


def _ask(tls: ssl.SSLSocket, target: str) -> bytes:
    tls.sendall(f"GET {target} HTTP/1.1\r\nHost: isolate\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while data := tls.recv(65536):
        answer += data
    return answer


def test_an_isolate_gives_no_ticket(cast: Cast, genuine: Isolate) -> None:
    for context in (_context(), _context(cast)):
        with _connected(genuine, context) as tls:
            _ask(tls, "/v1/policy")
            assert tls.session is None or not tls.session.has_ticket
            session = tls.session
        with _connected(genuine, context, session) as tls:
            assert not tls.session_reused
            _ask(tls, "/v1/policy")


def test_an_isolate_resumes_no_session_of_another_server(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, relay: StartRelay
) -> None:
    """The client offers a pre-shared key that a server of the host's gave it, as if it had been here before."""
    server, context = impostor(lambda *_: b"", tickets=1), _context(cast)
    with server.endpoint.dial(timeout=20) as raw, context.wrap_socket(raw) as tls:
        tls.sendall(b"GET /v1/policy HTTP/1.1\r\n\r\n")
        tls.recv(65536)
        session = tls.session
    assert session is not None
    assert session.has_ticket
    wire = relay(genuine)
    with wire.endpoint.dial(timeout=20) as raw, context.wrap_socket(raw, session=session) as tls:
        assert not tls.session_reused
        assert _ask(tls, "/v1/policy").startswith(b"HTTP/1.1 200")  # by the certificate, in a full handshake
    wire.settle()
    assert PRE_SHARED_KEY in hello_extensions(wire.tapes[0].hello)


def test_an_isolate_refuses_an_older_tls(genuine: Isolate) -> None:
    context = _context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"), _connected(genuine, context):
        pass
