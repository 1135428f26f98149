# SPDX-License-Identifier: MIT
"""Documents that AWS signed, in the folder that the environment variable VERACRUZ_NITRO_DOCUMENTS names.

Their names tell what they are: `*_debug.cbor` were made in debug mode, `*_badsig.cbor` were changed afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest

from attestation import verify_cli
from attestation.chain import aws_root, verify_chain
from attestation.chain_certificate import load_certificate
from attestation.chain_path import is_plain, validate_by_library
from attestation.console import run_verb
from attestation.cose import TAG_SIGN1, parse_sign1
from attestation.document import parse_document
from attestation.errors import BadSignature, ClockOutOfStep, DebugEvidence, MeasurementMismatch, UntrustedChain
from attestation.expectations import Expectations, ImageIs, RegisterIs, UnsafeAcceptAnyImage, UnsafeAcceptDebug
from attestation.verifier import Appraisal, Verdict, archived_time, verify

from ..attestation.documents import IMAGE, make_envelope, make_pki, malleate
from ..attestation.second_opinion import pycose_accepts, we_accept

VARIABLE = "VERACRUZ_NITRO_DOCUMENTS"
FOLDER = os.environ.get(VARIABLE)
PATHS = sorted(Path(FOLDER).glob("*.cbor")) if FOLDER else []
BAD_SIGNATURES = [path for path in PATHS if path.stem.endswith("_badsig")]
DEBUG = [path for path in PATHS if path.stem.endswith("_debug")]
PRODUCTION = [path for path in PATHS if path not in BAD_SIGNATURES and path not in DEBUG]

pytestmark = pytest.mark.skipif(not FOLDER, reason=f"{VARIABLE} names no folder with documents that AWS signed")
ANY = Expectations.of(UnsafeAcceptAnyImage())


def _verify(raw: bytes, *, expected: Expectations = ANY, at: datetime | None = None) -> Appraisal:
    return verify(raw, expected=expected, at=at or archived_time(raw), roots=[aws_root()])


def _each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


def test_the_folder_has_documents_of_each_kind() -> None:
    assert PRODUCTION
    assert DEBUG
    assert BAD_SIGNATURES


# A row of the folder's README.md: file, time, form of the payload map, mode, registers not zero, lengths, hash.
ROW = re.compile(
    r"\| (?P<file>[^ |]+\.cbor) \| (?P<time>[0-9TZ:-]+) \| (?P<map>def|indef)\([^)]*\) \| (?P<mode>[^|]+) "
    r"\| (?P<set>[0-9,]*) \| (?P<sizes>[0-9-]+/[0-9-]+/[0-9-]+) \| (?P<sha256>[0-9a-f]{64}) \|"
)
INDEX = Path(FOLDER, "README.md") if FOLDER else Path()
ROWS = {row["file"]: row for row in map(ROW.match, INDEX.read_text().splitlines()) if row} if INDEX.is_file() else {}


def test_the_index_and_the_folder_name_the_same_documents() -> None:
    if not INDEX.is_file():
        pytest.skip("the folder has no README.md that lists it")
    assert set(ROWS) == {path.name for path in PATHS}


@_each(PATHS)
def test_the_chain_is_plain_and_cryptography_finds_it_sound_too(path: Path) -> None:
    """Point: what is judged by the plain form's rules is what AWS issues; and another implementation agrees."""
    raw = path.read_bytes()
    claims = parse_document(parse_sign1(raw).payload)
    certificates = [load_certificate(der, path.name) for der in (*claims.cabundle, claims.certificate)]
    assert is_plain(certificates, at=archived_time(raw))
    validate_by_library(certificates, at=archived_time(raw))


@_each(PATHS)
def test_a_document_is_what_the_index_says(path: Path) -> None:
    """Point: every file is judged, whatever its kind, and what is read from it is what somebody else read."""
    row = ROWS.get(path.name)
    if row is None:
        pytest.skip("the folder has no README.md that lists it")
    raw = path.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == row["sha256"]
    payload = parse_sign1(raw).payload
    document = parse_document(payload)
    assert f"{document.timestamp:%Y-%m-%dT%H:%M:%SZ}" == row["time"]
    assert ("indef" if payload[0] == 0xBF else "def") == row["map"]
    assert [index for index, value in document.pcrs.items() if any(value)] == [int(i) for i in row["set"].split(",")]
    sizes = ["-" if v is None else str(len(v)) for v in (document.public_key, document.user_data, document.nonce)]
    assert "/".join(sizes) == row["sizes"]

    allowed = Expectations.of(UnsafeAcceptAnyImage(), UnsafeAcceptDebug(development_only=False))
    if "BAD SIGNATURE" in row["mode"]:
        assert path in BAD_SIGNATURES
        with pytest.raises(BadSignature):
            _verify(raw, expected=allowed)
    else:
        expected = Verdict.DEBUG if row["mode"].startswith("debug") else Verdict.VERIFIED
        assert _verify(raw, expected=allowed).verdict is expected


@_each(PATHS)
def test_the_command_line_judges_a_document_alike(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    verify_cli.add_verbs(parser.add_subparsers(required=True))

    def run(*options: str) -> tuple[int, str, str]:
        code = run_verb(parser.parse_args(["verify", str(path), "--any-image", "--json", *options]))
        told = json.loads(capsys.readouterr().out)
        return code, told["verdict"], told["slug"]

    kind = "bad" if path in BAD_SIGNATURES else "debug" if path in DEBUG else "production"
    assert (
        run("--at", "document")
        == {
            "bad": (1, "refused", "bad-signature"),
            "debug": (1, "refused", "debug-evidence"),
            "production": (0, "verified", None),
        }[kind]
    )
    assert (
        run("--at", "document", "--allow-debug")
        == {
            "bad": (1, "refused", "bad-signature"),
            "debug": (0, "verified-debug", None),
            "production": (0, "verified", None),
        }[kind]
    )
    assert run("--at", "now") == (1, "refused", "clock-out-of-step")


@_each(PRODUCTION)
def test_a_document_verifies_at_its_own_time(path: Path) -> None:
    raw = path.read_bytes()
    appraisal = _verify(raw)
    assert appraisal.verdict is Verdict.VERIFIED
    assert f"_{appraisal.timestamp.date()}_" in path.name
    assert appraisal.root == aws_root()
    assert appraisal.module_id in appraisal.chain[0].subject
    _verify(raw, expected=Expectations.of(ImageIs.any_of([IMAGE, appraisal.measurements])))
    _verify(raw, expected=ANY & RegisterIs(4, appraisal.pcrs[4]))


@_each(PRODUCTION)
def test_a_document_is_tagged_or_not_and_has_either_s(path: Path) -> None:
    raw = path.read_bytes()
    parts = list(cbor2.loads(raw))
    assert _verify(b"\xd2" + raw) == _verify(raw)
    assert _verify(cbor2.dumps([*parts[:3], malleate(parts[3])])) == _verify(raw)


@_each(PRODUCTION)
def test_a_document_is_refused_for_another_image_now_and_under_another_root(path: Path) -> None:
    raw = path.read_bytes()
    with pytest.raises(MeasurementMismatch):
        _verify(raw, expected=Expectations.of(ImageIs.any_of([IMAGE])))
    with pytest.raises(ClockOutOfStep, match="no longer valid"):
        _verify(raw, at=datetime(2026, 11, 1, tzinfo=UTC))
    with pytest.raises(ClockOutOfStep, match="not yet valid"):
        _verify(raw, at=archived_time(raw) - timedelta(hours=4))
    with pytest.raises(UntrustedChain):
        verify(raw, expected=ANY, at=archived_time(raw), roots=[make_pki().root])


@_each(PRODUCTION)
def test_a_document_that_was_changed_is_refused(path: Path) -> None:
    parts = list(cbor2.loads(path.read_bytes()))
    instance = parse_document(parts[2]).pcrs[4]
    changed = parts[2].replace(instance, bytes([instance[0] ^ 1]) + instance[1:])
    for forged in (
        cbor2.dumps([parts[0], parts[1], changed, parts[3]]),
        cbor2.dumps([*parts[:3], parts[3][:-1] + bytes([parts[3][-1] ^ 1])]),
        make_envelope(parts[2], make_pki().keys["leaf"]),
    ):
        with pytest.raises(BadSignature):
            _verify(forged, at=archived_time(path.read_bytes()))


@_each(DEBUG)
def test_a_debug_document_is_refused_unless_allowed(path: Path) -> None:
    raw = path.read_bytes()
    for expected in (ANY, ANY & UnsafeAcceptDebug(), Expectations.of(ImageIs.any_of([IMAGE]))):
        with pytest.raises(DebugEvidence):
            _verify(raw, expected=expected)
    allowed = Expectations.of(UnsafeAcceptDebug(development_only=False))
    assert _verify(raw, expected=allowed).verdict is Verdict.DEBUG


@_each(BAD_SIGNATURES)
def test_a_bad_signature_is_refused_always(path: Path) -> None:
    permissive = ANY & UnsafeAcceptDebug(development_only=False)
    with pytest.raises(BadSignature):
        _verify(path.read_bytes(), expected=permissive)


@_each(PATHS)
def test_pycose_reaches_the_same_verdict_on_the_signature(path: Path) -> None:
    raw = path.read_bytes()
    document = parse_document(parse_sign1(raw).payload)
    moment = document.timestamp
    chain = verify_chain(document.certificate, document.cabundle, roots=[aws_root()], at=moment, made_at=moment)
    verdict = we_accept(raw, chain.key)
    assert pycose_accepts(raw, chain.key) is verdict is (path not in BAD_SIGNATURES)
    tagged = TAG_SIGN1 + raw
    assert pycose_accepts(tagged, chain.key) is we_accept(tagged, chain.key) is verdict
    if verdict:  # and on the other signature of the pair, and on neither once the payload is another
        *parts, signature = cbor2.loads(raw)
        for forged in ([*parts, malleate(signature)], [*parts[:2], parts[2][:-1] + b"\xf7", signature]):
            again = cbor2.dumps(list(forged))
            assert pycose_accepts(again, chain.key) is we_accept(again, chain.key) is (forged[2] == parts[2])
