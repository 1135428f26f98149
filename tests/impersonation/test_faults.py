# SPDX-License-Identifier: MIT
"""A relay that spoils one record of a connection, anywhere: the client says so in our words, and files stay whole.

Faults are made to whole TLS records. On the connection with the certificate the client sends as records 0 ClientHello,
1 change_cipher_spec, 2 Certificate, 3 CertificateVerify, 4 Finished, 5 the request for the policy, 6 the head of an
upload, 7 to 31 its body; it receives 0 ServerHello to 6 Finished, 7 and 8 the policy, 9 and 10 the upload's answer.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.appraising import appraise
from attestation.errors import NotAvailable, VeracruzError
from attestation.participant import Session
from attestation.pins import new_pin
from attestation.policy import parse_policy
from tests.enclave_image.runtime.household import Isolate

from .cast import Cast, where
from .relay import Deed, Fault, Relay, Tape, Way

pytestmark = pytest.mark.faults

StartRelay = Callable[..., Relay]

PATH = "/input/alice/table.bin"
CONTENT = bytes(range(256)) * 1563  # 400,128 bytes: three do not fit into Alice's share
LIMITS = {"storage_mib": 2, "file_mib": 1}
HEAD, FIRST, MIDDLE, LAST = 6, 7, 18, 31  # records of an upload
ANSWER_HEAD, ANSWER_BODY = 9, 10

TO_SERVER, TO_CLIENT = Way.TO_SERVER, Way.TO_CLIENT
SPOILING = (Deed.FLIP, Deed.INJECT, Deed.REPEAT)
ENDING = (Deed.CUT, Deed.HALVE, Deed.RESET)


@pytest.fixture(scope="module")
def house(cast: Cast) -> Iterator[Isolate]:
    with cast.isolate(cast.policy(limits=LIMITS)) as ran:
        yield ran


Sessions = Callable[[Relay], Session]


@pytest.fixture(scope="module")
def alice(cast: Cast, house: Isolate) -> Sessions:
    """Sessions with evidence that was verified once: an isolate gives strangers only so many documents a second."""
    policy = parse_policy(cast.policy(limits=LIMITS))
    at = datetime.now(UTC)
    evidence, appraisal = appraise(where(house), policy, cast.trust, clock=lambda: at)
    pin = new_pin(evidence.certificate, cast.root.fingerprint, at=at)

    def open_at(wire: Relay) -> Session:
        return Session(wire.endpoint, policy, cast.alice, evidence=evidence, appraisal=appraisal, pin=pin)

    return open_at


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.bin"
    path.write_bytes(CONTENT)
    return path


def _upload(session: Session, table: Path) -> None:
    with session, table.open("rb") as file:
        session.policy()
        session.put(PATH, file)


def _stored(session: Session) -> bytes | None:
    content = io.BytesIO()
    try:
        with session:
            session.read(PATH, content)
    except NotAvailable:
        return None
    return content.getvalue()


def _faulty(wire: Relay, action: Callable[[], None]) -> str:
    """Do what meets a fault; return the slug of the error of ours."""
    with pytest.raises(VeracruzError) as caught:
        action()
    wire.settle()
    assert str(caught.value).isprintable()
    return caught.value.slug


def test_an_honest_run_has_the_records_that_faults_are_made_to(
    house: Isolate, alice: Sessions, relay: StartRelay, table: Path
) -> None:
    wire = relay(house)
    _upload(alice(wire), table)
    wire.settle()
    (tape,) = wire.tapes
    sent, received = _sizes(tape, TO_SERVER), _sizes(tape, TO_CLIENT)
    assert sent[HEAD] < sent[FIRST] == 16384 + 17
    assert len(sent) == LAST + 1
    assert len(received) >= ANSWER_BODY + 1
    _delete(alice(relay(house)))


def _sizes(tape: Tape, way: Way) -> list[int]:
    return [len(record.body) for record in tape.records(way)]


# The handshake


HARMLESS = ((Deed.REPEAT, 1), (Deed.REPEAT, 6))  # change_cipher_spec twice; what comes after the server's Finished


@pytest.mark.parametrize(
    "fault",
    [
        Fault(deed, TO_CLIENT, record)
        for deed, record in itertools.product((*SPOILING, *ENDING), range(7))
        if (deed, record) not in HARMLESS
    ],
    ids=lambda fault: f"{fault.deed.name}-{fault.record}",
)
def test_in_the_servers_flight(
    cast: Cast, house: Isolate, alice: Sessions, relay: StartRelay, table: Path, fault: Fault
) -> None:
    wire = relay(house, faults=(fault,))
    slug = _faulty(wire, lambda: _upload(alice(wire), table))
    assert slug == ("unreachable" if fault.deed in ENDING else "malformed-answer")
    cast.assert_stopped_in_handshake(wire.tapes[0])  # in which the certificate comes after the server's last word


@pytest.mark.parametrize("deed", [Deed.FLIP, Deed.INJECT, *ENDING], ids=lambda deed: deed.name)
def test_in_the_client_hello(
    cast: Cast, house: Isolate, alice: Sessions, relay: StartRelay, table: Path, deed: Deed
) -> None:
    wire = relay(house, faults=(Fault(deed, TO_SERVER, 0),))
    slug = _faulty(wire, lambda: _upload(alice(wire), table))
    assert slug == ("unreachable" if deed in ENDING else "malformed-answer")
    cast.assert_stopped_in_handshake(wire.tapes[0])


@pytest.mark.parametrize("record", range(2, 6))
@pytest.mark.parametrize("deed", [Deed.FLIP, Deed.INJECT, *ENDING], ids=lambda deed: deed.name)
def test_between_the_clients_certificate_and_the_first_answer(
    cast: Cast, house: Isolate, alice: Sessions, relay: StartRelay, table: Path, deed: Deed, record: int
) -> None:
    """To the client it is as if its certificate was not taken, and the hint says so; no file is on its way yet."""
    wire = relay(house, faults=(Fault(deed, TO_SERVER, record),))
    assert _faulty(wire, lambda: _upload(alice(wire), table)) == "certificate-refused"
    cast.assert_unseen(wire.tapes[0])
    assert len(_sizes(wire.tapes[0], TO_SERVER)) <= HEAD


@pytest.mark.parametrize("deed", [Deed.FLIP, Deed.INJECT, Deed.DROP], ids=lambda deed: deed.name)
def test_in_the_first_answer_a_change_is_no_refusal_of_the_certificate(
    house: Isolate, alice: Sessions, relay: StartRelay, table: Path, deed: Deed
) -> None:
    wire = relay(house, faults=(Fault(deed, TO_CLIENT, 7),))
    assert _faulty(wire, lambda: _upload(alice(wire), table)) == "unreachable"


# The evidence


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Deed.FLIP, TO_SERVER, 4), Fault(Deed.CUT, TO_SERVER, 4), Fault(Deed.CUT, TO_CLIENT, 7),
        Fault(Deed.FLIP, TO_CLIENT, 8), Fault(Deed.CUT, TO_CLIENT, 8), Fault(Deed.HALVE, TO_CLIENT, 8),
        Fault(Deed.RESET, TO_CLIENT, 8),
    ],
    ids=lambda fault: f"{fault.deed.name}-{fault.way.name}-{fault.record}",
)  # fmt: skip
def test_in_the_evidence(cast: Cast, house: Isolate, relay: StartRelay, pins: Path, fault: Fault) -> None:
    wire = relay(house, faults=(fault,))
    assert _faulty(wire, lambda: _send(cast, wire, pins)) == "unreachable"
    (tape,) = wire.tapes
    cast.assert_anonymous(tape)
    assert not pins.exists()


def _send(cast: Cast, wire: Relay, pins: Path) -> None:
    cast.send(wire.endpoint, pins, policy=cast.policy(limits=LIMITS))


# The upload


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(deed, TO_SERVER, place) for deed, place in itertools.product(SPOILING, (HEAD, FIRST, MIDDLE))),
        *(Fault(deed, TO_SERVER, place) for deed, place in itertools.product(ENDING, (HEAD, FIRST, MIDDLE, LAST))),
        *(Fault(Deed.DROP, TO_SERVER, place) for place in (HEAD, FIRST, MIDDLE)),
        *(Fault(deed, TO_SERVER, LAST) for deed in (Deed.FLIP, Deed.INJECT)),
    ],
    ids=lambda fault: f"{fault.deed.name}-{fault.record}",
)
def test_in_the_upload_of_a_file_that_is_then_not_there(
    cast: Cast, house: Isolate, alice: Sessions, relay: StartRelay, table: Path, fault: Fault
) -> None:
    wire, clean = relay(house, faults=(fault,)), relay(house)
    assert _faulty(wire, lambda: _upload(alice(wire), table)) == "unreachable"
    cast.assert_unseen(wire.tapes[0])
    assert _stored(alice(clean)) is None
    _await_contents(house, 0)
    _upload(alice(clean), table)  # nothing of the broken upload counts against Alice's share
    assert _stored(alice(clean)) == CONTENT
    _delete(alice(clean))


@pytest.mark.parametrize(
    "fault",
    [*(Fault(deed, TO_CLIENT, ANSWER_HEAD) for deed in (Deed.FLIP, Deed.INJECT, *ENDING)),
     *(Fault(deed, TO_CLIENT, ANSWER_BODY) for deed in (Deed.FLIP, Deed.INJECT, *ENDING))],
    ids=lambda fault: f"{fault.deed.name}-{fault.record}",
)  # fmt: skip
def test_in_the_answer_to_an_upload_that_is_then_whole(
    house: Isolate, alice: Sessions, relay: StartRelay, table: Path, fault: Fault
) -> None:
    wire, clean = relay(house, faults=(fault,)), relay(house)
    assert _faulty(wire, lambda: _upload(alice(wire), table)) == "unreachable"
    assert _stored(alice(clean)) == CONTENT
    _delete(alice(clean))


@pytest.mark.parametrize("verb", ["put", "append"])
@pytest.mark.parametrize("deed", [Deed.FLIP, Deed.CUT, Deed.DROP], ids=lambda deed: deed.name)
def test_a_file_that_is_there_stays_as_it_was(
    house: Isolate, alice: Sessions, relay: StartRelay, table: Path, tmp_path: Path, verb: str, deed: Deed
) -> None:
    wire, clean = relay(house, faults=(Fault(deed, TO_SERVER, MIDDLE),)), relay(house)
    _upload(alice(clean), table)
    other = tmp_path / "other.bin"
    other.write_bytes(CONTENT[::-1])

    def change() -> None:
        with alice(wire) as session, other.open("rb") as file:
            session.policy()
            getattr(session, verb)(PATH, file)

    assert _faulty(wire, change) == "unreachable"
    assert _stored(alice(clean)) == CONTENT
    _await_contents(house, 1)
    _delete(alice(clean))


# The way back


@pytest.mark.parametrize("record", [10, 20])
@pytest.mark.parametrize("deed", [Deed.FLIP, Deed.DROP, Deed.REPEAT, *ENDING], ids=lambda deed: deed.name)
def test_in_a_download_of_which_nothing_is_then_kept(
    house: Isolate, alice: Sessions, relay: StartRelay, table: Path, tmp_path: Path, deed: Deed, record: int
) -> None:
    wire, clean = relay(house, faults=(Fault(deed, TO_CLIENT, record),)), relay(house)
    _upload(alice(clean), table)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "old.bin").write_bytes(b"old")

    def download() -> None:
        with alice(wire) as session:
            session.policy()
            session.get(PATH, folder / "old.bin")

    assert _faulty(wire, download) == "unreachable"
    assert [path.name for path in folder.iterdir()] == ["old.bin"]
    assert (folder / "old.bin").read_bytes() == b"old"
    _delete(alice(clean))


def _delete(session: Session) -> None:
    with session:
        session.delete(PATH)


def _await_contents(house: Isolate, count: int) -> None:
    """Wait until exactly so many contents are in the isolate's store: of a broken upload none stays."""
    store = Path(house.host.base).parent / "scratch" / "store"
    deadline = time.monotonic() + 20
    while len(list(store.iterdir())) != count:
        assert time.monotonic() < deadline, list(store.iterdir())
        time.sleep(0.01)
