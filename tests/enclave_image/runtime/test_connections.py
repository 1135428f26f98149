# SPDX-License-Identifier: MIT
"""Who gets in: exactly the certificates of the policy, and strangers for evidence alone."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from .household import Isolate, Party, isolate, make_policy

EVIDENCE = f"/v1/attestation?nonce={'ab' * 32}"


@pytest.fixture(scope="module")
def house(alice: Party, bob: Party) -> Iterator[Isolate]:
    with isolate(make_policy(alice, bob)) as ran:
        yield ran


def refused(house: Isolate, party: Party) -> None:
    """Assert that a certificate gets no answer at all (TLS 1.3: the client's handshake ends before it is refused)."""
    with pytest.raises(OSError), house.connect(party) as client:  # noqa: PT011
        client.ask("GET", "/v1/policy")


def test_a_listed_certificate_reads_the_policys_exact_bytes(house: Isolate, alice: Party) -> None:
    with house.connect(alice) as client:
        assert client.ask("GET", "/v1/policy").body == house.host.policy


def test_a_certificate_that_is_not_listed_is_refused(house: Isolate, mallory: Party) -> None:
    refused(house, mallory)


def test_a_certificate_that_a_listed_one_issued_is_refused(house: Isolate, directory: Path, alice: Party) -> None:
    refused(house, Party(directory, "carol", issuer=alice))


def test_a_listed_certificate_with_company_is_refused(
    house: Isolate, directory: Path, alice: Party, mallory: Party
) -> None:
    company = Party(directory, "company")
    company.file.write_text(alice.file.read_text() + mallory.pem)
    refused(house, company)


def test_a_listed_certificate_without_its_key_is_refused(house: Isolate, directory: Path, alice: Party) -> None:
    thief = Party(directory, "thief")
    private, _, _ = thief.file.read_text().partition("-----BEGIN CERTIFICATE")
    thief.file.write_text(private + alice.pem)
    with pytest.raises(ssl.SSLError):
        house.connect(thief)


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/v1/policy"), ("GET", "/v1/files/x"), ("POST", "/v1/shutdown"), ("POST", EVIDENCE), ("HEAD", EVIDENCE)],
)
def test_a_stranger_gets_nothing_but_evidence(house: Isolate, method: str, target: str) -> None:
    with house.connect(None) as client:
        answer = client.ask(method, target)
    assert answer.status == 401
    if method != "HEAD":
        assert answer.slug == "certificate-needed"


@pytest.mark.parametrize("nonce", ["", "ab", "zz" * 32, "ab" * 33, "ab" * 32 + "&x=1"])
def test_a_nonce_is_32_bytes_of_hex(house: Isolate, nonce: str) -> None:
    with house.connect(None) as client:
        assert client.ask("GET", f"/v1/attestation?nonce={nonce}").slug == "malformed-request"


def test_a_stranger_gets_one_document_a_connection(house: Isolate) -> None:
    with house.connect(None) as client:
        two = f"GET {EVIDENCE} HTTP/1.1\r\nHost: isolate\r\n\r\n".encode() * 2
        client.tls.sendall(two)
        answer = b""
        while part := client.tls.recv(4096):
            answer += part
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1") == 1


def test_a_document_is_never_a_cached_one(house: Isolate) -> None:
    assert house.evidence(bytes(32)) != house.evidence(bytes(32))


def test_a_participant_keeps_the_connection(house: Isolate, alice: Party) -> None:
    with house.connect(alice) as client:
        assert [client.ask("GET", EVIDENCE).status for _ in range(3)] == [200, 200, 200]


def test_gives_no_tickets_and_resumes_nothing(house: Isolate, alice: Party) -> None:
    with house.connect(alice) as client:
        client.ask("GET", "/v1/policy")
        assert client.tls.session is None or not client.tls.session.has_ticket
        assert not client.tls.session_reused


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n\r\n", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", b"GET /\r\n\r\n", b"\x00" * 100,
        b"GET /v1/policy HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/policy HTTP/1.1\r\nHost: a\r\nX: b\r\nX: c\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PUT /v1/files/x HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/files/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-Content-SHA256: " + b"0" * 64
        + b"\r\n\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused_and_hurts_nobody(house: Isolate, alice: Party, raw: bytes) -> None:
    with house.connect(alice) as client:
        client.tls.sendall(raw)
        answer = b""
        while part := client.tls.recv(4096):
            answer += part
            if b"malformed-request" in answer:
                break
    assert b" 400 " in answer
    with house.connect(alice) as client:
        assert client.ask("GET", "/v1/policy").status == 200


@pytest.mark.parametrize(
    "target", ["/", "/v1", "/v1/nothing", "/v2/policy", "/v1/jobs/" + "0" * 32, "/v1/jobs/x", "/v1/policy?x=1"]
)
def test_what_there_is_not_is_not_available(house: Isolate, alice: Party, target: str) -> None:
    with house.connect(alice) as client:
        assert client.ask("GET", target).slug == "not-available"


def test_a_budget_bounds_what_strangers_cost(alice: Party) -> None:
    with isolate(make_policy(alice)) as ran:
        statuses = []
        for _ in range(60):
            with ran.connect(None) as client:
                statuses.append(client.ask("GET", EVIDENCE).status)
            if statuses[-1] == 429:
                break
        assert 429 in statuses
        assert statuses.count(200) >= 32
        with ran.connect(alice) as client:
            assert client.ask("GET", EVIDENCE).status == 200


def test_strangers_who_hold_connections_keep_no_participant_out(alice: Party) -> None:
    with isolate(make_policy(alice)) as ran, ran.connect(alice) as early, contextlib.ExitStack() as held:
        for _ in range(30):
            held.enter_context(ran.connect(None))
        for _ in range(30):  # and some who do not even begin the handshake
            held.enter_context(ran.knock())
        assert early.ask("GET", "/v1/policy").status == 200
        with ran.connect(alice) as late:
            assert late.ask("GET", "/v1/policy").status == 200
        with ran.connect(None) as stranger:
            assert stranger.ask("GET", EVIDENCE).status == 200


def test_json_bodies_are_strict(house: Isolate, alice: Party) -> None:
    with house.connect(alice) as client:
        for body in (b"", b"[]", b"{", b'{"program": 1}', b'{"program": "/a", "program": "/a"}', b'{"x": "/a"}',
                     json.dumps({"program": "/a", "inputs": {"/b": "zz"}}).encode()):  # fmt: skip
            assert client.ask("POST", "/v1/jobs", body).slug == "malformed-request"
