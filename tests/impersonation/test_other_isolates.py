# SPDX-License-Identifier: MIT
"""Isolates that pass all eight points and are not the one that Alice used, and servers that are switched under her.

Evidence cannot tell two isolates of one image and policy apart; the pin does. From one connection to the
next it is the key that does.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation import channel
from attestation.errors import IsolateChanged, KeyMismatch, NotAvailable, PolicyMismatch, UntrustedChain
from attestation.limits import NONCE_SIZE
from attestation.pins import PinStore
from attestation.policy import parse_policy
from host_shim.dev_pki import make_root
from tests.attestation.isolate_server import ServerKey, issue
from tests.enclave_image.runtime.household import Isolate

from .cast import PATH, Cast, ForgingHost, copied_key, where
from .impostor import Impostor
from .relay import Relay

StartImpostor = Callable[..., Impostor]
StartRelay = Callable[..., Relay]


def _pinned(cast: Cast, pins: Path) -> bytes:
    pin = PinStore(pins).find(parse_policy(cast.policy()).hash)
    assert pin is not None
    return pin.certificate


# Another isolate under the same policy


def test_a_clone_is_refused_once_an_isolate_is_pinned(
    cast: Cast, genuine: Isolate, clone: Isolate, relay: StartRelay, pins: Path
) -> None:
    cast.send(where(genuine), pins)
    wire = relay(clone)
    before = _pinned(cast, pins)
    with pytest.raises(IsolateChanged) as caught:
        cast.send(wire.endpoint, pins)
    assert (caught.value.slug, caught.value.exit_code) == ("isolate-changed", 1)
    wire.settle()
    (tape,) = wire.tapes
    cast.assert_anonymous(tape)
    assert _pinned(cast, pins) == before


def test_a_clone_that_was_chosen_aloud_takes_the_pin(cast: Cast, genuine: Isolate, clone: Isolate, pins: Path) -> None:
    cast.send(where(genuine), pins)
    cast.send(where(clone), pins, new_isolate=True)
    with pytest.raises(IsolateChanged):
        cast.send(where(genuine), pins)
    cast.send(where(clone), pins)


def test_giving_up_a_pin_gives_up_no_check(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    cast.send(where(genuine), pins)
    before = _pinned(cast, pins)
    server = impostor(lambda nonce, _: channel.fetch_evidence(where(genuine), nonce).document)
    wire = relay(server)
    with pytest.raises(KeyMismatch):
        cast.send(wire.endpoint, pins, new_isolate=True)
    wire.settle()
    cast.assert_anonymous(wire.tapes[0])
    cast.assert_learned_nothing(server, handshakes=1)
    assert _pinned(cast, pins) == before


def test_a_pin_is_not_given_up_for_an_isolate_that_could_not_be_reached(
    cast: Cast, genuine: Isolate, clone: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    """Evidence of the clone, then another server: a pin changes only for who has answered with its key."""
    cast.send(where(genuine), pins)
    before = _pinned(cast, pins)
    server = impostor(lambda *_: b"")
    wire = relay(clone, server)
    with pytest.raises(KeyMismatch):
        cast.send(wire.endpoint, pins, new_isolate=True)
    assert _pinned(cast, pins) == before


# A relay that switches between the connection for evidence and the one with the certificate


@pytest.mark.parametrize("loot", ["its own key", "a copied certificate", "a certificate that names the isolate"])
def test_a_switch_to_the_hosts_own_server(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path, loot: str
) -> None:
    true = channel.fetch_evidence(where(genuine), secrets.token_bytes(NONCE_SIZE)).certificate
    server = impostor(lambda *_: b"", key=_key(loot, true))
    wire = relay(genuine, server)
    with pytest.raises(KeyMismatch) as caught:
        cast.send(wire.endpoint, pins)
    assert (caught.value.slug, caught.value.exit_code) == ("key-mismatch", 1)
    wire.settle()
    first, second = wire.tapes
    cast.assert_anonymous(first)
    cast.assert_stopped_in_handshake(second)
    cast.assert_learned_nothing(server, handshakes=0)
    assert not pins.exists()


def _key(loot: str, true: bytes) -> ServerKey:
    if loot == "its own key":
        return ServerKey.new()
    if loot == "a copied certificate":
        return copied_key(true)
    own = ServerKey.new()  # of the same subject as the isolate: the chain is true in all but the signature
    key, certificate = issue("veracruz isolate", own.key_pem, own.certificate_pem)
    return ServerKey(key, certificate + copied_key(true).certificate_pem)


def test_a_switch_to_a_genuine_clone(
    cast: Cast, genuine: Isolate, clone: Isolate, relay: StartRelay, pins: Path
) -> None:
    wire = relay(genuine, clone)
    with pytest.raises(KeyMismatch, match="another key"):
        cast.send(wire.endpoint, pins)
    wire.settle()
    first, second = wire.tapes
    cast.assert_anonymous(first)
    cast.assert_stopped_in_handshake(second)
    with cast.open(where(clone), pins) as session, pytest.raises(NotAvailable):
        session.get("/input/alice/other.csv", pins / "x")


def test_a_switch_from_the_hosts_own_server_to_the_isolate(
    cast: Cast, genuine: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    """The other order: evidence is where it ends, so the isolate never hears of Alice."""
    host = ForgingHost(cast.authority, bound=cast.policy(clock=True))
    server = impostor(lambda nonce, spki: host.session(cast.policy(), nonce=nonce, public_key=spki))
    wire = relay(server, genuine)
    with pytest.raises(PolicyMismatch):
        cast.send(wire.endpoint, pins)
    wire.settle()
    (tape,) = wire.tapes
    cast.assert_anonymous(tape)
    cast.assert_learned_nothing(server, handshakes=1)


@pytest.mark.parametrize("target", ["impostor", "clone"])
def test_a_switch_in_the_middle_of_a_session(
    cast: Cast, genuine: Isolate, clone: Isolate, impostor: StartImpostor, relay: StartRelay, pins: Path, target: str
) -> None:
    """A session that loses its connection opens another, to the same key or to none."""
    server = impostor(lambda *_: b"")
    wire = relay(genuine, genuine, server if target == "impostor" else clone)
    with cast.open(wire.endpoint, pins) as session:
        session.close()
        with pytest.raises(KeyMismatch):
            session.list("/input/alice/")
        with pytest.raises(KeyMismatch), (cast.folder / "ledger.csv").open("rb") as file:
            session.put(PATH, file)
    wire.settle()
    cast.assert_stopped_in_handshake(wire.tapes[2])
    cast.assert_stopped_in_handshake(wire.tapes[3])
    cast.assert_learned_nothing(server, handshakes=0)


def test_a_host_that_signs_for_its_own_isolate_has_its_own_root_only(
    cast: Cast, impostor: StartImpostor, relay: StartRelay, pins: Path
) -> None:
    """Under the host's root everything else can be right: a participant who was talked into no root is safe."""
    host = ForgingHost(make_root(datetime.now(UTC)), bound=cast.policy())
    server = impostor(lambda nonce, spki: host.session(cast.policy(), nonce=nonce, public_key=spki))
    wire = relay(server)
    for _ in range(2):
        with pytest.raises(UntrustedChain):
            cast.send(wire.endpoint, pins)
    wire.settle()
    cast.assert_learned_nothing(server, handshakes=2)
