# SPDX-License-Identifier: MIT
"""QEMU's nitro-enclave machine boots our images and agrees on every register; its unsigned evidence convinces nobody.

Loader, registers and NSM there are QEMU's own code, so that what we computed is checked by others; the runtime speaks
to a real /dev/nsm, as on Nitro.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.chain import load_root
from attestation.channel import Evidence
from attestation.errors import UnsignedEvidence
from attestation.expectations import Expectations, UnsafeAcceptUnsigned
from attestation.measurements import Measurements
from attestation.policy import parse_policy
from attestation.verifier import Verdict, verify
from enclave_image.eif import Eif, SectionType, load_eif, write_eif
from enclave_image.runtime.wire import PORT_EVENTS, PORT_HEARTBEAT, PORT_POLICY, Event

from .machines import World
from .nitro_machine import MODULE_ID, PARENT, ROLE, find_nitro_qemu, on_nitro_machine
from .rig import Guest, boot

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

NONCE = bytes(range(32))
ZERO = bytes(48)


@pytest.fixture(scope="module")
def machine() -> Path:
    return find_nitro_qemu()


def extended(data: bytes) -> bytes:
    """Return a register that was zero and was extended once."""
    return hashlib.sha384(ZERO + data).digest()


def on_machine(
    machine: Path,
    world: World,
    policy: Path,
    image: Path,
    body: Callable[[Guest], Coroutine[Any, Any, None]],
    change: Callable[[list[str]], list[str]] = lambda command: command,
    **more: Any,
) -> None:
    """Boot the file `image` on the machine, on a host of the test's making, and run `body` on it."""

    async def run() -> None:
        state = Path(world.environment["XDG_STATE_HOME"]) / "veracruz"
        as_nitro = on_nitro_machine(machine, image, **more)
        async with boot(
            load_eif(image), policy=policy.read_bytes(), state=state, command=lambda command: change(as_nitro(command))
        ) as guest:
            await body(guest)

    asyncio.run(run())


def expectations(policy: Path, image: Measurements, evidence: Evidence) -> Expectations:
    """Return all that a participant demands."""
    return Expectations.for_session(parse_policy(policy.read_bytes()), [image], NONCE, evidence.public_key)


def sign(image: Eif) -> tuple[bytes, x509.Certificate]:
    """Return the image with a signature section made here, from the published form alone, and who signed it."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test signer")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA384())
    )  # fmt: skip
    payload = cbor2.dumps({"register_index": 0, "register_value": list(image.measurements.pcr0)})
    protected = cbor2.dumps({1: -35})
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(key.sign(to_be_signed, ec.ECDSA(hashes.SHA384())))
    sign1 = cbor2.dumps([protected, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])
    pem = certificate.public_bytes(Encoding.PEM)
    section = cbor2.dumps([{"signing_certificate": list(pem), "signature": list(sign1)}])
    sections = [(part.type, bytes(part.data)) for part in image.sections]
    return write_eif([*sections, (SectionType.SIGNATURE, section)]), certificate


def test_reports_the_registers_that_we_computed(machine: Path, world: World, image: Path) -> None:
    """Also: the runtime takes the device, and never dials the emulator's port; its policy is bound as anywhere."""
    measured = load_eif(image).measurements
    policy = world.policy("nitro", image.with_suffix(".json"))

    async def body(guest: Guest) -> None:
        await guest.wait_for_event(Event.SERVING)
        assert set(guest.host.dialled) == {PORT_HEARTBEAT, PORT_EVENTS, PORT_POLICY}
        evidence = await guest.fetch(NONCE)
        expected = expectations(policy, measured, evidence)
        roots = [load_root(world.root.read_bytes())]
        with pytest.raises(UnsignedEvidence):
            verify(evidence.document, expected=expected, at=datetime.now(UTC), roots=roots)
        accepted = verify(evidence.document, expected=expected & UnsafeAcceptUnsigned(), at=datetime.now(UTC), roots=[])
        assert accepted.verdict is Verdict.UNSIGNED
        assert accepted.module_id == MODULE_ID
        assert accepted.measurements == measured
        assert accepted.pcrs[3] == extended(ROLE.encode())
        assert accepted.pcrs[4] == extended(PARENT.encode())
        assert {accepted.pcrs[index] for index in (*range(5, 16),)} == {ZERO}

    on_machine(machine, world, policy, image, body, words=" a_launchers_word=1")  # which no register measures


def test_reports_the_signer_of_a_signed_image(machine: Path, world: World, image: Path, tmp_path: Path) -> None:
    raw, certificate = sign(load_eif(image))
    signed = tmp_path / "signed.eif"
    signed.write_bytes(raw)
    measured = load_eif(signed).measurements
    assert measured == load_eif(image).measurements  # no register but PCR8 tells a signature
    policy = world.policy("nitro", image.with_suffix(".json"))

    async def body(guest: Guest) -> None:
        await guest.wait_for_event(Event.SERVING)
        evidence = await guest.fetch(NONCE)
        expected = expectations(policy, measured, evidence) & UnsafeAcceptUnsigned()
        accepted = verify(evidence.document, expected=expected, at=datetime.now(UTC), roots=[])
        assert accepted.measurements == measured
        signer = hashlib.sha384(certificate.public_bytes(Encoding.DER)).digest()
        assert accepted.pcrs[8] == extended(signer)

    on_machine(machine, world, policy, signed, body)


def test_a_ramdisk_that_the_launcher_adds_is_measured_and_stops_the_isolate(
    machine: Path, world: World, image: Path, tmp_path: Path
) -> None:
    from enclave_image.initramfs import File, write_cpio

    more = tmp_path / "more.cpio"
    more.write_bytes(write_cpio({"app/more": File(b"more", executable=False)}))
    policy = world.policy("nitro", image.with_suffix(".json"))

    async def body(guest: Guest) -> None:
        await guest.wait_for_event(Event.HALT_IMAGE)

    on_machine(machine, world, policy, image, body, change=lambda command: [*command, "-initrd", str(more)])


@pytest.mark.parametrize("place", [0x21C, 600, -1], ids=["header", "kernel", "ramdisk"])
def test_refuses_a_damaged_file_as_our_reader_does(machine: Path, image: Path, tmp_path: Path, place: int) -> None:
    raw = bytearray(image.read_bytes())
    raw[place] ^= 1
    damaged = tmp_path / "damaged.eif"
    damaged.write_bytes(raw)
    with pytest.raises(Exception, match=r"CRC|corrupt|reserved"):
        load_eif(damaged)
    done = subprocess.run(
        [machine, "-M", "nitro-enclave,vsock=c", "-chardev", "null,id=c", "-display", "none", "-kernel", damaged],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "CRC" in done.stderr
