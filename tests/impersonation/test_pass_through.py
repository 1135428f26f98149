# SPDX-License-Identifier: MIT
"""The host that only listens: everything works, and it sees no more than who, when and how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.enclave_image.runtime.household import Isolate

from .cast import PATH, SECRET, Cast
from .relay import APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, Relay, Tape, Way, hello_extensions

StartRelay = Callable[..., Relay]

SERVER_NAME = 0  # RFC 6066 3


def test_a_relay_that_passes_all_on_learns_nothing(
    cast: Cast, genuine: Isolate, relay: StartRelay, pins: Path, tmp_path: Path
) -> None:
    wire = relay(genuine)
    stored = cast.send(wire.endpoint, pins)
    assert (stored.path, stored.size) == (PATH, len(SECRET))
    with cast.open(wire.endpoint, pins) as session:
        session.get(PATH, tmp_path / "back.csv")
    assert (tmp_path / "back.csv").read_bytes() == SECRET
    wire.settle()
    assert len(wire.tapes) == 4
    cast.assert_unseen(*wire.tapes)
    for anonymous in wire.tapes[::2]:
        cast.assert_anonymous(anonymous)
    for tape in wire.tapes:
        assert _clear(tape, Way.TO_SERVER) == [HANDSHAKE, CHANGE_CIPHER_SPEC]  # ClientHello
        assert _clear(tape, Way.TO_CLIENT) == [HANDSHAKE, CHANGE_CIPHER_SPEC]  # ServerHello
        assert SERVER_NAME not in hello_extensions(tape.hello)


def _clear(tape: Tape, way: Way) -> list[int]:
    """Return the kinds of the records that are not sealed (RFC 8446 5.2: sealed ones are all application_data)."""
    return [record.kind for record in tape.records(way) if record.kind != APPLICATION_DATA]
