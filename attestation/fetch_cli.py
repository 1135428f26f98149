# SPDX-License-Identifier: MIT
"""`attest fetch`: get evidence from an isolate over one's own TLS connection, and verify it where one says by what."""

from __future__ import annotations

import argparse
import base64
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .appraising import Trust, verify_session
from .channel import Evidence, fetch_evidence
from .console import Commands, emit, new_parser, say
from .endpoint import Endpoint
from .errors import EXIT_OK, UsageError
from .expectations import Expectations, ImageIs, NonceIs, PublicKeyIs, UnsafeAcceptDebug
from .files import demand_target, write_whole
from .input_files import read_measurements, read_policy, read_root
from .limits import NONCE_SIZE
from .measurements import dump_measurements
from .policy import Policy
from .trust_options import AWS_ROOT, add_trust_options, read_trust, warn_of_trust
from .verifier import Appraisal, verify

SCHEMA = "veracruz.evidence/1"


def add_verbs(attest: Commands) -> None:
    """Add the verb `fetch`."""
    parser = new_parser(attest, "fetch", summary="fetch evidence from an isolate, with a fresh nonce", run=fetch)
    parser.add_argument(
        "--nonce", metavar="HEX", help=f"{NONCE_SIZE} bytes to be answered (default: fresh random ones)"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="where to write the document")
    parser.add_argument(
        "--policy", metavar="FILE", type=Path, help="verify at once, as a participant of this policy does"
    )
    add_trust_options(parser)


def fetch(args: argparse.Namespace) -> int:
    """Fetch a document; verify it if a policy or measurements were given."""
    nonce = _nonce(args.nonce)
    policy = None if args.policy is None else read_policy(args.policy)
    trust = _trust(args, policy)
    if trust is not None:
        warn_of_trust(args, trust)
    endpoint = Endpoint.parse(args.isolate)
    if args.out is not None:
        demand_target(args.out)
    evidence = fetch_evidence(endpoint, nonce)
    appraisal = None if trust is None else _verify(evidence, policy, trust)
    if args.out is not None:  # what is refused replaces nothing
        write_whole(args.out, evidence.document)
    say(f"nonce       {nonce.hex()}")
    say(f"public key  {evidence.public_key.hex()}")
    document = base64.b64encode(evidence.document).decode("ascii")
    text = str(args.out) if args.out else document
    if appraisal is None:
        say("not verified: give --policy and --measurements, or `veracruz attest verify`")
    else:
        text = f"{appraisal.verdict.value}: {appraisal.module_id}, made {appraisal.made}"
    emit(args, _data(args, evidence, document, appraisal), text)
    return EXIT_OK


def _trust(args: argparse.Namespace, policy: Policy | None) -> Trust | None:
    if policy is not None:
        return read_trust(args, policy)
    if args.unsafe_accept_policy_image:
        raise UsageError("--unsafe-accept-policy-image goes with --policy FILE")
    images = read_measurements(args.measurements)
    if not images and (args.allow_debug or args.root != AWS_ROOT):
        raise UsageError(
            "--root and --allow-debug say how to verify, and there is nothing to verify by",
            expected="--measurements FILE, or --policy FILE",
        )
    return Trust(read_root(args.root), images, allow_debug=args.allow_debug) if images else None


def _verify(evidence: Evidence, policy: Policy | None, trust: Trust) -> Appraisal:
    at = datetime.now(UTC)
    if policy is not None:
        return verify_session(evidence, policy, trust, at=at)
    expected = Expectations.of(NonceIs(evidence.nonce), ImageIs.any_of(trust.images), PublicKeyIs(evidence.public_key))
    if trust.allow_debug:
        expected &= UnsafeAcceptDebug()
    say("note: without --policy FILE it is not checked which policy the isolate enforces")
    return verify(evidence.document, expected=expected, at=at, roots=[trust.root])


def _nonce(text: str | None) -> bytes:
    if text is None:
        return secrets.token_bytes(NONCE_SIZE)
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * NONCE_SIZE}}}", text):
        raise UsageError("--nonce: wrong form", expected=f"{2 * NONCE_SIZE} hex digits", actual=text)
    return bytes.fromhex(text)


def _data(args: argparse.Namespace, evidence: Evidence, document: str, appraisal: Appraisal | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "file": str(args.out) if args.out else None,
        "document": document,
        "nonce": evidence.nonce.hex(),
        "public_key": evidence.public_key.hex(),
        "certificate": base64.b64encode(evidence.certificate).decode("ascii"),
        "verdict": appraisal.verdict.value if appraisal else None,
    }
    if appraisal is not None:
        data |= {"module_id": appraisal.module_id, "timestamp": appraisal.made}
        data |= dump_measurements(appraisal.measurements)
    return data
