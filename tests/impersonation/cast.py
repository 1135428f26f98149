# SPDX-License-Identifier: MIT
"""Who takes part: Alice, Bob and Mallory, the policy of the first two, what Alice trusts, and hosts with NSMs.

`Cast.send` is what every attack is tried on: the client's whole way from an address to a file in the isolate.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from attestation import nsm
from attestation.appraising import Trust
from attestation.binding import Binding, Purpose, policy_hash
from attestation.certificates import key_bytes
from attestation.chain import Root, load_root
from attestation.endpoint import Endpoint
from attestation.identity import Identity, write_identity
from attestation.limits import POLICY_PCR
from attestation.measurements import Measurements, dump_measurements
from attestation.participant import Session, Stored, open_session
from attestation.pins import PinStore
from enclave_image.runtime.wire import PORT_API
from host_shim.dev_pki import Authority, Chain, make_root
from host_shim.nsm_emulator import BootState, NsmEmulator
from host_shim.nsm_emulator import Identity as Instance
from tests.attestation.documents import IMAGE
from tests.attestation.isolate_server import ServerKey
from tests.enclave_image.runtime.household import Isolate, isolate

from .impostor import ANONYMOUS_REQUEST, Impostor
from .relay import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, Record, Tape

PATH = "/input/alice/ledger.csv"
SECRET = b"IBAN;amount\n" + b"DE02-7001-canary-of-alice;1250000\n" * 40
CANARY = b"canary-of-alice"
POLICY_NAME = "two retailers, confidential"
LONGEST_ANONYMOUS = 160  # bytes; the request for evidence in one record, and no certificate fits
RIGHTS = ["read", "write", "append", "list", "delete"]


@dataclass(frozen=True)
class Cast:
    """The people, and the root that all of them trust."""

    folder: Path
    alice: Identity
    bob: Identity
    mallory: Identity
    authority: Authority

    @property
    def root(self) -> Root:
        """The development root, as participants load it."""
        return load_root(self.root_pem)

    @property
    def root_pem(self) -> bytes:
        return self.authority.certificate.public_bytes(Encoding.PEM)

    @property
    def trust(self) -> Trust:
        """What Alice trusts of her own accord."""
        return Trust(self.root, (IMAGE,))

    def policy(self, **changes: Any) -> bytes:
        """Return the policy of Alice and Bob; keywords replace its members."""
        members = {
            "schema": "veracruz.policy/1",
            "name": POLICY_NAME,
            "images": [image_member(IMAGE)],
            "participants": [
                {
                    "name": name,
                    "certificate": identity.certificate_file.read_text(),
                    "rights": {f"/input/{name}/": RIGHTS},
                }
                for name, identity in (("alice", self.alice), ("bob", self.bob))
            ],
            "join": ["alice"],
            "programs": [],
        }
        return json.dumps(members | changes).encode()

    def isolate(self, policy: bytes | None = None) -> contextlib.AbstractContextManager[Isolate]:
        """Start the real runtime, on a host whose NSM measured the image."""
        return isolate(policy or self.policy(), root=self.authority, measurements=IMAGE)

    def open(
        self,
        endpoint: Endpoint,
        pins: Path,
        *,
        policy: bytes | None = None,
        trust: Trust | None = None,
        identity: Identity | None = None,
        new_isolate: bool = False,
    ) -> Session:
        """Open a session as every participant's verb does, as Alice unless told otherwise."""
        return open_session(
            endpoint, policy or self.policy(), trust=trust or self.trust, identity=identity or self.alice,
            pins=PinStore(pins), clock=lambda: datetime.now(UTC), new_isolate=new_isolate,
        )  # fmt: skip

    def send(self, endpoint: Endpoint, pins: Path, **how: Any) -> Stored:
        """Send Alice's file."""
        ledger = self.folder / "ledger.csv"
        with self.open(endpoint, pins, **how) as session, ledger.open("rb") as file:
            return session.put(PATH, file)

    def assert_unseen(self, *tapes: Tape) -> None:
        """Assert that nothing of a participant's is on a tape in clear."""
        for tape in tapes:
            for identity in (self.alice, self.bob, self.mallory):
                assert identity.certificate not in tape.both
                assert key_bytes(identity.certificate) not in tape.both
                assert key_bytes(identity.certificate)[-64:] not in tape.both  # the bare point
            for words in (CANARY, POLICY_NAME.encode(), b"HTTP/1.1", b"/v1/", b"/input"):
                assert words not in tape.both

    def assert_learned_nothing(self, impostor: Impostor, *, handshakes: int) -> None:
        """Assert that an impostor got no certificate, and no request but `handshakes` anonymous ones for evidence."""
        impostor.settle()
        assert [visit.certificate for visit in impostor.visits] == [None] * len(impostor.visits)
        requests = [bytes(visit.received) for visit in impostor.visits if visit.failure is None]
        assert len(requests) == handshakes
        assert all(ANONYMOUS_REQUEST.fullmatch(request) for request in requests)
        assert not any(visit.received for visit in impostor.visits if visit.failure is not None)

    def assert_anonymous(self, tape: Tape) -> None:
        """Assert that a client asked for evidence and nothing else, without a certificate."""
        self.assert_unseen(tape)
        records = tape.after_hello
        assert all(record.kind in (CHANGE_CIPHER_SPEC, ALERT, APPLICATION_DATA) for record in records)
        assert max(len(record.body) for record in records) < LONGEST_ANONYMOUS < len(self.alice.certificate)
        assert sum(_asks(record) for record in records) == 1

    def assert_stopped_in_handshake(self, tape: Tape) -> None:
        """Assert that a client sent a ClientHello and an alert, and nothing else."""
        self.assert_unseen(tape)
        for record in tape.after_hello:
            sealed_alert = record.kind == APPLICATION_DATA and len(record.body) == 2 + 1 + 16  # RFC 8446 5.2
            assert sealed_alert or record.kind in (CHANGE_CIPHER_SPEC, ALERT)
        assert sum(record.kind != CHANGE_CIPHER_SPEC for record in tape.after_hello) <= 1


def _asks(record: Record) -> bool:
    return record.kind == APPLICATION_DATA and len(record.body) > 100  # longer than a Finished of SHA-384


def make_cast(folder: Path) -> Cast:
    """Make everybody's keys."""
    (folder / "ledger.csv").write_bytes(SECRET)
    people = {name: write_identity(name, folder / name) for name in ("alice", "bob", "mallory")}
    cast = Cast(folder=folder, authority=make_root(datetime.now(UTC)), **people)
    (folder / "root.pem").write_bytes(cast.root_pem)
    (folder / "measurements.json").write_text(json.dumps(dump_measurements(IMAGE)))
    return cast


def image_member(image: Measurements) -> dict[str, str]:
    """Return a policy's entry for an image."""
    return {f"PCR{index}": value.hex() for index, value in enumerate(image.registers)}


def copied_key(certificate: bytes) -> ServerKey:
    """Return what a host has that copied an isolate's certificate: it can show it, and cannot sign for it."""
    return ServerKey(b"", ssl.DER_cert_to_PEM_cert(certificate).encode()).copy()


def where(ran: Isolate) -> Endpoint:
    """Return an isolate's address."""
    return Endpoint(f"{ran.host.base}_{PORT_API}", None)


class ForgingHost:
    """A host with an NSM at its own command: it fills in whatever it likes, under the root that it has."""

    def __init__(self, authority: Authority, *, image: Measurements | None = IMAGE, bound: bytes | None) -> None:
        """`bound`: the policy to whose hash PCR16 is set and locked; None leaves it alone. No image is debug mode."""
        instance = Instance.random()
        chain = Chain(authority, module_id=instance.module_id)
        self._nsm = NsmEmulator(BootState(image, instance), chain, clock=lambda: datetime.now(UTC))
        if bound is not None:
            self.ask(nsm.ExtendPcr(POLICY_PCR, policy_hash(bound)))
            self.ask(nsm.LockPcr(POLICY_PCR))

    def ask(self, request: nsm.Request) -> nsm.Response:
        """Run one request."""
        return nsm.demand(nsm.decode_response(self._nsm.answer(nsm.encode_request(request))))

    def document(self, user_data: bytes, *, nonce: bytes | None, public_key: bytes) -> bytes:
        """Return a document that says this."""
        answer = self.ask(nsm.Attest(user_data, nonce, public_key))
        assert isinstance(answer, nsm.Document)
        return answer.document

    def session(self, policy: bytes, *, nonce: bytes, public_key: bytes) -> bytes:
        """Return evidence as an isolate's attestor makes it."""
        user_data = Binding(Purpose.SESSION, policy_hash(policy), None).encode()
        return self.document(user_data, nonce=nonce, public_key=public_key)
