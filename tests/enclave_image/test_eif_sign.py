# SPDX-License-Identifier: MIT
"""`veracruz image sign`: what it writes is what AWS's format says, and it writes nothing that would not verify."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from pycose.keys import EC2Key
from pycose.messages import Sign1Message

from attestation.measurements import signer_pcr
from enclave_image.eif import load_eif, write_eif
from enclave_image.eif_tool import signer
from enclave_image.eif_tool.layout import BytesSource, read_layout
from enclave_image.eif_tool.signature_section import read_signatures
from host_shim.cli import main
from host_shim.eif_signer import signer_of
from host_shim.nsm_emulator import BootState, Identity
from host_shim.qemu import BootFiles

from .eif_specimens import (
    GOOD,
    METADATA,
    SECTIONS,
    SIGNATURE,
    SPECIMENS,
    flipped_signature,
    key_pem,
    make_certificate,
    patched,
    resigned_by_aws,
    sign,
    signed,
    signing_key,
)

Capture = pytest.CaptureFixture[str]
NOW = datetime.now(UTC)
P384 = "secp384r1"


class Desk:
    """A directory with an image, a certificate and a key, and the verb."""

    def __init__(self, folder: Path, curve: str = P384) -> None:
        self.folder = folder
        self.image, self.out = folder / "image.eif", folder / "signed.eif"
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.image.write_bytes(GOOD)
        self.certify(curve)
        self.key.write_bytes(key_pem(curve))
        self.key.chmod(0o600)

    def certify(self, curve: str = P384, *, since: int = -1, until: int = 1) -> None:
        days = timedelta(days=since), timedelta(days=until)
        certificate = make_certificate(curve, since=NOW + days[0], until=NOW + days[1])
        self.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))

    def sign(self, *words: str | Path) -> int:
        given = ["image", "sign", self.image, "--certificate", self.certificate, *words]
        return main([str(word) for word in given])

    def sign_with_key(self) -> int:
        return self.sign("--key", self.key, "--out", self.out)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def verify_by_pycose(section: bytes, curve: str) -> dict[str, object]:
    """Verify the first signature by another implementation; return its payload."""
    (entry, *_) = cbor2.loads(section)
    message = Sign1Message.from_cose_obj(cbor2.loads(bytes(entry["signature"])), True)
    size = (signing_key(curve).curve.key_size + 7) // 8
    public = signing_key(curve).public_key().public_numbers()
    name = {"secp256r1": "P_256", "secp384r1": "P_384", "secp521r1": "P_521"}[curve]
    message.key = EC2Key(crv=name, x=public.x.to_bytes(size, "big"), y=public.y.to_bytes(size, "big"))
    assert message.verify_signature()
    payload: dict[str, object] = cbor2.loads(message.payload)
    return payload


def test_the_emulators_pcr8_is_the_signers(desk: Desk, capsys: Capture) -> None:
    assert desk.sign("--key", desk.key, "--out", desk.out, "--json") == 0
    pcr8 = json.loads(capsys.readouterr().out)["Measurements"]["PCR8"]
    with BootFiles(load_eif(desk.out)) as files:
        registers = BootState(files.measurements, Identity.random(), signer=files.signer).registers()
    assert registers[8].hex() == pcr8
    assert registers[0] == load_eif(desk.image).measurements.pcr0


@pytest.mark.parametrize("curve", ["secp256r1", "secp384r1", "secp521r1"])
def test_a_signed_image_is_accepted_by_every_reader(tmp_path: Path, capsys: Capture, curve: str) -> None:
    desk = Desk(tmp_path, curve)
    assert desk.sign("--key", desk.key, "--out", desk.out, "--json") == 0
    table = json.loads(capsys.readouterr().out)["Measurements"]
    before, after = load_eif(desk.image), load_eif(desk.out)
    assert after.measurements == before.measurements
    assert desk.image.read_bytes() == GOOD
    assert after.signature is not None
    der = x509.load_pem_x509_certificate(desk.certificate.read_bytes()).public_bytes(Encoding.DER)
    assert signer_of(after.signature) == der
    assert table["PCR8"] == signer_pcr(der).hex()
    assert verify_by_pycose(after.signature, curve) == {
        "register_index": 0, "register_value": list(before.measurements.pcr0),
    }  # fmt: skip
    assert main(["image", "describe", str(desk.out)]) == 0
    out = capsys.readouterr().out
    assert "verified over PCR0" in out
    assert "loads in   veracruz, qemu, nitro-cli" in out


def test_the_section_is_byte_for_byte_of_awss_form(desk: Desk) -> None:
    assert desk.sign_with_key() == 0
    section = load_eif(desk.out).signature
    assert section is not None
    pem = desk.certificate.read_bytes()
    head = b"\x81\xa2\x73signing_certificate\x99" + len(pem).to_bytes(2, "big")  # array(1), map(2), text(19), array(n)
    assert section.startswith(head)
    (entry,) = read_signatures(section)
    assert entry.pem == pem
    assert entry.cose.startswith(b"\x84\x44\xa1\x01\x38\x22\xa0\x58")  # untagged, ES384, nothing unprotected
    payload = b"\xa2\x6eregister_index\x00\x6eregister_value\x98\x30"
    assert payload in entry.cose
    assert cbor2.dumps(cbor2.loads(section)) == section


def test_the_same_key_gives_the_same_file(desk: Desk) -> None:
    assert desk.sign_with_key() == 0
    first = desk.out.read_bytes()
    assert desk.sign_with_key() == 0
    assert desk.out.read_bytes() == first


SIGNERS = {
    "DER": "sys.stdout.buffer.write(made)",
    "raw": "sys.stdout.buffer.write(b''.join(n.to_bytes(48, 'big') for n in utils.decode_dss_signature(made)))",
}


def signer_command(desk: Desk, last: str, *, digest: str = "SHA384") -> str:
    script = desk.folder / "signer.py"
    script.write_text(
        "import sys\n"
        "from cryptography.hazmat.primitives import hashes, serialization\n"
        "from cryptography.hazmat.primitives.asymmetric import ec, utils\n"
        f"key = serialization.load_pem_private_key(open({str(desk.key)!r}, 'rb').read(), None)\n"
        f"made = key.sign(sys.stdin.buffer.read(), ec.ECDSA(hashes.{digest}()))\n"
        f"{last}\n"
    )
    return shlex.join([sys.executable, str(script)])


@pytest.mark.parametrize("form", SIGNERS)
def test_a_command_signs(desk: Desk, form: str) -> None:
    assert desk.sign("--signer", signer_command(desk, SIGNERS[form]), "--out", desk.out) == 0
    section = load_eif(desk.out).signature
    assert section is not None
    verify_by_pycose(section, P384)


def test_a_key_on_another_machine_signs_in_two_steps(desk: Desk, capsys: Capture) -> None:
    tbs, sig = desk.folder / "tbs.bin", desk.folder / "sig.bin"
    assert desk.sign("--to-be-signed", tbs, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    digest = hashes.Hash(hashes.SHA384())
    digest.update(tbs.read_bytes())
    assert said["digest"] == digest.finalize().hex()
    assert cbor2.loads(tbs.read_bytes())[0] == "Signature1"
    sig.write_bytes(signing_key().sign(tbs.read_bytes(), ec.ECDSA(hashes.SHA384())))
    assert not desk.out.exists()
    assert desk.sign("--signature", sig, "--out", desk.out) == 0
    load_eif(desk.out)


@pytest.mark.parametrize(
    ("make", "words", "code"),
    [
        (lambda desk: desk.certify("secp256r1"), "not the certificate's", 1),
        (lambda desk: desk.certify(until=0, since=-2) or desk.certify(since=-2, until=-1), "expired", 1),
        (lambda desk: desk.certify(since=1, until=2), "valid from", 1),
        (lambda desk: desk.certify("secp256k1") or desk.key.write_bytes(key_pem("secp256k1")), "cannot sign images", 1),
        (lambda desk: desk.key.write_bytes(b"no key"), "not readable", 1),
        (lambda desk: desk.key.write_bytes(signing_key().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))), "encrypted", 1),
        (lambda desk: desk.certificate.write_bytes(b"no certificate"), "exactly one PEM", 2),
        (lambda desk: desk.certificate.write_bytes(desk.certificate.read_bytes() * 2), "exactly one PEM", 2),
        (lambda desk: desk.image.write_bytes(GOOD[:-1]), "not signed", 2),
        (lambda desk: desk.image.write_bytes(patched(4, ">H", 3)), "not signed", 2),
        (lambda desk: desk.image.write_bytes(b"no image"), "too short", 2),
        (lambda desk: desk.image.write_bytes(write_eif([*SECTIONS, *[(SECTIONS[4])] * 27])), "no room", 2),
    ],
)  # fmt: skip
def test_refuses_what_would_not_hold(desk: Desk, capsys: Capture, make: object, words: str, code: int) -> None:
    assert callable(make)
    make(desk)
    assert desk.sign_with_key() == code
    assert words in capsys.readouterr().err
    assert not desk.out.exists()


def test_what_is_wrong_with_the_key_or_the_signer_is_not_said_of_the_image(desk: Desk, capsys: Capture) -> None:
    desk.key.write_bytes(b"no key")
    assert desk.sign_with_key() == 1
    assert capsys.readouterr().err.startswith(f"error: {desk.key}: the private key is not readable")
    assert desk.sign("--signer", "false", "--out", desk.out) == 3
    assert capsys.readouterr().err.startswith("error: the signer failed")
    desk.certify(until=-1, since=-2)
    assert desk.sign_with_key() == 1
    assert capsys.readouterr().err.startswith("error: certificate: expired on")
    desk.image.write_bytes(GOOD[:-1])
    assert desk.sign_with_key() == 2
    assert capsys.readouterr().err.startswith(f"error: {desk.image}: not signed")


@pytest.mark.parametrize(
    ("last", "digest", "words", "code"),
    [
        (SIGNERS["DER"], "SHA256", "not by the certificate's key", 1),
        ("print('a signature')", "SHA384", "no signature", 3),
        ("sys.exit(7)", "SHA384", "got 7", 3),
        ("sys.stdout.buffer.write(made * 100)", "SHA384", "at most 1024 bytes, got more", 3),
        ("sys.stdout.close(); sys.stdin.close(); sys.exit(9)", "SHA384", "got 9", 3),
    ],
)
def test_a_command_that_signs_something_else_is_refused(
    desk: Desk, capsys: Capture, last: str, digest: str, words: str, code: int
) -> None:
    assert desk.sign("--signer", signer_command(desk, last, digest=digest), "--out", desk.out) == code
    assert words in capsys.readouterr().err
    assert not desk.out.exists()


def test_a_command_that_never_stops_writing_or_never_ends_is_ended(
    desk: Desk, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.sign("--signer", "yes", "--out", desk.out) == 3
    assert "at most 1024 bytes, got more" in capsys.readouterr().err
    monkeypatch.setattr(signer, "SIGNER_TIMEOUT", 0.3)
    for command in ("sleep 60", "sh -c 'exec >&-; exec sleep 60'"):
        assert desk.sign("--signer", command, "--out", desk.out) == 3
        assert "the signer did not end; expected within 0.3 s" in capsys.readouterr().err
    assert not desk.out.exists()


def test_a_command_that_talks_without_end_is_ended(
    desk: Desk, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signer, "SIGNER_TIMEOUT", 2)
    assert desk.sign("--signer", "sh -c 'exec yes >&2'", "--out", desk.out) == 3
    assert len(err := capsys.readouterr().err) < 70_000
    assert "the signer did not end; expected within 2 s" in err


def test_what_a_command_says_is_passed_on_escaped_and_bounded(desk: Desk, capsys: Capture) -> None:
    hostile = r"sys.stderr.buffer.write(b'touch it: \xc3\xa9 \x1b]0;owned\x07\xff\n' + b'again ' * 50_000)"
    assert desk.sign("--signer", signer_command(desk, f"{hostile}\n{SIGNERS['DER']}"), "--out", desk.out) == 0
    err = capsys.readouterr().err
    assert err.startswith("touch it: \u00e9 \\x1b]0;owned\\x07\\xff\nagain again ")
    assert "the signer says more than 65536 bytes: the rest is left out" in err
    assert len(err) < 70_000


def test_a_command_may_leave_an_agent_behind(desk: Desk) -> None:
    """An agent that it starts keeps its pipes open; the signature is there when the command ends."""
    agent = "import subprocess\nleft = subprocess.Popen(['sleep', '30'])\nopen('agent', 'w').write(str(left.pid))"
    command = signer_command(desk, f"{SIGNERS['DER']}\n{agent}".replace("'agent'", repr(str(desk.folder / "agent"))))
    start = time.monotonic()
    try:
        assert desk.sign("--signer", command, "--out", desk.out) == 0
        assert time.monotonic() - start < 20
    finally:
        os.kill(int((desk.folder / "agent").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(("command", "code"), [("/no/such/signer", 3), ("'", 2), ("", 2)])
def test_a_command_that_is_none_is_refused(desk: Desk, capsys: Capture, command: str, code: int) -> None:
    assert desk.sign("--signer", command, "--out", desk.out) == code
    assert "signer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make", [lambda: signed(sign()), flipped_signature, resigned_by_aws, lambda: signed(b"\xff"),
             SPECIMENS["two signature sections"].make, lambda: signed(bytes(40_000))],
    ids=["signed", "badly signed", "stale size", "malformed", "twice", "endless"],
)  # fmt: skip
def test_an_old_signature_is_replaced_and_all_sizes_are_right(desk: Desk, make: object) -> None:
    assert callable(make)
    desk.image.write_bytes(make())
    assert desk.sign_with_key() == 0
    raw = desk.out.read_bytes()
    layout = read_layout(BytesSource(raw))
    assert [part.type for part in layout.parts] == [*(kind for kind, _ in SECTIONS), SIGNATURE]
    assert all(part.table_size == part.stated for part in layout.parts)
    desk.image.write_bytes(GOOD)
    assert desk.sign_with_key() == 0
    assert desk.out.read_bytes() == raw  # as if the old one had never been there


def test_header_and_metadata_stay(desk: Desk) -> None:
    desk.image.write_bytes(patched(8, ">Q", 7 << 30))
    assert desk.sign_with_key() == 0
    raw = desk.out.read_bytes()
    layout = read_layout(BytesSource(raw))
    assert layout.header.default_memory == 7 << 30
    assert load_eif(desk.out).metadata == dict(SECTIONS)[METADATA]


def test_never_writes_over_what_it_reads(desk: Desk, capsys: Capture) -> None:
    (desk.folder / "same.eif").hardlink_to(desk.image)
    for out in (desk.image, desk.folder / "same.eif", desk.certificate, desk.key):
        before = out.read_bytes()
        assert desk.sign("--key", desk.key, "--out", out) == 2
        assert "would replace" in capsys.readouterr().err
        assert out.read_bytes() == before
    assert desk.sign("--key", desk.key) == 2
    assert desk.sign("--to-be-signed", desk.folder / "tbs", "--out", desk.out) == 2
    (desk.folder / "old").write_bytes(b"somebody's")
    assert desk.sign("--to-be-signed", desk.folder / "old") == 2
    assert "exists" in capsys.readouterr().err
    assert (desk.folder / "old").read_bytes() == b"somebody's"


def test_warns_of_a_key_that_others_can_read(desk: Desk, capsys: Capture) -> None:
    desk.key.chmod(0o644)
    assert desk.sign_with_key() == 0
    assert "chmod 600" in capsys.readouterr().err
    desk.key.chmod(0o600)
    assert desk.sign_with_key() == 0
    assert "chmod" not in capsys.readouterr().err


def test_a_key_in_the_traditional_form_signs(desk: Desk) -> None:
    no_encryption = serialization.NoEncryption()
    desk.key.write_bytes(signing_key().private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, no_encryption))
    assert desk.sign_with_key() == 0
