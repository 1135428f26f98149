# SPDX-License-Identifier: MIT
"""The options of `attest verify`: what is expected of evidence, under which root, and at what time."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from .chain import CLOCK_LEEWAY
from .errors import MalformedInput, UsageError
from .expectations import (
    Expectations,
    ImageIs,
    InstanceIs,
    MaxAge,
    ModuleIs,
    NonceIs,
    ParentRoleIs,
    PolicyIs,
    PublicKeyIs,
    RegisterIs,
    RootIs,
    SignerIs,
    Term,
    UnsafeAcceptAnyImage,
    UnsafeAcceptDebug,
    UserDataIs,
    accepted_images,
)
from .files import read_limited
from .input_files import read_certificate, read_measurements, read_policy
from .limits import MAX_CERTIFICATE_PEM, PCR_SIZE
from .measurements import signer_pcr
from .panics import reraise_interrupt

MAX_AGE = timedelta(days=36500)  # timedelta overflows somewhere above
NOW, DOCUMENT = "now", "document"  # words of --at
LEEWAY = f"{CLOCK_LEEWAY.total_seconds():.0f} s"


class Once(argparse.Action):
    """An option that may stand once: of two values one would be checked and the other quietly not."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if getattr(namespace, f"{self.dest}_given", False):
            parser.error(f"{'/'.join(self.option_strings)} may be given once")
        setattr(namespace, self.dest, values)
        setattr(namespace, f"{self.dest}_given", True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be demanded and accepted."""
    image = parser.add_argument_group("which image may run (one of these is needed)")
    image.add_argument(
        "--measurements", metavar="FILE", action="append", default=[], type=Path,
        help="PCR0, PCR1 and PCR2 of an accepted image (ours or nitro-cli's JSON); repeat for any one of several",
    )  # fmt: skip
    image.add_argument("--pcr", metavar="N=HEX", action="append", default=[], help="one register; repeat for more")
    image.add_argument(
        "--signer", metavar="CERT.pem|HEX", action=Once, help="who signed the image: PCR8 or certificate"
    )
    image.add_argument("--any-image", action="store_true", help="unsafe: accept whatever code runs in the isolate")

    add = parser.add_argument_group("what else the document must say").add_argument
    add("--policy", metavar="FILE", action=Once, type=Path, help="the policy that the isolate must be bound to")
    add("--nonce", metavar="HEX", action=Once, help="the nonce that it must answer")
    add(
        "--public-key", metavar="HEX|FILE", action=Once, help="the public key that it must name (FILE: DER or PEM SPKI)"
    )
    add("--user-data", metavar="HEX", action=Once, help="the user data that it must carry")
    add("--module-id", metavar="ID", action=Once, help="the enclave that it must come from: i-...-enc...")
    add("--instance-id", metavar="ID", action=Once, help="the parent EC2 instance (PCR4): i-...")
    add("--role", metavar="ARN", action=Once, help="the parent instance's IAM role (PCR3): arn:aws:iam::...:role/...")
    add("--max-age", metavar="SECONDS", action=Once, help="refuse a document made longer ago")

    add = parser.add_argument_group("what is trusted").add_argument
    add("--root", metavar="aws|FILE", action=Once, default="aws", help="AWS's G1 (default), or a PEM or DER file")
    add(
        "--at", metavar="TIME|document|now", action=Once, default=NOW,
        help=f"verify at this time (ISO 8601), at the document's own, or now (default); clocks may differ by {LEEWAY}",
    )  # fmt: skip
    add("--allow-debug", action="store_true", help="unsafe: accept an isolate in debug mode")


def read_expectations(args: argparse.Namespace) -> Expectations:
    """Return what the options demand; raise UsageError or MalformedInput, naming the option or file."""
    terms: list[Term] = list(_registers(args.pcr))
    measured = read_measurements(args.measurements)
    if args.signer is not None:
        terms.append(SignerIs(_signer(args.signer)))
    if args.any_image:
        if measured or Expectations(tuple(terms)).demands_image:
            raise UsageError(
                "--any-image does not go with --measurements, --signer, or --pcr for PCR0, PCR1 and PCR2",
                hint="leave one of them out",
            )
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
    terms += _fields(args)
    if args.allow_debug:
        terms.append(UnsafeAcceptDebug(development_only=False))
    expected = Expectations(tuple(terms))
    expected.require_content()
    return expected


def _fields(args: argparse.Namespace) -> list[Term]:
    terms: list[Term] = []
    if args.nonce is not None:
        terms.append(NonceIs(_hex(args.nonce, "--nonce")))
    if args.public_key is not None:
        terms.append(PublicKeyIs(_public_key(args.public_key)))
    if args.user_data is not None:
        terms.append(UserDataIs(_hex(args.user_data, "--user-data")))
    if args.module_id is not None:
        terms.append(ModuleIs(args.module_id))
    if args.instance_id is not None:
        terms.append(InstanceIs(args.instance_id))
    if args.role is not None:
        terms.append(ParentRoleIs(args.role))
    if args.max_age is not None:
        if args.at == DOCUMENT:
            raise UsageError("--max-age says nothing at the document's own time", hint="--at TIME, when you got it")
        terms.append(MaxAge(_seconds(args.max_age)))
    return terms


def _registers(texts: Iterable[str]) -> Iterator[RegisterIs]:
    seen: set[int] = set()
    for text in texts:
        register = _register(text)
        if register.index in seen:  # two values of one register: no document has both
            raise UsageError(f"--pcr {register.index} may be given once", hint="--measurements takes several images")
        seen.add(register.index)
        yield register


def _register(text: str) -> RegisterIs:
    index, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[0-9]{1,2}", index, re.ASCII):
        raise MalformedInput("--pcr: wrong form", expected="N=HEX", actual=text)
    return RegisterIs(int(index), _hex(value, f"--pcr {index}"))


def _hex(text: str, option: str) -> bytes:
    if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text, re.ASCII):
        raise MalformedInput(f"{option}: wrong form", expected="pairs of hex digits", actual=text or "nothing")
    return bytes.fromhex(text)


def _signer(text: str) -> bytes:
    """Return PCR8: as it is, or of a certificate's file."""
    if re.fullmatch(rf"[0-9A-Fa-f]{{{2 * PCR_SIZE}}}", text, re.ASCII):
        return bytes.fromhex(text)
    return signer_pcr(read_certificate(Path(text)))


def _public_key(text: str) -> bytes:
    """Return the key: hex digits are the bytes themselves, anything else is a file (`./abcd` for one of such name)."""
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", text, re.ASCII):
        return bytes.fromhex(text)
    raw = read_limited(Path(text), limit=MAX_CERTIFICATE_PEM, what="public key")
    try:
        key = load_pem_public_key(raw) if raw.startswith(b"-----BEGIN") else load_der_public_key(raw)
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except BaseException as error:  # ValueError, UnsupportedAlgorithm
        reraise_interrupt(error)
        raise MalformedInput("--public-key: no public key", expected="SPKI in DER or PEM", actual=error) from error


def _seconds(text: str) -> timedelta:
    if not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII) or timedelta(seconds=int(text)) > MAX_AGE:
        raise MalformedInput("--max-age: wrong form", expected=f"0..{int(MAX_AGE.total_seconds())}", actual=text)
    return timedelta(seconds=int(text))


def read_time(text: str) -> datetime | None:
    """Return the time that `--at` names, None for each document's own or the present; raise MalformedInput."""
    if text in (NOW, DOCUMENT):
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.utcoffset() is None:
            raise ValueError("no time zone")
        return at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise MalformedInput(
            "--at: wrong form", expected="a time with its zone, such as 2026-11-01T12:00:00Z", actual=text
        ) from error
