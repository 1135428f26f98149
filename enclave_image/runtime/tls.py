# SPDX-License-Identifier: MIT
"""TLS 1.3 that ends inside the isolate: full handshakes only, a peer that is exactly one listed certificate or none.

OpenSSL's chain check alone is not enough: a certificate that a listed one issued would pass it. So after the handshake
the DER must equal a listed one and the chain be of length one.
"""

from __future__ import annotations

import socket
import ssl

from attestation.policy import Participant, Policy

from .errors import Hangup
from .identity import Identity

HANDSHAKE_TIMEOUT = 10.0  # seconds, the whole handshake


def make_context(identity: Identity, policy: Policy) -> ssl.SSLContext:
    """Return the server's one context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # no resumption: the default of two tickets resumes
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.load_verify_locations(cadata=b"".join(party.certificate for party in policy.participants))
    identity.load_into(context)
    return context


def wrap(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return the server's end of a connection whose handshake has not begun; raise OSError or ValueError."""
    sock.settimeout(HANDSHAKE_TIMEOUT)
    return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True)


def shake_hands(tls: ssl.SSLSocket) -> None:
    """Run the handshake under its deadline; raise Hangup where it fails."""
    try:
        tls.do_handshake()
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise Hangup from error


def identify(tls: ssl.SSLSocket, policy: Policy) -> Participant | None:
    """Return the participant at the other end, None for an anonymous one; raise Hangup for anybody else."""
    if tls.version() != "TLSv1.3" or tls.session_reused:
        raise Hangup
    der = tls.getpeercert(binary_form=True)
    if der is None:  # asked for its chain then, CPython trips over the missing leaf
        return None
    participant = policy.participant_of(der)
    if participant is None or _peer_chain(tls) != [der]:
        raise Hangup
    return participant


def _peer_chain(tls: ssl.SSLSocket) -> list[bytes]:
    """Return the certificates that the peer sent, as DER (public from Python 3.13, before that on `_sslobj`)."""
    if hasattr(tls, "get_unverified_chain"):
        return [bytes(entry) for entry in tls.get_unverified_chain()]
    inner = tls._sslobj  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(entry.public_bytes()) for entry in inner.get_unverified_chain() or ()]
