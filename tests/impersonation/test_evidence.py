# SPDX-License-Identifier: MIT
"""Servers that answer with evidence which is not theirs, not fresh, not of this policy, or from nobody: all refused.

Each is asked by the client's whole way to send a file, over a relay; each is told its nonce and nothing more.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation import channel, nsm
from attestation.appraising import Trust
from attestation.binding import Binding, Purpose, policy_hash
from attestation.chain import aws_root
from attestation.errors import (
    BadSignature,
    DebugEvidence,
    KeyMismatch,
    MalformedEvidence,
    MeasurementMismatch,
    NonceMismatch,
    PolicyMismatch,
    UnsignedEvidence,
    UntrustedChain,
    VeracruzError,
)
from attestation.limits import NONCE_SIZE, POLICY_PCR
from host_shim.dev_pki import Authority, make_root
from tests.attestation.documents import IMAGE, OTHER_IMAGE, make_pcrs, make_qemu_document
from tests.attestation.isolate_server import ServerKey
from tests.enclave_image.runtime.household import Isolate

from .cast import Cast, ForgingHost, copied_key, image_member, where
from .impostor import Attest, Impostor
from .relay import Relay

StartImpostor = Callable[..., Impostor]
StartRelay = Callable[..., Relay]


Refuses = Callable[..., None]


@pytest.fixture
def refuses(cast: Cast, impostor: StartImpostor, relay: StartRelay, pins: Path) -> Refuses:
    """Try to send to an impostor that gives such documents; check why it failed, and what was learned by it."""

    def check(
        attest: Attest,
        error: type[VeracruzError],
        match: str,
        *,
        policy: bytes | None = None,
        trust: Trust | None = None,
    ) -> None:
        server = impostor(attest)
        wire = relay(server)
        with pytest.raises(error, match=match) as caught:
            cast.send(wire.endpoint, pins, policy=policy, trust=trust)
        assert type(caught.value) is error
        assert caught.value.exit_code == 1
        wire.settle()
        (tape,) = wire.tapes
        cast.assert_anonymous(tape)
        cast.assert_learned_nothing(server, handshakes=1)
        assert not pins.exists()

    return check


# The host's own evidence


def test_evidence_under_the_hosts_own_root(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(make_root(datetime.now(UTC)), bound=cast.policy())
    refuses(_session(host, cast), UntrustedChain, "root that was not chosen")


def test_evidence_under_a_copy_of_the_true_root_and_the_hosts_own_key(cast: Cast, refuses: Refuses) -> None:
    own = make_root(datetime.now(UTC))
    host = ForgingHost(Authority(cast.authority.certificate, own.key), bound=cast.policy())
    refuses(_session(host, cast), UntrustedChain, "is not signed by the next one")


def test_a_genuine_document_of_another_key_edited_to_name_the_hosts(
    cast: Cast, genuine: Isolate, refuses: Refuses
) -> None:
    def attest(nonce: bytes, spki: bytes) -> bytes:
        relayed = channel.fetch_evidence(where(genuine), nonce)
        assert relayed.document.count(relayed.public_key) == 1
        return relayed.document.replace(relayed.public_key, spki)

    refuses(attest, BadSignature, "signature")


def test_qemus_unsigned_document(cast: Cast, refuses: Refuses) -> None:
    policy = cast.policy()

    def attest(nonce: bytes, spki: bytes) -> bytes:
        user_data = Binding(Purpose.SESSION, policy_hash(policy), None).encode()
        pcrs = make_pcrs(policy_hash=policy_hash(policy))
        return make_qemu_document(nonce=nonce, public_key=spki, pcrs=pcrs, user_data=user_data)

    refuses(attest, UnsignedEvidence, "not signed")


def test_bytes_that_are_no_document(refuses: Refuses) -> None:
    refuses(lambda nonce, spki: nonce + spki, MalformedEvidence, "COSE_Sign1")


# Another's evidence


def test_a_genuine_document_relayed_beside_the_hosts_own_key(cast: Cast, genuine: Isolate, refuses: Refuses) -> None:
    refuses(
        lambda nonce, _: channel.fetch_evidence(where(genuine), nonce).document, KeyMismatch, "names another public key"
    )


def test_a_replayed_document(cast: Cast, genuine: Isolate, refuses: Refuses) -> None:
    old = channel.fetch_evidence(where(genuine), secrets.token_bytes(NONCE_SIZE)).document
    refuses(lambda *_: old, NonceMismatch, "another nonce")


def test_a_replayed_document_is_refused_even_beside_its_own_key(cast: Cast, refuses: Refuses) -> None:
    """What an isolate with a cache would give: the right key, the right policy, yesterday's nonce."""
    host = ForgingHost(cast.authority, bound=cast.policy())
    old = secrets.token_bytes(NONCE_SIZE)
    refuses(lambda _, spki: host.session(cast.policy(), nonce=old, public_key=spki), NonceMismatch, "another nonce")


def test_a_copied_certificate_without_its_key(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    """The server shows the isolate's own certificate, and cannot sign with its key: not even the request reaches it."""
    true = channel.fetch_evidence(where(genuine), secrets.token_bytes(NONCE_SIZE))
    server = impostor(lambda *_: true.document, key=copied_key(true.certificate))
    wire = relay(server)
    with pytest.raises(KeyMismatch, match="only a copy of its certificate") as caught:
        cast.send(wire.endpoint, pins)
    assert (caught.value.slug, caught.value.exit_code) == ("key-mismatch", 1)
    wire.settle()
    (tape,) = wire.tapes
    cast.assert_stopped_in_handshake(tape)
    cast.assert_learned_nothing(server, handshakes=0)


# Another policy


def test_another_isolate_with_another_policy(cast: Cast, relay: StartRelay, pins: Path) -> None:
    """A true isolate of the true image, whose policy differs in one word."""
    with cast.isolate(cast.policy(clock=True)) as other:
        wire = relay(other)
        with pytest.raises(PolicyMismatch, match="PCR16 binds another policy") as caught:
            cast.send(wire.endpoint, pins)
        assert (caught.value.slug, caught.value.exit_code) == ("policy-mismatch", 1)
        wire.settle()
        (tape,) = wire.tapes
        cast.assert_anonymous(tape)


def test_an_isolate_that_took_no_policy(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(cast.authority, bound=None)
    refuses(_session(host, cast), PolicyMismatch, "PCR16 is not locked")


def test_a_policy_register_that_is_set_and_not_locked(cast: Cast, refuses: Refuses) -> None:
    """Whoever can still extend it can make it anything later; a document lists locked registers alone."""
    host = ForgingHost(cast.authority, bound=None)
    host.ask(nsm.ExtendPcr(POLICY_PCR, policy_hash(cast.policy())))
    refuses(_session(host, cast), PolicyMismatch, "PCR16 is not locked")


def test_a_policy_register_of_another_policy_beside_the_right_user_data(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(cast.authority, bound=cast.policy(clock=True))
    refuses(_session(host, cast), PolicyMismatch, "PCR16 binds another policy")


def test_a_policy_register_that_was_extended_twice(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(cast.authority, bound=None)
    host.ask(nsm.ExtendPcr(POLICY_PCR, policy_hash(cast.policy(clock=True))))
    host.ask(nsm.ExtendPcr(POLICY_PCR, policy_hash(cast.policy())))
    host.ask(nsm.LockPcr(POLICY_PCR))
    refuses(_session(host, cast), PolicyMismatch, "PCR16 binds another policy")


def test_user_data_of_another_policy_beside_the_right_policy_register(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(cast.authority, bound=cast.policy())
    other = cast.policy(clock=True)
    refuses(
        lambda nonce, spki: host.session(other, nonce=nonce, public_key=spki), PolicyMismatch, "user_data binds another"
    )


def test_an_isolate_that_serves_another_policy_than_its_evidence_names(
    cast: Cast, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    """The last check before a file is sent, of what holds the attested key: it gets the certificate, and no more."""
    policy = cast.policy(clock=True)
    host = ForgingHost(cast.authority, bound=policy)
    server = impostor(lambda nonce, spki: host.session(policy, nonce=nonce, public_key=spki))  # serves without a clock
    wire = relay(server)
    with pytest.raises(PolicyMismatch, match="serves another policy") as caught:
        cast.send(wire.endpoint, pins, policy=policy)
    assert caught.value.slug == "policy-mismatch"
    server.settle()
    assert bytes(server.visits[1].received) == b"GET /v1/policy HTTP/1.1\r\nHost: isolate\r\n\r\n"
    assert not pins.exists()


# Another purpose


@pytest.mark.parametrize(
    ("purpose", "body"), [(Purpose.RECEIPT, bytes(32)), (Purpose.RECIPIENT, None)], ids=["receipt", "recipient"]
)
def test_a_document_of_another_purpose_with_the_right_nonce_and_key(
    cast: Cast, refuses: Refuses, purpose: Purpose, body: bytes | None
) -> None:
    host = ForgingHost(cast.authority, bound=cast.policy())
    user_data = Binding(purpose, policy_hash(cast.policy()), body).encode()
    refuses(
        lambda nonce, spki: host.document(user_data, nonce=nonce, public_key=spki), PolicyMismatch, "another purpose"
    )


@pytest.mark.parametrize(
    "user_data",
    [b"", b"session", Binding(Purpose.SESSION, bytes(32), None).encode()[:-1]],
    ids=["empty", "no CBOR list", "cut short"],
)
def test_a_document_of_no_purpose(cast: Cast, refuses: Refuses, user_data: bytes) -> None:
    host = ForgingHost(cast.authority, bound=cast.policy())
    refuses(lambda nonce, spki: host.document(user_data, nonce=nonce, public_key=spki), PolicyMismatch, "user_data")


def test_a_document_without_a_nonce(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(cast.authority, bound=cast.policy())
    user_data = Binding(Purpose.SESSION, policy_hash(cast.policy()), None).encode()
    refuses(lambda _, spki: host.document(user_data, nonce=None, public_key=spki), NonceMismatch, "another nonce")


# What the policy alone names


def test_a_root_that_the_policy_alone_names(cast: Cast, refuses: Refuses) -> None:
    """The policy's writer is the host, and names the host's root; Alice trusts AWS's, as by default."""
    own = make_root(datetime.now(UTC))
    fingerprint = replace(cast, authority=own).root.fingerprint
    policy = cast.policy(root=fingerprint.hex())
    host = ForgingHost(own, bound=policy)
    refuses(
        lambda nonce, spki: host.session(policy, nonce=nonce, public_key=spki), UntrustedChain,
        "root that was not chosen", policy=policy, trust=Trust(aws_root(), (IMAGE,)),
    )  # fmt: skip


def test_a_root_that_the_policy_does_not_name(cast: Cast, refuses: Refuses) -> None:
    """The other way round: the policy narrows what Alice's own choice would take."""
    policy = cast.policy(root="aws")
    host = ForgingHost(cast.authority, bound=policy)
    refuses(
        lambda nonce, spki: host.session(policy, nonce=nonce, public_key=spki), UntrustedChain, "demands another root",
        policy=policy,
    )  # fmt: skip


def test_an_image_that_the_policy_alone_names(cast: Cast, refuses: Refuses) -> None:
    policy = cast.policy(images=[image_member(OTHER_IMAGE)])
    host = ForgingHost(cast.authority, image=OTHER_IMAGE, bound=policy)
    refuses(
        lambda nonce, spki: host.session(policy, nonce=nonce, public_key=spki), MeasurementMismatch,
        "no image that your measurements name", policy=policy,
    )  # fmt: skip


def test_an_image_that_the_policy_names_beside_the_one_that_was_rebuilt(cast: Cast, refuses: Refuses) -> None:
    policy = cast.policy(images=[image_member(IMAGE), image_member(OTHER_IMAGE)])
    host = ForgingHost(cast.authority, image=OTHER_IMAGE, bound=policy)
    refuses(
        lambda nonce, spki: host.session(policy, nonce=nonce, public_key=spki), MeasurementMismatch, "another image",
        policy=policy,
    )  # fmt: skip


def test_an_image_that_was_rebuilt_and_that_the_policy_does_not_name(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(cast.authority, image=OTHER_IMAGE, bound=cast.policy())
    refuses(_session(host, cast), MeasurementMismatch, "another image", trust=Trust(cast.root, (IMAGE, OTHER_IMAGE)))


@pytest.mark.parametrize("register", [0, 1, 2])
def test_an_image_that_shares_two_registers_of_three(cast: Cast, refuses: Refuses, register: int) -> None:
    """PCR1 or PCR2 alone proves nothing: they are compared together."""
    mixed = replace(IMAGE, **{f"pcr{register}": b"\7" * 48})
    host = ForgingHost(cast.authority, image=mixed, bound=cast.policy())
    refuses(_session(host, cast), MeasurementMismatch, f"PCR{register} differs")


# Debug mode


def test_debug_evidence(cast: Cast, refuses: Refuses) -> None:
    host = ForgingHost(cast.authority, image=None, bound=cast.policy())
    refuses(_session(host, cast), DebugEvidence, "debug mode")


@pytest.mark.parametrize("register", [0, 1, 2])
def test_evidence_with_one_zero_register(cast: Cast, refuses: Refuses, register: int) -> None:
    host = ForgingHost(cast.authority, image=replace(IMAGE, **{f"pcr{register}": bytes(48)}), bound=cast.policy())
    refuses(_session(host, cast), DebugEvidence, "debug mode")


def test_debug_evidence_where_debug_is_allowed_is_still_held_to_its_key(cast: Cast, refuses: Refuses) -> None:
    """--allow-debug gives up the image alone: nonce, policy and key are compared as ever."""
    host = ForgingHost(cast.authority, image=None, bound=cast.policy())
    refuses(
        lambda nonce, _: host.session(cast.policy(), nonce=nonce, public_key=ServerKey.new().spki), KeyMismatch,
        "another public key", trust=Trust(cast.root, (), allow_debug=True),
    )  # fmt: skip


def _session(host: ForgingHost, cast: Cast) -> Attest:
    return lambda nonce, spki: host.session(cast.policy(), nonce=nonce, public_key=spki)
