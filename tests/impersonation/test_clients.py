# SPDX-License-Identifier: MIT
"""Clients that are nobody in the policy, however near they come: the isolate answers none of them, and no stranger.

They come with the project's own client, which does not look whether its certificate is any good, over a relay.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from attestation import channel
from attestation.errors import CertificateRefused, NotAvailable
from attestation.identity import Identity, write_identity
from attestation.limits import NONCE_SIZE
from tests.attestation.isolate_server import ServerKey, issue
from tests.enclave_image.runtime.household import Isolate

from .cast import CANARY, PATH, Cast, copied_key, where
from .relay import Relay, Way

StartRelay = Callable[..., Relay]

BOBS_PATH = "/input/bob/ledger.csv"


def _identity(folder: Path, key: bytes, *chain: bytes) -> Identity:
    """Write an identity as files, whatever they hold; the first certificate is the leaf."""
    folder.mkdir(exist_ok=True)
    (folder / "it.key").write_bytes(key)
    (folder / "it.key").chmod(0o600)
    (folder / "it.pem").write_bytes(b"".join(chain))
    leaf = ssl.PEM_cert_to_DER_cert(chain[0].decode())
    return Identity(leaf, folder / "it.pem", folder / "it.key")


def _key(identity: Identity) -> bytes:
    return identity.key_file.read_bytes()


def _pem(identity: Identity) -> bytes:
    return identity.certificate_file.read_bytes()


def _issued_by_alice(cast: Cast, folder: Path) -> Identity:
    return _identity(folder, *issue("bob", _key(cast.alice), _pem(cast.alice)))


def _issued_by_alice_with_her_own_behind_it(cast: Cast, folder: Path) -> Identity:
    key, certificate = issue("bob", _key(cast.alice), _pem(cast.alice))
    return _identity(folder, key, certificate, _pem(cast.alice))


def _bob_with_company(cast: Cast, folder: Path) -> Identity:
    return _identity(folder, _key(cast.bob), _pem(cast.bob), _pem(cast.mallory))


def _bob_with_another_participant_behind_him(cast: Cast, folder: Path) -> Identity:
    return _identity(folder, _key(cast.bob), _pem(cast.bob), _pem(cast.alice))


def _bob_twice(cast: Cast, folder: Path) -> Identity:
    return _identity(folder, _key(cast.bob), _pem(cast.bob), _pem(cast.bob))


def _mallory_with_bob_behind(cast: Cast, folder: Path) -> Identity:
    return _identity(folder, _key(cast.mallory), _pem(cast.mallory), _pem(cast.bob))


def _unlisted(cast: Cast, folder: Path) -> Identity:
    return cast.mallory


def _another_of_bobs_name(cast: Cast, folder: Path) -> Identity:
    return write_identity("bob", folder)


def _bobs_certificate_with_another_key(cast: Cast, folder: Path) -> Identity:
    copy = ServerKey(_key(cast.bob), _pem(cast.bob)).copy()
    return _identity(folder, copy.key_pem, copy.certificate_pem)


def _bobs_key_in_another_certificate(cast: Cast, folder: Path) -> Identity:
    """Bob may make new certificates of his key; the policy names one of them."""
    true = x509.load_pem_x509_certificate(_pem(cast.bob))
    key = load_pem_private_key(_key(cast.bob), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(true.subject)
        .issuer_name(true.subject)
        .public_key(key.public_key())
        .serial_number(true.serial_number)
        .not_valid_before(true.not_valid_before_utc)
        .not_valid_after(true.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return _identity(folder, _key(cast.bob), builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


@pytest.mark.parametrize(
    "make",
    [
        _issued_by_alice, _issued_by_alice_with_her_own_behind_it, _bob_with_company,
        _bob_with_another_participant_behind_him, _bob_twice, _mallory_with_bob_behind, _unlisted,
        _another_of_bobs_name, _bobs_certificate_with_another_key, _bobs_key_in_another_certificate,
    ],
    ids=lambda make: make.__name__.strip("_"),
)  # fmt: skip
def test_is_refused_before_any_answer(
    cast: Cast, genuine: Isolate, relay: StartRelay, pins: Path, tmp_path: Path, make: Callable[[Cast, Path], Identity]
) -> None:
    wire = relay(genuine)
    with pytest.raises(CertificateRefused) as caught:
        cast.send(wire.endpoint, pins, identity=make(cast, tmp_path / "forged"))
    assert (caught.value.slug, caught.value.exit_code) == ("certificate-refused", 1)
    wire.settle()
    anonymous, identified = wire.tapes
    cast.assert_anonymous(anonymous)
    cast.assert_unseen(identified)
    handshake = 7  # records: ServerHello to Finished
    said = [len(record.body) for record in identified.records(Way.TO_CLIENT)[handshake:]]
    assert sum(said) <= 2 * 19  # alerts; no answer
    assert not pins.exists()


def test_bob_is_bob_nevertheless(cast: Cast, genuine: Isolate, pins: Path) -> None:
    with cast.open(where(genuine), pins, identity=cast.bob) as session, (cast.folder / "ledger.csv").open("rb") as file:
        assert session.put(BOBS_PATH, file).path == BOBS_PATH
        with pytest.raises(NotAvailable), (cast.folder / "ledger.csv").open("rb") as again:
            session.put(PATH, again)


# Strangers


@contextmanager
def _stranger(wire: Relay) -> Iterator[ssl.SSLSocket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with wire.endpoint.dial(timeout=20) as raw, context.wrap_socket(raw) as tls:
        yield tls


def _all(tls: ssl.SSLSocket) -> bytes:
    answer = b""
    while data := tls.recv(65536):
        answer += data
    return answer


def _evidence_request() -> bytes:
    return f"GET /v1/attestation?nonce={secrets.token_hex(NONCE_SIZE)} HTTP/1.1\r\nHost: isolate\r\n\r\n".encode()


ROUTES = [
    "GET /v1/policy", "PUT /v1/files/input/alice/ledger.csv", "PATCH /v1/files/input/alice/ledger.csv",
    "GET /v1/files/input/alice/ledger.csv", "HEAD /v1/files/input/alice/ledger.csv",
    "DELETE /v1/files/input/alice/ledger.csv", "GET /v1/files/input/alice/", "GET /v1/files/", "POST /v1/jobs",
    f"GET /v1/jobs/{'0' * 32}", f"DELETE /v1/jobs/{'0' * 32}", f"GET /v1/jobs/{'0' * 32}/receipt", "GET /v1/ledger",
    "POST /v1/shutdown", "GET /", "OPTIONS *", "TRACE /v1/policy", f"HEAD /v1/attestation?nonce={'0' * 64}",
    f"POST /v1/attestation?nonce={'0' * 64}", f"GET /v1/attestation/?nonce={'0' * 64}",
    f"GET /v1//attestation?nonce={'0' * 64}", f"GET http://isolate/v1/attestation?nonce={'0' * 64}",
]  # fmt: skip


@pytest.fixture(scope="module")
def stored(cast: Cast, genuine: Isolate, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Something of Alice's is in the isolate."""
    cast.send(where(genuine), tmp_path_factory.mktemp("pins"))


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("route", ROUTES)
def test_a_stranger_gets_no_other_route(cast: Cast, genuine: Isolate, relay: StartRelay, route: str) -> None:
    with _stranger(relay(genuine)) as tls:
        tls.sendall(f"{route} HTTP/1.1\r\nHost: isolate\r\nContent-Length: 0\r\n\r\n".encode() + _evidence_request())
        answer = _all(tls)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.count(b"HTTP/1.1 ") == 1  # and the connection is over
    assert CANARY not in answer
    if not route.startswith("HEAD"):
        assert b'"slug": "certificate-needed"' in answer


def test_a_stranger_gets_one_document_a_connection(genuine: Isolate, relay: StartRelay) -> None:
    with _stranger(relay(genuine)) as tls:
        tls.sendall(_evidence_request() + _evidence_request() + b"GET /v1/policy HTTP/1.1\r\nHost: isolate\r\n\r\n")
        answer = _all(tls)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answer


def test_the_isolates_own_certificate_is_no_participants(
    cast: Cast, genuine: Isolate, relay: StartRelay, tmp_path: Path
) -> None:
    """What the host copied from the isolate's side gives it nothing on the participants'."""
    true = channel.fetch_evidence(where(genuine), secrets.token_bytes(NONCE_SIZE)).certificate
    copy = copied_key(true)
    identity = _identity(tmp_path / "isolate", copy.key_pem, copy.certificate_pem)
    wire = relay(genuine)
    with channel.connect(wire.endpoint, true, identity) as connection, pytest.raises(CertificateRefused):
        connection.request("GET", "/v1/policy")
