# SPDX-License-Identifier: MIT
"""Attested TLS: the two kinds of connection to an isolate, both TLS 1.3 with full handshakes only.

The anonymous one believes nobody and carries nothing secret: it fetches evidence, and the key that signed its handshake
is what that evidence must name (point 7 of the trust argument). The pinned one has the attested certificate as its only
anchor, so a server that cannot sign with that key gets a ClientHello and an alert: in TLS 1.3 a client's certificate is
sent after the server's proof (RFC 8446 4.4). Comparing certificates after the handshake would be too late.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from cryptography import x509

from .certificates import check_certificate, key_bytes
from .endpoint import Endpoint
from .errors import KeyMismatch, MalformedAnswer, MalformedInput, Unreachable, VeracruzError
from .http_connection import ANSWER_TIMEOUT, Connection
from .identity import Identity
from .limits import MAX_DOCUMENT, NONCE_SIZE
from .panics import reraise_interrupt

CONNECT_TIMEOUT = 10.0  # seconds for the connection, and as much again for the handshake


@dataclass(frozen=True, slots=True)
class Evidence:
    """A document, not yet verified, and what the server that gave it holds: the key that signed the handshake."""

    document: bytes = field(repr=False)
    nonce: bytes
    public_key: bytes  # SPKI, DER
    certificate: bytes = field(repr=False)  # DER


def fetch_evidence(endpoint: Endpoint, nonce: bytes, *, timeout: float = ANSWER_TIMEOUT) -> Evidence:
    """Fetch a document that answers `nonce`, on a connection of its own and without a certificate of ours.

    Raises Unreachable, MalformedAnswer, ApiRefusal, and KeyMismatch for a certificate that no isolate has.
    """
    if len(nonce) != NONCE_SIZE:
        raise MalformedInput("a nonce has another length", expected=f"{NONCE_SIZE} bytes", actual=len(nonce))
    context = _new_context(ssl.CERT_NONE)  # whoever answers: the evidence says whether this key is an isolate's
    with _open(endpoint, context, timeout=timeout, identified=False) as connection:
        certificate = connection.certificate
        target = f"/v1/attestation?nonce={nonce.hex()}"
        document = connection.request("GET", target, limit=MAX_DOCUMENT, timeout=timeout).body
    return Evidence(document, nonce, _isolate_key(certificate), certificate)


def connect(
    endpoint: Endpoint, certificate: bytes, identity: Identity, *, timeout: float = CONNECT_TIMEOUT
) -> Connection:
    """Open a connection as `identity` to the one server that holds the key of `certificate` (DER, attested).

    Raises KeyMismatch for any other server, which has then seen no certificate of ours.
    """
    context = _new_context(ssl.CERT_REQUIRED)
    try:
        context.load_verify_locations(cadata=certificate)  # the only anchor: no system store was loaded
        context.load_cert_chain(identity.certificate_file, identity.key_file, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise MalformedInput(
            f"TLS cannot use the identity {identity.certificate_file}",
            expected="a certificate and its key",
            actual=error,
        ) from error
    connection = _open(endpoint, context, timeout=timeout, identified=True)
    if connection.certificate != certificate:  # cannot be, with this anchor: self-signed and CA:FALSE
        connection.close()
        raise KeyMismatch(
            "the server's certificate is not the attested one", expected=certificate, actual=connection.certificate
        )
    return connection


def _new_context(verify_mode: ssl.VerifyMode) -> ssl.SSLContext:
    # Not create_default_context: it loads the system's authorities and writes secrets to SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # an isolate is its key; its host may give it any name
    context.verify_mode = verify_mode
    # Set, not added to: an anchor that signed itself needs no partial chain, and no default of a later Python.
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
    context.post_handshake_auth = False
    return context


def _open(endpoint: Endpoint, context: ssl.SSLContext, *, timeout: float, identified: bool) -> Connection:
    wait = min(timeout, CONNECT_TIMEOUT)
    sock = endpoint.dial(timeout=wait)
    sock.settimeout(wait)  # OpenSSL's handshake as a whole, not each read of it (CPython's _ssl keeps one deadline)
    try:
        tls = context.wrap_socket(sock)
    except OSError as error:  # ssl.SSLError and timeouts are OSErrors
        sock.close()
        raise _handshake_error(endpoint, error) from error
    if tls.version() != "TLSv1.3" or tls.session_reused:
        tls.close()
        raise MalformedAnswer(f"{endpoint} did not make a full handshake of TLS 1.3", actual=tls.version())
    return Connection(tls, peer=str(endpoint), identified=identified)


def _handshake_error(endpoint: Endpoint, error: OSError) -> VeracruzError:
    reason = str(getattr(error, "reason", None) or "")
    if isinstance(error, ssl.SSLCertVerificationError) or reason in ("BAD_SIGNATURE", "WRONG_SIGNATURE_TYPE"):
        return KeyMismatch(
            f"{endpoint} is not the attested isolate: the server holds another key, or only a copy of its certificate",
            expected="the key of the attested certificate",
            actual=reason,
            hint="the host put another server in between, or started the isolate anew: veracruz attest fetch",
        )
    if isinstance(error, TimeoutError):
        return Unreachable(f"{endpoint} has not finished the TLS handshake in time")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):  # CPython has two for a bare end
        return Unreachable(f"{endpoint} cut the connection in the TLS handshake", actual=reason or error)
    return MalformedAnswer(f"{endpoint} does not speak TLS 1.3 as an isolate does", actual=reason or error)


def _isolate_key(certificate: bytes) -> bytes:
    """Return the SPKI of an isolate's certificate; raise KeyMismatch for one that could vouch for others."""
    try:
        check_certificate(x509.load_der_x509_certificate(certificate), client=False)
        return key_bytes(certificate)
    except MalformedInput as error:
        raise KeyMismatch(f"the server's {error.what}", expected=error.expected, actual=error.actual) from error
    except BaseException as error:  # the library raises six types on hostile certificates
        reraise_interrupt(error)
        raise KeyMismatch(
            "the server's certificate is not readable", expected="X.509 in DER", actual=type(error).__name__
        ) from error


def _no_passphrase() -> str:
    return ""  # never ask the terminal
