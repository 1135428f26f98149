# SPDX-License-Identifier: MIT
"""`attest verify`: its options, its exit codes, what it says and where; and the client script."""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from attestation import verify_cli
from attestation.binding import Binding, Purpose, policy_hash
from attestation.chain import CLOCK_LEEWAY
from attestation.cli import main
from attestation.console import run_verb
from attestation.identity import make_identity
from attestation.measurements import Measurements, dump_measurements, role_pcr, signer_pcr
from attestation.verifier import Verdict

from .documents import (
    DEBUG,
    IMAGE,
    INSTANCE_ID,
    MADE_AT,
    MODULE_ID,
    NONCE,
    OTHER_IMAGE,
    PUBLIC_KEY,
    make_document,
    make_envelope,
    make_fields,
    make_payload,
    make_pcrs,
    make_pki,
    milliseconds,
)

PKI = make_pki()
AT = MADE_AT.isoformat()
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `verify` with arguments; argparse's own refusals count as exit codes."""

    def run(*arguments: str | Path) -> Result:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        verify_cli.add_verbs(parser.add_subparsers(required=True))
        try:
            code = run_verb(parser.parse_args(["verify", *map(str, arguments)]))
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@dataclass(frozen=True)
class Files:
    folder: Path
    document: Path
    root: Path
    measurements: Path
    policy: Path

    @property
    def options(self) -> tuple[str | Path, ...]:
        """What verifies the document: root, time and image."""
        return ("--root", self.root, "--at", AT, "--measurements", self.measurements)

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


def _measurements_file(image: Measurements) -> bytes:
    return json.dumps(dump_measurements(image)).encode()


def _policy(certificate: str, image: Measurements = IMAGE, **changes: Any) -> bytes:
    registers = {f"PCR{index}": value.hex() for index, value in enumerate(image.registers)}
    policy = {
        "schema": "veracruz.policy/1",
        "name": "test",
        "images": [registers],
        "participants": [{"name": "alice", "certificate": certificate, "rights": {"/output/": ["read"]}}],
        "join": ["alice"],
        "programs": [
            {"path": "/program/p.wasm", "sha256": "ab" * 32, "rights": {"/output/": ["write"]}},
        ],
        **changes,
    }
    return json.dumps(policy).encode()


@pytest.fixture(scope="module")
def certificate() -> str:
    return make_identity("alice")[1].decode()


@pytest.fixture
def files(tmp_path: Path, certificate: str) -> Files:
    policy = _policy(certificate)
    digest = policy_hash(policy)
    user_data = Binding(Purpose.SESSION, digest, None).encode()
    document = make_document(PKI, pcrs=make_pcrs(policy_hash=digest), user_data=user_data)
    root = x509.load_der_x509_certificate(PKI.certificates["root"]).public_bytes(Encoding.PEM)
    contents = {
        "document": document,
        "root.pem": root,
        "measurements.json": _measurements_file(IMAGE),
        "policy.json": policy,
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return Files(tmp_path, *(tmp_path / name for name in contents))


def test_verified_evidence_exits_0_with_a_verdict(run: Run, files: Files) -> None:
    result = run(files.document, *files.options, "--nonce", NONCE.hex(), "--public-key", PUBLIC_KEY.hex())
    assert result.code == 0
    assert result.out.startswith(f"verified-development: {MODULE_ID}\n")
    assert IMAGE.pcr0.hex() in result.out
    assert NONCE.hex() in result.out
    assert "is not AWS's root" in result.err


def test_json_has_the_documented_form(run: Run, files: Files) -> None:
    result = run(files.document, *files.options, "--policy", files.policy, "--json")
    assert result.code == 0
    verdict = result.json
    assert verdict["schema"] == "veracruz.appraisal/1"
    assert verdict["verdict"] == "verified-development"
    assert verdict["slug"] is None
    assert verdict["module_id"] == MODULE_ID
    assert datetime.fromisoformat(verdict["timestamp"]) == MADE_AT
    assert verdict["Measurements"] == dump_measurements(IMAGE)["Measurements"]
    assert verdict["pcrs"]["0"] == IMAGE.pcr0.hex()
    assert verdict["nonce"] == NONCE.hex()
    assert verdict["root"]["sha256"] == PKI.root.fingerprint.hex()
    assert len(verdict["chain"]) == 5
    assert [check["point"] for check in verdict["checks"]] == [1, 2, 3, 5, 5, 6]


def test_json_of_refused_evidence_repeats_nothing_as_a_fact(run: Run, files: Files) -> None:
    result = run(files.document, *files.options, "--nonce", "00" * 32, "--json")
    assert result.code == 1
    verdict = result.json
    assert (verdict["verdict"], verdict["slug"]) == ("refused", "nonce-mismatch")
    assert verdict["module_id"] is verdict["timestamp"] is verdict["Measurements"] is None
    assert verdict["expected"] == "00" * 32
    assert "error: the document answers another nonce" in result.err


def test_refused_evidence_has_nothing_on_stdout(run: Run, files: Files) -> None:
    result = run(files.document, *files.options, "--nonce", "00" * 32, "-v")
    assert (result.code, result.out) == (1, "")
    assert "verified" not in result.err
    assert "ok" not in result.err.lower().split()


def test_verbose_says_each_check_that_passed_and_no_other(run: Run, files: Files) -> None:
    checked = [line for line in run(files.document, *files.options, "-v").err.splitlines() if "checked" in line]
    assert [line.split()[1] for line in checked] == ["(1)", "(2)", "(3)", "(5)", "(5)"]

    payload = make_payload(make_fields(PKI))
    forged = files.write("forged", make_envelope(payload, make_pki().keys["leaf"]))
    result = run(forged, *files.options, "-v")
    assert result.code == 1
    checked = [line for line in result.err.splitlines() if "checked" in line]
    assert [line.split()[1] for line in checked] == ["(1)", "(2)"]


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda raw: raw,
    "hex": lambda raw: raw.hex().encode(),
    "capital hex with line breaks": lambda raw: b"\n".join(
        raw.hex().upper().encode()[n : n + 64] for n in range(0, 2 * len(raw), 64)
    ),
    "base64": base64.b64encode,
    "base64 with line breaks": base64.encodebytes,
    "base64 with CRLF": lambda raw: base64.encodebytes(raw).replace(b"\n", b"\r\n"),
    "URL-safe base64": base64.urlsafe_b64encode,
    "tagged, in base64": lambda raw: base64.b64encode(b"\xd2" + raw),
    "base64 without padding": lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"="),
    "base64 after a byte order mark": lambda raw: b"\xef\xbb\xbf" + base64.b64encode(raw) + b"\r\n",
    "hex with 0x": lambda raw: b"0x" + raw.hex().encode(),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_the_encoding_of_the_file_is_found(run: Run, files: Files, encode: Callable[[bytes], bytes]) -> None:
    encoded = files.write("encoded", encode(files.document.read_bytes()))
    assert run(encoded, *files.options).code == 0


def test_a_dash_reads_stdin(run: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, code in ((files.document.read_bytes(), 0), (b"", 1), (b"x" * 100_000, 1)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert run("-", *files.options).code == code


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"hello, world", b"\x00\x01", b"8", b"{}", b"\x84", b"=" * 8, "\u00e9".encode()]
)
def test_a_file_without_a_document_is_refused(run: Run, files: Files, raw: bytes) -> None:
    result = run(files.write("bad", raw), *files.options, "--json")
    assert (result.code, result.json["slug"]) == (1, "malformed-evidence")


def test_any_of_several_measurements_files_will_do(run: Run, files: Files) -> None:
    other = files.write("other.json", _measurements_file(OTHER_IMAGE))
    options = ("--root", files.root, "--at", AT)
    assert run(files.document, *options, "--measurements", other, "--measurements", files.measurements).code == 0
    result = run(files.document, *options, "--measurements", other, "--json")
    assert (result.code, result.json["slug"]) == (1, "measurement-mismatch")


def _registers(image: Measurements) -> list[str]:
    return [f"--pcr={index}={value.hex()}" for index, value in enumerate(image.registers)]


def test_registers_can_be_given_one_by_one(run: Run, files: Files) -> None:
    options = ("--root", files.root, "--at", AT)
    assert run(files.document, *options, *_registers(IMAGE)).code == 0
    assert run(files.document, *options, *_registers(OTHER_IMAGE)).code == 1
    assert run(files.document, *files.options, "--pcr", f"4={make_pcrs()[4].hex()}").code == 0
    assert run(files.document, *files.options, "--pcr", "5=" + "ab" * 48).code == 1
    assert run(files.document, *files.options, "--pcr", "20=" + "00" * 48).code == 1


def test_nothing_that_names_an_image_is_a_usage_error(run: Run, files: Files) -> None:
    options = ("--root", files.root, "--at", AT)
    for more in (
        (),
        ("--nonce", NONCE.hex()),
        ("--policy", files.policy),
        ("--pcr", f"0={IMAGE.pcr0.hex()}"),
        ("--max-age", "60"),
    ):
        result = run(files.document, *options, *more)
        assert result.code == 2
        assert "image" in result.err or "nothing is demanded" in result.err
        assert "hint:" in result.err


def test_any_image_is_accepted_aloud(run: Run, files: Files) -> None:
    result = run(files.document, "--root", files.root, "--at", AT, "--any-image")
    assert result.code == 0
    assert "--any-image" in result.err


def test_a_policy_binds_pcr16_and_user_data(run: Run, files: Files, certificate: str) -> None:
    assert run(files.document, *files.options, "--policy", files.policy).code == 0
    other = files.write("other.json", _policy(certificate, name="another"))
    result = run(files.document, *files.options, "--policy", other, "--json")
    assert (result.code, result.json["slug"]) == (1, "policy-mismatch")
    malformed = files.write("malformed.json", b"{}")
    assert run(files.document, *files.options, "--policy", malformed).code == 2


def test_an_image_must_be_named_by_policy_and_measurements(run: Run, files: Files, certificate: str) -> None:
    policy = files.write("p.json", _policy(certificate, OTHER_IMAGE))
    result = run(files.document, *files.options, "--policy", policy, "--json")
    assert (result.code, result.json["slug"]) == (1, "measurement-mismatch")
    options = ("--root", files.root, "--at", AT, "--any-image", "--json")
    assert run(files.document, *options, "--policy", policy).json["slug"] == "measurement-mismatch"
    assert run(files.document, *options, "--policy", files.policy).code == 0


def test_a_policy_that_names_a_root_narrows_the_choice(run: Run, files: Files, certificate: str) -> None:
    for root, code in ((PKI.root.fingerprint.hex(), 0), ("aws", 1), ("ab" * 32, 1)):
        policy = _policy(certificate, root=root)
        digest = policy_hash(policy)
        document = make_document(
            PKI,
            pcrs=make_pcrs(policy_hash=digest),
            user_data=Binding(Purpose.SESSION, digest, None).encode(),
        )
        result = run(files.write("d", document), *files.options, "--policy", files.write("p.json", policy), "--json")
        assert result.code == code
        assert result.json["slug"] == (None if code == 0 else "untrusted-chain")


def test_the_public_key_is_hex_or_a_file(run: Run, files: Files) -> None:
    der = files.write("key.der", PUBLIC_KEY)
    key = load_der_public_key(PUBLIC_KEY)
    pem = files.write("key.pem", key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for given in (PUBLIC_KEY.hex(), PUBLIC_KEY.hex().upper(), der, pem):
        assert run(files.document, *files.options, "--public-key", given).code == 0
    leaf = PKI.keys["leaf"].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for given in (leaf.hex(), files.write("leaf.der", leaf)):
        result = run(files.document, *files.options, "--public-key", given, "--json")
        assert (result.code, result.json["slug"]) == (1, "key-mismatch")
    for given in (files.write("junk", b"junk"), files.root, "abc", files.folder):
        assert run(files.document, *files.options, "--public-key", given).code == 2


def test_user_data_is_compared(run: Run, files: Files) -> None:
    user_data = Binding(Purpose.SESSION, policy_hash(files.policy.read_bytes()), None).encode()
    assert run(files.document, *files.options, "--user-data", user_data.hex()).code == 0
    assert run(files.document, *files.options, "--user-data", "00").code == 1


def test_time_is_now_unless_another_is_given(run: Run, files: Files) -> None:
    options = ("--root", files.root, "--measurements", files.measurements, "--json")
    old = files.write("old", make_document(PKI, timestamp=milliseconds(MADE_AT)))
    years = (MADE_AT + timedelta(days=3000)).isoformat()
    assert run(old, *options, "--at", years).json["slug"] == "clock-out-of-step"
    result = run(old, *options, "--at", "document")
    assert result.code == 0
    assert "says nothing about now" in result.err
    assert run(old, *options, "--at", AT.replace("+00:00", "Z")).code == 0
    assert run(old, *options, "--at", "2026-11-01T13:00:00+01:00").code == 0


def test_evidence_of_today_verifies_by_this_machines_clock(run: Run, files: Files) -> None:
    document, root = _fresh(files)
    options = ("--root", root, "--measurements", files.measurements)
    assert run(document, *options, "--max-age", "60").code == 0
    assert run(document, *options, "--at", "now").code == 0


def _fresh(files: Files) -> tuple[Path, Path]:
    now = datetime.now(UTC)
    pki = make_pki(at=now)
    root = x509.load_der_x509_certificate(pki.certificates["root"]).public_bytes(Encoding.PEM)
    document = make_document(pki, timestamp=milliseconds(now))
    return files.write("fresh", document), files.write("fresh.pem", root)


def test_age_is_limited_where_asked(run: Run, files: Files) -> None:
    options = ("--root", files.root, "--measurements", files.measurements, "--json")
    later = (MADE_AT + timedelta(minutes=2)).isoformat()
    assert run(files.document, *options, "--at", later, "--max-age", "120").code == 0
    assert run(files.document, *options, "--at", later, "--max-age", "119").json["slug"] == "stale-evidence"


def test_debug_mode_is_refused_unless_allowed(run: Run, files: Files) -> None:
    document = files.write("debug", make_document(PKI, pcrs=make_pcrs(DEBUG)))
    result = run(document, *files.options, "--json")
    assert (result.code, result.json["slug"]) == (1, "debug-evidence")
    options = ("--root", files.root, "--at", AT, "--allow-debug")
    result = run(document, *options, "--json")
    assert (result.code, result.json["verdict"]) == (0, Verdict.DEBUG.value)
    assert "--allow-debug" in result.err
    # No image is named for a document that is not in debug mode: it is refused, and the others are judged all the same.
    result = run(files.document, document, *options, "--json", "-v")
    told: Any = result.json
    assert result.code == 1
    assert [(one["verdict"], one["slug"]) for one in told] == [
        ("refused", "empty-expectations"), (Verdict.DEBUG.value, None)
    ]  # fmt: skip
    assert told[0]["checks"][-1] == {"point": 5, "what": "an image that is accepted", "passed": False}


def test_what_was_accepted_leaves_its_trace(run: Run, files: Files) -> None:
    told = run(files.document, "--root", files.root, "--at", "document", "--any-image", "--json").json
    assert told["time"] == "document"
    assert "not in debug mode; any image was accepted" in [check["what"] for check in told["checks"]]
    told = run(files.document, *files.options, "--json").json
    assert told["time"] == "given"
    assert not any("any image" in check["what"] for check in told["checks"])


REGISTERS = [word for index in range(3) for word in ("--pcr", f"{index}={'01' * 48}")]


@pytest.mark.parametrize("option", [("--measurements",), ("--signer", "08" * 48), tuple(REGISTERS)])
def test_any_image_does_not_go_with_an_image(run: Run, files: Files, option: tuple[str, ...]) -> None:
    words = [*option, files.measurements] if len(option) == 1 else option
    result = run(files.document, *words, "--root", files.root, "--at", AT, "--any-image")
    assert result.code == 2
    assert "--any-image does not go with" in result.err


def test_a_time_of_the_wrong_form_is_told_before_any_document_is_judged(run: Run, files: Files) -> None:
    options = ["yesterday" if option == AT else option for option in files.options]
    result = run(files.write("empty", b""), *options, "--json")
    assert result.code == 2
    assert "--at: wrong form" in result.err


def test_a_root_may_be_of_der(run: Run, files: Files) -> None:
    root = files.write("root.der", PKI.root.certificate)
    options = [root if option == files.root else option for option in files.options]
    assert run(files.document, *options).code == 0


def test_a_usage_error_is_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--no-such", "--", "--json"])
    assert capsys.readouterr().out == "", "a file's name"
    for words in (["verify", "x", "--no-such", "--json"], ["verify", "--json"], ["nothing", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert json.loads(said.out)["error"]["slug"] == "usage"
        assert "usage: " in said.err
    with pytest.raises(SystemExit):
        main(["verify"])
    assert capsys.readouterr().out == ""


def test_the_root_of_aws_is_the_default(run: Run, files: Files) -> None:
    for options in ((), ("--root", "aws")):
        result = run(files.document, *options, "--at", AT, "--measurements", files.measurements, "--json")
        assert (result.code, result.json["slug"]) == (1, "untrusted-chain")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--root", "aws"], id="root twice"),
        pytest.param(["--pcr", "0"], id="register without a value"),
        pytest.param(["--pcr", "32=" + "00" * 48], id="register 32"),
        pytest.param(["--pcr", "-1=" + "00" * 48], id="register -1"),
        pytest.param(["--pcr", "0=00"], id="short register"),
        pytest.param(["--pcr", "4=" + "00" * 48, "--pcr", "04=" + "00" * 48], id="register twice"),
        pytest.param(["--nonce", ""], id="empty nonce"),
        pytest.param(["--nonce", "abc"], id="odd nonce"),
        pytest.param(["--nonce", "zz"], id="nonce that is not hex"),
        pytest.param(["--nonce", "00" * 1025], id="long nonce"),
        pytest.param(["--user-data", " 00"], id="user data with a blank"),
        pytest.param(["--max-age", "-1"], id="negative age"),
        pytest.param(["--max-age", "1h"], id="age with a unit"),
        pytest.param(["--max-age", "9" * 12], id="age of ages"),
        pytest.param(["--at", "yesterday"], id="no time"),
        pytest.param(["--at", "2026-11-01T12:00:00"], id="time without a zone"),
        pytest.param(["--at", "0001-01-01T00:00:00+14:00"], id="time before the first"),
        pytest.param(["--measurements", "missing.json"], id="missing file"),
        pytest.param(["--policy", "missing.json"], id="missing policy"),
        pytest.param(["--any"], id="abbreviation"),
        pytest.param(["--nonce", "00", "--nonce", "01"], id="nonce twice"),
        pytest.param(["--policy", "a", "--policy", "b"], id="policy twice"),
        pytest.param(["--signer", "00" * 48], id="signer zero"),
        pytest.param(["--signer", "missing.pem"], id="missing signer"),
        pytest.param(["--module-id", ""], id="empty module"),
        pytest.param(["--instance-id", "i\n"], id="instance with a line break"),
        pytest.param(["--role", "arn:aws:iam::123456789012:instance-profile/x"], id="instance profile for a role"),
        pytest.param(["--at", "document", "--max-age", "60"], id="age at the document's own time"),
        pytest.param(["-", "-"], id="stdin twice"),
    ],
)
def test_usage_errors_exit_2(run: Run, files: Files, arguments: list[str]) -> None:
    options = [option for option in files.options if option not in ("--at", AT) or "--at" not in arguments]
    result = run(files.document, *options, *arguments)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


def test_a_document_that_is_too_large_is_refused_and_keeps_no_other_from_its_verdict(run: Run, files: Files) -> None:
    large = files.write("large", bytes(100_000))
    result = run(large, files.document, *files.options, "--json")
    assert result.code == 1
    assert [(told["verdict"], told["slug"]) for told in json.loads(result.out)] == [
        ("refused", "malformed-evidence"),
        ("verified-development", None),
    ]


def test_missing_and_oversized_files_are_usage_errors(run: Run, files: Files) -> None:
    assert run(files.folder / "missing", *files.options).code == 2
    assert run(files.folder, *files.options).code == 2
    options = ("--at", AT, "--measurements", files.measurements)
    assert run(files.document, *options, "--root", files.folder / "missing.pem").code == 2
    assert run(files.document, *options, "--root", files.document).code == 2


def test_control_characters_of_evidence_do_not_reach_the_terminal(run: Run, files: Files) -> None:
    fields = make_fields(PKI, module_id="i-0\x1b[2J\n")
    bad = files.write("bad", make_envelope(cbor2.dumps(fields), PKI.keys["leaf"]))
    result = run(bad, *files.options)
    assert result.code == 1
    assert "\x1b" not in result.err + result.out


ROLE = "arn:aws:iam::123456789012:role/Webserver"


def test_who_signed_and_where_it_runs_can_be_demanded(run: Run, files: Files) -> None:
    der = PKI.certificates["regional"]
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    pcrs = make_pcrs(pcr3=role_pcr(ROLE), pcr8=signer_pcr(der))
    document = files.write("signed", make_document(PKI, pcrs=pcrs))
    right = {
        "--signer": files.write("signer.pem", pem),
        "--module-id": MODULE_ID,
        "--instance-id": INSTANCE_ID,
        "--role": ROLE,
    }
    result = run(document, *files.options, *(word for pair in right.items() for word in pair), "--json")
    assert (result.code, result.err.count("error:")) == (0, 0)
    checked = {check["what"] for check in result.json["checks"]}
    for word in ("signed by", MODULE_ID, INSTANCE_ID, ROLE):
        assert any(word in what for what in checked)

    for signer in (files.write("signer.der", der), signer_pcr(der).hex(), signer_pcr(der).hex().upper()):
        assert run(document, "--root", files.root, "--at", AT, "--signer", signer).code == 0  # it names the image
    wrong = {
        "--signer": (files.root, "PCR8"),
        "--module-id": (MODULE_ID + "0", "module"),
        "--instance-id": (INSTANCE_ID + "0", "PCR4"),
        "--role": (ROLE + "s", "PCR3"),
    }
    for option, (value, word) in wrong.items():
        result = run(document, *files.options, option, value, "--json")
        assert (result.code, result.json["slug"]) == (1, "field-mismatch")
        assert word in result.json["message"]
        assert [check["passed"] for check in result.json["checks"]][-2:] == [True, False]
    for junk in (b"", b"0junk", pem + pem, files.document.read_bytes()):
        assert run(document, *files.options, "--signer", files.write("junk", junk)).code == 2


def test_verbose_says_what_failed_and_nothing_after(run: Run, files: Files) -> None:
    result = run(files.document, *files.options, "--nonce", "00" * 32, "--user-data", "00", "-v")
    lines = [line for line in result.err.splitlines() if line.startswith(("checked", "failed"))]
    assert lines[-1] == f"failed  (4) nonce {'00' * 32}"
    assert sum(line.startswith("failed") for line in lines) == 1


def test_several_documents_have_a_line_each(run: Run, files: Files) -> None:
    bad = files.write("bad", make_document(make_pki()))
    empty = files.write("empty", b"")
    result = run(files.document, bad, empty, *files.options)
    assert result.code == 1
    assert result.out.splitlines() == [
        f"{files.document}: verified-development: {MODULE_ID}",
        f"{bad}: refused: untrusted-chain",
        f"{empty}: refused: malformed-evidence",
    ]
    assert f"error: {bad}: " in result.err
    assert run(files.document, files.document, *files.options).code == 0


def test_one_reason_for_all_documents_is_told_of_each_by_its_own_name(run: Run, files: Files, certificate: str) -> None:
    policy = files.write("p.json", _policy(certificate, OTHER_IMAGE))
    other = files.write("second", files.document.read_bytes())
    result = run(files.document, other, *files.options, "--policy", policy)
    reason = "the policy accepts no image that your measurements name"
    assert f"error: {files.document}: {reason}" in result.err
    assert f"error: {other}: {reason}" in result.err


def test_what_several_documents_share_changes_no_verdict(run: Run, files: Files) -> None:
    """Their certificates are checked once; each verdict, check and reason is the one that it has alone."""
    raw = files.document.read_bytes()
    names = [files.document, files.write("forged", raw[:-1] + bytes([raw[-1] ^ 1])), files.write("cut", raw[:-9])]
    for time in (AT, "2026-11-01T18:00:00Z"):
        options = (*files.options[:2], "--at", time, *files.options[4:], "--json")
        assert run(*names, *names, *options).json == [run(name, *options).json for name in names] * 2


def test_several_documents_make_a_list_in_json(run: Run, files: Files) -> None:
    result = run(files.document, files.write("empty", b""), *files.options, "--json")
    told: Any = result.json
    assert [one["verdict"] for one in told] == ["verified-development", "refused"]
    assert [one["file"] for one in told] == [str(files.document), str(files.folder / "empty")]
    for one in told:
        check_form(one)


def test_one_unreadable_file_of_several_leaves_no_verdict(run: Run, files: Files) -> None:
    result = run(files.document, files.folder / "missing", *files.options)
    assert (result.code, result.out) == (2, "")
    assert "missing" in result.err


HEX = r"([0-9a-f]{2})*"
FORM: dict[str, Any] = {
    "schema": "veracruz.appraisal/1",
    "file": str,
    "verdict": "verified|verified-development|verified-debug|refused",
    "slug": (None, "[a-z-]+"),
    "message": (None, str),
    "expected": (None, str),
    "actual": (None, str),
    "hint": (None, str),
    "verified_at": (None, datetime),
    "time": "now|given|document",
    "module_id": (None, str),
    "timestamp": (None, datetime),
    "digest": (None, "SHA384"),
    "Measurements": (None, {"HashAlgorithm": str, "PCR0": HEX, "PCR1": HEX, "PCR2": HEX}),
    "pcrs": (None, dict),
    "public_key": (None, HEX),
    "user_data": (None, HEX),
    "nonce": (None, HEX),
    "root": (None, {"name": str, "sha256": HEX, "development": bool}),
    "chain": (None, [{"subject": str, "not_before": datetime, "not_after": datetime}]),
    "checks": [{"point": int, "what": str, "passed": bool}],
}


def check_form(value: Any, form: Any = FORM) -> None:
    """Hold a value against a form: types, patterns, every key of an object and no other."""
    if isinstance(form, tuple):
        if value is not None:
            check_form(value, form[1])
    elif isinstance(form, dict):
        assert list(value) == list(form)
        for key, inner in form.items():
            check_form(value[key], inner)
    elif isinstance(form, list):
        for inner in value:
            check_form(inner, form[0])
    elif isinstance(form, str):
        assert re.fullmatch(form, value), (value, form)
    elif form is datetime:
        assert datetime.fromisoformat(value).utcoffset() is not None
    else:
        assert type(value) is form, (value, form)


def test_every_verdict_has_the_same_keys(run: Run, files: Files) -> None:
    debug = files.write("debug", make_document(PKI, pcrs=make_pcrs(DEBUG)))
    seen = set()
    for document, more in (
        (files.document, ()),
        (files.document, ("--nonce", "00")),
        (files.document, ("--at", "2030-01-01T00:00:00Z")),
        (debug, ("--allow-debug",)),
        (debug, ()),
        (files.write("junk", b"junk"), ()),
        (files.write("junk", b"\x84"), ("--at", "document")),
    ):
        options = [option for option in files.options if option not in ("--at", AT) or "--at" not in more]
        told = run(document, *options, *more, "--json").json
        check_form(told)
        facts = ("module_id", "timestamp", "digest", "Measurements", "pcrs", "root", "chain")
        assert len({told[fact] is None for fact in facts}) == 1
        assert (told["verdict"] == "refused") == (told["slug"] is not None) == (told["module_id"] is None)
        assert (told["verdict"] == "refused") == any(not check["passed"] for check in told["checks"])
        seen.add(told["verdict"])
    assert seen == {"verified-development", "verified-debug", "refused"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(b"", "nothing is in it", id="empty"),
        pytest.param(b"\xef\xbb\xbf \n", "nothing is in it", id="a mark and blanks"),
        pytest.param("hEQ=".encode("utf-16"), "UTF-16", id="UTF-16"),
        pytest.param(b"-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n", "PEM (EC PRIVATE KEY)", id="PEM"),
        pytest.param(b'{"document": "hEQ="}', "JSON", id="JSON"),
        pytest.param(b"<html>", "HTML", id="HTML"),
        pytest.param(b"8444a1013822a", "hex that is cut", id="odd hex"),
        pytest.param(b"hESha", "base64 that is cut", id="cut base64"),
    ],
)
def test_what_is_no_document_is_named(run: Run, files: Files, raw: bytes, words: str) -> None:
    result = run(files.write("other", raw), *files.options)
    assert result.code == 1
    assert words in result.err
    assert "c2VjcmV0" not in result.err


def test_a_terminal_is_no_document(run: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b""))
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    result = run("-", *files.options)
    assert result.code == 2
    assert "terminal" in result.err


def test_a_replay_within_the_certificates_life_is_noted(run: Run, files: Files) -> None:
    document, root = _fresh(files)
    options = ("--root", root, "--measurements", files.measurements)
    assert "replay" in run(document, *options).err
    assert "replay" not in run(document, *options, "--nonce", NONCE.hex()).err


def test_the_root_of_another_partition_is_not_the_default_and_says_so(run: Run, files: Files) -> None:
    """A root of AWS's other partitions is a file like any; only G1, known by its hash, gives the plain verdict."""
    pki = make_pki(root={"name": "aws-cn.nitro-enclaves"})
    root = x509.load_der_x509_certificate(pki.certificates["root"]).public_bytes(Encoding.PEM)
    document = files.write("cn", make_document(pki))
    options = ("--at", AT, "--measurements", files.measurements)
    result = run(document, *options, "--root", files.write("cn.pem", root), "--json")
    assert (result.code, result.json["verdict"]) == (0, "verified-development")
    assert "aws-cn.nitro-enclaves" in result.json["root"]["name"]
    assert "aws-cn.nitro-enclaves" in result.err
    for other in ("aws", files.root):
        refused = run(document, *options, "--root", other, "--json")
        assert (refused.code, refused.json["slug"]) == (1, "untrusted-chain")


def test_help_states_the_leeway_and_the_exit_codes(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    assert f"clocks may differ by {CLOCK_LEEWAY.total_seconds():.0f} s" in text
    assert "Exit codes: 0" in text


def test_the_client_script_is_short_and_verifies(files: Files) -> None:
    script = REPOSITORY / "scripts" / "verify_attestation.py"
    assert len(script.read_text().splitlines()) < 40
    document, root = _fresh(files)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, check=False,
            env={"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip

    done = run(document, files.measurements, NONCE.hex(), root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"verified-development {MODULE_ID} {PUBLIC_KEY.hex()}\n"
    done = run(document, files.measurements, "00" * 32, root)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nonce-mismatch: ")
    for arguments in (
        (), (document,), (document, files.measurements), (document, files.measurements, "00" * 32, root, root),
        (document, files.measurements, "zz", root), (files.folder / "missing", root, "00", root),
    ):  # fmt: skip
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: " in done.stderr or done.stderr.startswith("malformed-input: ")
        assert "Traceback" not in done.stderr
