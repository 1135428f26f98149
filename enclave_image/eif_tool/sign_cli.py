# SPDX-License-Identifier: MIT
"""The verb `image sign`: with a key file, with a command that holds the key, or in two steps on two machines."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.console import Commands, emit, new_parser, say, warn
from attestation.errors import EXIT_OK, UsageError, escape
from attestation.files import demand_apart, demand_target, naming, read_limited, write_new
from attestation.limits import MAX_CERTIFICATE_PEM

from ..errors import SignerFailed
from .cli import opened
from .signer import MAX_SIGNATURE_FILE, run_signer

if TYPE_CHECKING:  # both import cryptography, which a build does not need
    from .inspection import Inspection
    from .signing import Request

NOTES = """What is signed is a COSE Sig_structure over PCR0, the same bytes for --signer (on its standard input) and in
the file of --to-be-signed. The signer hashes them (SHA-256 for P-256, SHA-384 for P-384, SHA-512 for P-521) and gives
ECDSA as r || s or as DER. Whatever signed, the result is verified with the certificate before anything is written."""


def add_verb(group: Commands) -> None:
    """Add `sign`."""
    sign = new_parser(
        group, "sign", summary="write a signed copy of an image; PCR0-2 stay, PCR8 becomes the signer's", run=sign_verb
    )
    sign.add_argument("image", type=Path, metavar="FILE.eif", help="an old signature in it is replaced")
    sign.add_argument(
        "--certificate", type=Path, required=True, metavar="CERT.pem", help="of a P-256, P-384 or P-521 key"
    )
    way = sign.add_mutually_exclusive_group(required=True)
    way.add_argument("--key", type=Path, metavar="KEY.pem", help="sign with this private key")
    way.add_argument("--signer", metavar="COMMAND", help="sign by a command, such as one that asks a token (no shell)")
    way.add_argument("--to-be-signed", type=Path, metavar="TBS.bin", help="first step: write what is to be signed")
    way.add_argument("--signature", type=Path, metavar="SIG.bin", help="second step: put this signature in")
    sign.add_argument("--out", type=Path, metavar="FILE.eif", help="where to write the signed image")
    sign.epilog = NOTES


def sign_verb(args: argparse.Namespace) -> int:
    """Sign an image, or write what is to be signed."""
    from .signing import make_request, read_certificate, seal, write_signed

    target = args.to_be_signed or args.out
    if target is None:
        raise UsageError("--out is missing", hint="--out SIGNED.eif")
    if args.to_be_signed and args.out:
        raise UsageError("--out does not go with --to-be-signed: that step writes no image")
    demand_target(target)
    if args.to_be_signed and target.exists():
        raise UsageError(f"{target} exists", expected="a new file, to be signed and thrown away")
    demand_apart(
        {"--to-be-signed": args.to_be_signed, "--out": args.out},
        [args.image, args.certificate, args.key, args.signature],
    )
    pem = read_limited(args.certificate, limit=MAX_CERTIFICATE_PEM, what="certificate")
    with naming(args.certificate):
        certificate = read_certificate(pem)
    with opened(args.image) as (source, found):
        request = make_request(found, certificate, at=datetime.now(UTC))
        if args.to_be_signed:
            return _write_first_step(args, request)
        section = seal(request, _signature(args, request))
        _tell_replaced(found)
        write_signed(source, found.layout, section, args.out)
    return _report(args, found)


def _signature(args: argparse.Namespace, request: Request) -> bytes:
    from .signing import MAX_KEY, sign_with_key

    if args.key:
        pem = read_limited(args.key, limit=MAX_KEY, what="private key")
        if stat.S_IMODE(args.key.stat().st_mode) & 0o077:
            warn(f"{args.key} can be read by others on this machine: chmod 600 {shlex.quote(str(args.key))}")
        with naming(args.key):
            return sign_with_key(request, pem)
    if args.signature:
        return read_limited(args.signature, limit=MAX_SIGNATURE_FILE, what="signature")
    return run_signer(args.signer, request.to_be_signed)


def _write_first_step(args: argparse.Namespace, request: Request) -> int:
    data = request.to_be_signed
    write_new(args.to_be_signed, data, mode=0o644)
    digest = hashlib.new(request.algorithm.hash.name, data).hexdigest()
    say(f"wrote {args.to_be_signed}: sign it with {request.algorithm.hash.name}, then: veracruz image sign --signature")
    emit(
        args,
        {"to_be_signed": str(args.to_be_signed), "algorithm": request.algorithm.name, "digest": digest},
        f"{request.algorithm.hash.name}  {digest}",
    )
    return EXIT_OK


def _tell_replaced(found: Inspection) -> None:
    if found.signer is not None:
        old = found.signer.certificate
        say(f"the signature of {escape(old.subject.rfc4514_string()) if old else 'an unknown signer'} is replaced")


def _report(args: argparse.Namespace, before: Inspection) -> int:
    """Inspect what was written, as anybody will who receives it, and print its registers."""
    from .describe_text import registers

    with opened(args.out) as (source, found):
        if found.broken or found.measurements != before.measurements:
            raise SignerFailed(f"{args.out} did not come out right: is somebody writing there?")
        size = source.size
    table = registers(found)
    say(f"signed {args.out}: {size:,} bytes")
    text = "\n".join(f"{name}  {value}" for name, value in table["Measurements"].items() if name.startswith("PCR"))
    emit(args, {"image": str(args.out), "size": size, **table}, text)
    return EXIT_OK
