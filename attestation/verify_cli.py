# SPDX-License-Identifier: MIT
"""`attest verify`: read a document and what is expected of it, verify, say what was found."""

from __future__ import annotations

import argparse
import base64
import binascii
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from .chain import Root
from .console import Commands, emit, new_parser, report, say, warn
from .errors import EXIT_OK, AttestationError, EmptyExpectations, MalformedEvidence, MalformedInput, UsageError
from .expectations import (
    Expectations,
    ImageIs,
    MaxAge,
    NonceIs,
    PolicyIs,
    PublicKeyIs,
    RegisterIs,
    RootIs,
    Term,
    UnsafeAcceptAnyImage,
    UnsafeAcceptDebug,
    UserDataIs,
    accepted_images,
)
from .files import read_limited
from .input_files import read_measurements, read_policy, read_root
from .limits import MAX_CERTIFICATE_PEM, MAX_DOCUMENT
from .measurements import dump_measurements
from .verifier import Appraisal, Check, Verdict, archived_time, examine

SCHEMA = "veracruz.appraisal/1"
SHOWN = 16  # bytes of what is no document: it may be a private key
MAX_TEXT = 4 * MAX_DOCUMENT  # bytes of a document written as hex or base64, with line breaks
MAX_AGE = timedelta(days=36500)  # timedelta overflows somewhere above


def add_verbs(commands: Commands) -> None:
    """Add the verb `verify`."""
    parser = new_parser(commands, "verify", summary="verify an attestation document", run=verify_file)
    add = parser.add_argument
    add("file", metavar="FILE", help="the document: raw, base64 or hex; - reads stdin")
    add(
        "--measurements",
        metavar="FILE",
        action="append",
        default=[],
        type=Path,
        help="PCR0, PCR1 and PCR2 of an accepted image (ours or nitro-cli's JSON); repeat for any one of several",
    )
    add("--pcr", metavar="N=HEX", action="append", default=[], help="value of one register; repeat for more")
    add("--policy", metavar="FILE", type=Path, help="the policy that the isolate must be bound to")
    add("--nonce", metavar="HEX", help="the nonce that the document must answer")
    add("--public-key", metavar="HEX|FILE", help="the public key that it must name (a FILE is DER or PEM SPKI)")
    add("--user-data", metavar="HEX", help="the user data that it must carry")
    add("--root", metavar="aws|FILE", action=_Once, default="aws", help="the root to trust (default: AWS's G1)")
    add(
        "--at",
        metavar="TIME|document|now",
        default="now",
        help="verify at this time (ISO 8601), at the document's own, or now (default)",
    )
    add("--max-age", metavar="SECONDS", help="refuse a document made longer ago")
    add("--allow-debug", action="store_true", help="unsafe: accept an isolate in debug mode")
    add("--any-image", action="store_true", help="unsafe: accept whatever code runs in the isolate")
    add("-v", "--verbose", action="store_true", help="say each check that passed, on stderr")  # fmt: skip


class _Once(argparse.Action):
    """An option that may stand once: of two roots it would not be clear which one is trusted."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if getattr(namespace, f"{self.dest}_given", False):
            parser.error(f"{'/'.join(self.option_strings)} may be given once")
        setattr(namespace, self.dest, values)
        setattr(namespace, f"{self.dest}_given", True)


@dataclass(frozen=True, slots=True)
class _Request:
    document: bytes
    expected: Expectations
    at: datetime
    root: Root


def verify_file(args: argparse.Namespace) -> int:
    """Verify one document; print the appraisal or the refusal."""
    checks: list[Check] = []
    try:
        appraisal = _examine(_request(args), checks, verbose=args.verbose)
    except EmptyExpectations:
        raise  # the caller's fault, not the evidence's
    except AttestationError as error:
        if args.json:
            emit(args, _refusal(error, checks), "")
        report(error, as_json=False)
        return error.exit_code
    emit(args, _verdict(appraisal, checks), _text(appraisal))
    return EXIT_OK


def _request(args: argparse.Namespace) -> _Request:
    text = _read(args.file)
    expected, root = _expectations(args), read_root(args.root)
    expected.require_content()
    _say_what_is_unsafe(args, root)
    document = decode_evidence(text)
    return _Request(document, expected, _time(args.at, document), root)


def _examine(request: _Request, checks: list[Check], *, verbose: bool) -> Appraisal:
    steps = examine(request.document, expected=request.expected, at=request.at, roots=[request.root])
    while True:
        try:
            check = next(steps)
        except StopIteration as end:
            appraisal: Appraisal = end.value
            return appraisal
        checks.append(check)
        if verbose:
            say(f"checked ({check.point}) {check.what}")


def decode_evidence(raw: bytes) -> bytes:
    """Return the document in a file: as it is if it begins as a COSE_Sign1 does, else decoded from hex or base64."""
    if raw[:1] in (b"\x84", b"\xd2"):
        return raw
    text = b"".join(raw.split())
    try:
        if re.fullmatch(rb"[0-9A-Fa-f]+", text):
            return binascii.unhexlify(text)
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except ValueError as error:  # binascii.Error is one
        raise MalformedEvidence(
            "the file holds no attestation document", expected="COSE_Sign1, raw or in base64 or hex", actual=raw[:SHOWN]
        ) from error


def _read(name: str) -> bytes:
    if name != "-":
        return read_limited(Path(name), limit=MAX_TEXT, what="document")
    raw = sys.stdin.buffer.read(MAX_TEXT + 1)
    if len(raw) > MAX_TEXT:
        raise UsageError("the document is too large", expected=f"at most {MAX_TEXT} bytes")
    return raw


def _expectations(args: argparse.Namespace) -> Expectations:
    terms: list[Term] = [_register(text) for text in args.pcr]
    measured = read_measurements(args.measurements)
    if args.any_image:
        terms.append(UnsafeAcceptAnyImage())
    if args.policy is not None:
        policy = read_policy(args.policy)
        if measured:
            terms.append(accepted_images(policy, measured))
        elif Expectations(tuple(terms)).names_image:  # the policy alone names no image: whoever wrote it did
            terms.append(ImageIs.any_of(policy.images))
        terms.append(PolicyIs(policy.hash))
        if policy.root is not None:
            terms.append(RootIs(policy.root))
    elif measured:
        terms.append(ImageIs.any_of(measured))
    if args.nonce is not None:
        terms.append(NonceIs(_hex(args.nonce, "--nonce")))
    if args.public_key is not None:
        terms.append(PublicKeyIs(_public_key(args.public_key)))
    if args.user_data is not None:
        terms.append(UserDataIs(_hex(args.user_data, "--user-data")))
    if args.max_age is not None:
        terms.append(MaxAge(_seconds(args.max_age)))
    if args.allow_debug:
        terms.append(UnsafeAcceptDebug(development_only=False))
    return Expectations(tuple(terms))


def _register(text: str) -> RegisterIs:
    index, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[0-9]{1,2}", index, re.ASCII):
        raise MalformedInput("--pcr: wrong form", expected="N=HEX", actual=text)
    return RegisterIs(int(index), _hex(value, f"--pcr {index}"))


def _hex(text: str, option: str) -> bytes:
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text, re.ASCII):
        raise MalformedInput(f"{option}: wrong form", expected="hex digits", actual=text)
    return bytes.fromhex(text)


def _public_key(text: str) -> bytes:
    """Return the key: hex digits are the bytes themselves, anything else is a file (`./abcd` for one of such name)."""
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text, re.ASCII):
        return bytes.fromhex(text)
    raw = read_limited(Path(text), limit=MAX_CERTIFICATE_PEM, what="public key")
    try:
        key = load_pem_public_key(raw) if raw.startswith(b"-----BEGIN") else load_der_public_key(raw)
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception as error:  # ValueError, UnsupportedAlgorithm
        raise MalformedInput("--public-key: no public key", expected="SPKI in DER or PEM", actual=error) from error


def _seconds(text: str) -> timedelta:
    if not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII) or timedelta(seconds=int(text)) > MAX_AGE:
        raise MalformedInput("--max-age: wrong form", expected=f"0..{int(MAX_AGE.total_seconds())}", actual=text)
    return timedelta(seconds=int(text))


def _time(text: str, document: bytes) -> datetime:
    if text == "now":
        return datetime.now(UTC)
    if text == "document":
        at = archived_time(document)
        say(f"note: verified at the document's own time, {at.isoformat()}; that says nothing about now")
        return at
    try:
        at = datetime.fromisoformat(text)
        if at.utcoffset() is None:
            raise ValueError("no time zone")
        return at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise MalformedInput("--at: wrong form", expected="a time such as 2026-11-01T12:00:00Z", actual=text) from error


def _say_what_is_unsafe(args: argparse.Namespace, root: Root) -> None:
    if root.development:
        warn(f"{root.name} is not AWS's root: whoever holds its key can make any evidence")
    if args.any_image:
        warn("--any-image: whatever code runs in the isolate is accepted")
    if args.allow_debug:
        warn("--allow-debug: the host of an isolate in debug mode sees what is in it, and no image is checked")


def _verdict(appraisal: Appraisal, checks: Sequence[Check]) -> dict[str, Any]:
    root = appraisal.root
    return {
        "schema": SCHEMA,
        "verdict": appraisal.verdict.value,
        "slug": None,
        "module_id": appraisal.module_id,
        "timestamp": appraisal.timestamp.isoformat(),
        "digest": appraisal.digest,
        **dump_measurements(appraisal.measurements),
        "pcrs": {str(index): value.hex() for index, value in sorted(appraisal.pcrs.items())},
        "public_key": _hex_or_null(appraisal.public_key),
        "user_data": _hex_or_null(appraisal.user_data),
        "nonce": _hex_or_null(appraisal.nonce),
        "root": root and {"name": root.name, "sha256": root.fingerprint.hex(), "development": root.development},
        "chain": [
            {"subject": c.subject, "not_before": c.not_before.isoformat(), "not_after": c.not_after.isoformat()}
            for c in appraisal.chain
        ],
        "checks": _checks(checks),
    }


def _refusal(error: AttestationError, checks: Sequence[Check]) -> dict[str, Any]:
    """Return the verdict on refused evidence. Nothing that the evidence says of itself is repeated as a fact."""
    return {
        "schema": SCHEMA,
        "verdict": Verdict.REFUSED.value,
        "slug": error.slug,
        "message": error.what,
        "expected": error.expected,
        "actual": error.actual,
        "hint": error.hint,
        "module_id": None,
        "timestamp": None,
        "Measurements": None,
        "checks": _checks(checks),
    }


def _checks(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [{"point": check.point, "what": check.what} for check in checks]


def _hex_or_null(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _text(appraisal: Appraisal) -> str:
    lines = [f"{appraisal.verdict.value}: {appraisal.module_id}", f"  made        {appraisal.timestamp.isoformat()}"]
    if appraisal.root:
        lines.append(f"  root        {appraisal.root.name}")
    lines += [f"  PCR{n:<8} {value.hex()}" for n, value in sorted(appraisal.pcrs.items()) if any(value)]
    for name, value in (
        ("public key", appraisal.public_key),
        ("user data", appraisal.user_data),
        ("nonce", appraisal.nonce),
    ):
        lines.append(f"  {name:<11} {'none' if value is None else value.hex() or 'empty'}")
    return "\n".join(lines)
