# SPDX-License-Identifier: MIT
"""The isolate's one life: what halts it, what it tells outside TLS, and that its evidence names what it enforces."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation import nsm
from attestation.binding import Binding, Purpose, policy_hash, policy_pcr
from attestation.cose import parse_sign1
from attestation.document import Document, parse_document
from attestation.limits import POLICY_PCR
from attestation.measurements import Measurements
from enclave_image.runtime.wire import PORT_NSM, Event
from host_shim.nsm_emulator import NsmEmulator

from . import guests
from .household import PATIENCE, REPOSITORY, SOME_IMAGE, Isolate, Party, in_an_hour, isolate, make_policy, program

Start = Callable[..., Isolate]
NONCE = bytes(range(32))


def read(raw: bytes) -> Document:
    return parse_document(parse_sign1(raw).payload)


def halts_with(start: Start, event: Event, policy: Any, **more: Any) -> Isolate:
    ran = start(policy, wait=False, **more)
    ran.host.wait_for(event)
    assert ran.process.wait(PATIENCE) == 0
    assert Event.SERVING not in ran.host.events
    return ran


def test_evidence_names_the_policy_the_nonce_and_the_key_of_the_connection(start: Start, alice: Party) -> None:
    raw = json.dumps(make_policy(alice)).encode()
    ran = start(raw)
    with ran.connect(None) as client:
        document = read(client.ask("GET", f"/v1/attestation?nonce={NONCE.hex()}").body)
    assert document.nonce == NONCE
    assert document.user_data == Binding(Purpose.SESSION, policy_hash(raw), None).encode()
    assert document.pcrs[POLICY_PCR] == policy_pcr(policy_hash(raw))
    certificate = x509.load_der_x509_certificate(client.certificate)
    assert certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == document.public_key


def test_the_servers_certificate_is_no_authority_and_outlives_every_clock(start: Start, alice: Party) -> None:
    ran = start(make_policy(alice))
    with ran.connect(None) as client:
        certificate = x509.load_der_x509_certificate(client.certificate)
    assert certificate.not_valid_before_utc == datetime(2020, 1, 1, tzinfo=UTC)
    assert certificate.not_valid_after_utc.year == 9999
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


def test_tells_its_events_in_order(start: Start, alice: Party) -> None:
    ran = start(make_policy(alice))
    assert ran.host.events == [Event.ATTESTOR_READY, Event.POLICY_TAKEN, Event.SERVING]
    assert ran.host.wait_for_answer() == [Event.POLICY_TAKEN]
    assert ran.host.beats == 1


@pytest.mark.parametrize("policy", [b"", b"{}", b"\xff" * 40, b'{"schema": "veracruz.policy/1"}'])
def test_a_malformed_policy_halts_it_and_leaves_pcr16_alone(start: Start, policy: bytes) -> None:
    ran = halts_with(start, Event.HALT_POLICY, policy)
    assert ran.host.wait_for_answer() == [Event.HALT_POLICY]
    state = nsm.decode_response(ran.host.emulator.answer(nsm.encode_request(nsm.DescribePcr(POLICY_PCR))))
    assert state == nsm.PcrState(lock=False, data=bytes(48))


def _extend(module: NsmEmulator) -> None:
    module.answer(nsm.encode_request(nsm.ExtendPcr(POLICY_PCR, bytes(32))))


def _lock(module: NsmEmulator) -> None:
    module.answer(nsm.encode_request(nsm.LockPcr(POLICY_PCR)))


@pytest.mark.parametrize("prepare", [_extend, _lock])
def test_a_register_that_was_touched_before_halts_it(start: Start, alice: Party, prepare: Any) -> None:
    ran = halts_with(start, Event.HALT_POLICY_PCR, make_policy(alice), prepare=prepare)
    assert ran.host.wait_for_answer() == [Event.HALT_POLICY_PCR]


def test_awss_root_is_not_for_an_emulated_module(start: Start, alice: Party) -> None:
    halts_with(start, Event.HALT_ROOT, make_policy(alice, root="aws"))


def test_an_image_that_the_policy_does_not_name_halts(start: Start, alice: Party) -> None:
    other = Measurements(b"\1" * 48, b"\2" * 48, b"\4" * 48)
    halts_with(start, Event.HALT_IMAGE, make_policy(alice), measurements=other)


def test_one_zero_register_is_not_debug_mode(start: Start, alice: Party) -> None:
    partly = Measurements(b"\1" * 48, b"\2" * 48, bytes(48))
    halts_with(start, Event.HALT_IMAGE, make_policy(alice), measurements=partly)


def test_an_image_that_the_policy_names_serves(start: Start, alice: Party) -> None:
    assert read(start(make_policy(alice), measurements=SOME_IMAGE).evidence(NONCE)).measurements == SOME_IMAGE


def test_a_policy_whose_time_is_over_is_not_served(start: Start, alice: Party) -> None:
    halts_with(start, Event.EXPIRED, make_policy(alice, lifecycle={"not_after": "2020-01-01T00:00:00Z"}))


def test_a_module_that_stops_answering_ends_it(start: Start, alice: Party) -> None:
    ran = start(make_policy(alice))
    ran.host.emulator.answer = lambda _: b"\xff"  # type: ignore[method-assign, assignment]
    with ran.connect(None) as client, pytest.raises(OSError):  # noqa: PT011
        client.ask("GET", f"/v1/attestation?nonce={NONCE.hex()}")
    ran.host.wait_for(Event.HALT_NSM)
    assert ran.process.wait(PATIENCE) == 0


def test_time_that_passes_not_after_ends_it_with_503(start: Start, alice: Party) -> None:
    """The module's time jumps; the isolate asks again once its last answer is a minute old."""
    ahead = timedelta()
    late = datetime.now(UTC) + timedelta(seconds=2)
    policy = make_policy(alice, lifecycle={"not_after": late.strftime("%Y-%m-%dT%H:%M:%SZ")})
    ran = start(policy, now=lambda: datetime.now(UTC) + ahead)
    with ran.connect(alice) as client:
        while (answer := client.ask("GET", "/v1/policy")).status == 200:
            threading.Event().wait(0.1)
    assert (answer.status, answer.slug) == (503, "expired")
    ran.host.wait_for(Event.EXPIRED)
    assert ran.process.wait(PATIENCE) == 0


def test_shuts_down_when_all_agree_and_not_before(start: Start, alice: Party, bob: Party, mallory: Party) -> None:
    policy = make_policy(alice, bob, mallory, lifecycle={"shutdown": ["alice", "bob"], "not_after": in_an_hour()})
    ran = start(policy)
    with ran.connect(mallory) as client:
        assert client.ask("POST", "/v1/shutdown").status == 404
    with ran.connect(alice) as client:
        for _ in range(2):
            assert client.ask("POST", "/v1/shutdown").json == {"agreed": False}
    with ran.connect(bob) as client:
        assert client.ask("POST", "/v1/shutdown").json == {"agreed": True}
    ran.host.wait_for(Event.SHUTDOWN_AGREED)
    assert ran.process.wait(PATIENCE) == 0


def test_says_at_start_that_it_protects_nothing_and_then_nothing_more(alice: Party) -> None:
    with isolate(make_policy(alice), trace=False) as ran:
        with ran.connect(alice) as client:
            client.put("/secret-name", b"secret")
            client.ask("POST", "/v1/shutdown")
        said = ran.ended().splitlines()
    assert "protects nothing" in said[0]
    assert all(line.startswith("process isolate: ") for line in said)
    assert len(said) == (1 if os.geteuid() == 0 else 2)


def test_without_a_module_it_halts(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/v_9003")
    listener.listen()
    nobody = socket.socket(socket.AF_UNIX)
    nobody.bind(f"{tmp_path}/v_{PORT_NSM}")
    nobody.listen()
    command = [sys.executable, "-m", "enclave_image.runtime.process", f"{tmp_path}/v", f"{tmp_path}/s"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    with listener, nobody:
        nobody.accept()[0].close()
        events, _ = listener.accept()
        with events:
            assert events.recv(1) == bytes([Event.HALT_NSM])
    assert process.wait(PATIENCE) == 0


def test_no_process_outlives_it(alice: Party) -> None:
    code = guests.sleep(60)
    with isolate(make_policy(alice, programs=[program("/c.wasm", code, {})])) as ran:
        with ran.connect(alice) as client:
            client.put("/c.wasm", code)
            job = client.ask("POST", "/v1/jobs", json.dumps({"program": "/c.wasm"}).encode()).json["id"]
            while client.ask("GET", f"/v1/jobs/{job}").json["state"] == "queued":
                pass
        children: list[str] = []
        while len(children) < 4:
            children = descendants(str(ran.process.pid))  # attestor, zygote, warden, worker
        ran.process.kill()
        ran.process.wait(PATIENCE)
        for child in children:
            for _ in range(100):
                if not _lives(child):
                    break
                threading.Event().wait(0.05)
            assert not _lives(child)


def descendants(pid: str) -> list[str]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return children + [below for child in children for below in descendants(child)]


def _lives(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_refuses_tls_1_2(start: Start, alice: Party) -> None:
    ran = start(make_policy(alice))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(PATIENCE)
        raw.connect(f"{ran.host.base}_5000")
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(raw)
