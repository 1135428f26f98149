# SPDX-License-Identifier: MIT
"""`attest verify`: read documents and what is expected of them, verify, say what was found."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from .chain import ChainCache, Root
from .console import Commands, new_parser, printable, report, say, warn, write_out
from .errors import EXIT_OK, EXIT_REFUSED, AttestationError, EmptyExpectations, UsageError
from .evidence_files import STDIN, decode_evidence, read_evidence
from .expectations import Expectations
from .input_files import read_root
from .verdict_text import SCHEMA, Judgement, dump_judgement, make_line, make_text
from .verifier import Appraisal, Check, archived_time, examine
from .verify_options import DOCUMENT, NOW, add_options, read_expectations, read_time

__all__ = ["SCHEMA", "add_verbs", "decode_evidence"]

# What `examine` checks before the demands, in its order.
BEFORE_DEMANDS = (
    Check(1, "form of an attestation document"),
    Check(2, "chain to the chosen root, valid at the time given"),
    Check(3, "signature of the leaf over the payload, made while it was valid"),
    Check(5, "not in debug mode"),
)
AN_IMAGE = Check(5, "an image that is accepted")
AGREEMENT = Check(5, "an image that both policy and measurements name")


def add_verbs(commands: Commands) -> None:
    """Add the verb `verify`."""
    parser = new_parser(commands, "verify", summary="verify attestation documents", run=verify_files)
    parser.epilog = (
        "Exit codes: 0 every document was verified, 1 one was refused, 2 usage. --json prints one object; for several "
        "FILEs a list of them."
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a document: raw, base64 or hex; - reads stdin")
    add_options(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say each check on stderr")


def verify_files(args: argparse.Namespace) -> int:
    """Verify documents; print each one's appraisal or refusal once all are judged."""
    if args.files.count(STDIN) > 1:
        raise UsageError(f"{STDIN} may be given once: standard input holds one document")
    expected, root, fixed = _read_demands(args), read_root(args.root), read_time(args.at)
    documents = [(name, _read(name)) for name in args.files]
    _say_what_is_unsafe(args, root)
    judgements, links = [], ChainCache()  # documents of one enclave share certificates: each is checked once
    for name, document in documents:
        if len(documents) > 1 and args.verbose:
            say(f"{name}:")
        judgement = _judge(name, document, args, expected, root, fixed, links)
        if args.verbose and judgement.failed:
            say(f"failed  ({judgement.failed.point}) {judgement.failed.what}")
        judgements.append(judgement)
    _tell(judgements, as_json=args.json)
    refused = any(isinstance(judgement.outcome, AttestationError) for judgement in judgements)
    return EXIT_REFUSED if refused else EXIT_OK


def _read_demands(args: argparse.Namespace) -> Expectations | AttestationError:
    try:
        return read_expectations(args)
    except EmptyExpectations:
        raise  # the caller's fault, not the evidence's
    except AttestationError as error:  # the caller's files agree on no image: no document can pass
        return error


def _read(name: str) -> bytes | AttestationError:
    try:
        return read_evidence(name)
    except AttestationError as error:  # no document is refused like a bad one; an unreadable file is a usage error
        return error


def _judge(
    name: str,
    document: bytes | AttestationError,
    args: argparse.Namespace,
    expected: Expectations | AttestationError,
    root: Root,
    fixed: datetime | None,
    links: ChainCache,
) -> Judgement:
    time = args.at if args.at in (NOW, DOCUMENT) else "given"
    if isinstance(expected, AttestationError):
        return Judgement(name, None, time, (), AGREEMENT, expected)
    if isinstance(document, AttestationError):
        return Judgement(name, None, time, (), BEFORE_DEMANDS[0], document)
    at: datetime | None = None
    checks: list[Check] = []
    try:
        at = fixed or (archived_time(document) if args.at == DOCUMENT else datetime.now(UTC))
        steps = examine(document, expected=expected, at=at, roots=[root], links=links)
        appraisal = _follow(steps, checks, verbose=args.verbose)
    except AttestationError as error:
        # Only debug mode was accepted, and this one is not in it.
        failed = AN_IMAGE if isinstance(error, EmptyExpectations) else _find_failed(checks, expected)
        return Judgement(name, at, time, tuple(checks), failed, error)
    return Judgement(name, at, time, tuple(checks), None, appraisal)


def _find_failed(checks: Sequence[Check], expected: Expectations) -> Check | None:
    """Return the check that comes after those that passed."""
    done = len(checks)
    if done < len(BEFORE_DEMANDS):
        return BEFORE_DEMANDS[done]
    demands = expected.demands[done - len(BEFORE_DEMANDS) :]
    return Check(demands[0].point, str(demands[0])) if demands else None


def _follow(steps: Iterator[Check], checks: list[Check], *, verbose: bool) -> Appraisal:
    """Note each check as it passes, and say it; return what came of them."""
    while True:
        try:
            check = next(steps)
        except StopIteration as end:
            appraisal: Appraisal = end.value
            return appraisal
        checks.append(check)
        if verbose:
            say(f"checked ({check.point}) {check.what}")


def _tell(judgements: Sequence[Judgement], *, as_json: bool) -> None:
    several = len(judgements) > 1
    if as_json:
        told = [dump_judgement(judgement) for judgement in judgements]
        write_out(json.dumps(told if several else told[0], indent=2))
    for judgement in judgements:
        outcome = judgement.outcome
        if several and not as_json:
            write_out(printable(make_line(judgement)))
        elif isinstance(outcome, Appraisal) and not as_json:
            write_out(printable(make_text(outcome)))
        if isinstance(outcome, AttestationError):
            if several:
                outcome = copy.copy(outcome)  # one error may be several documents'
                outcome.what = f"{judgement.file}: {outcome.what}"
            report(outcome, as_json=False)


def _say_what_is_unsafe(args: argparse.Namespace, root: Root) -> None:
    if root.development:
        warn(f"{root.name} is not AWS's root: whoever holds its key can make any evidence")
    if args.any_image:
        warn("--any-image: whatever code runs in the isolate is accepted")
    if args.allow_debug:
        warn("--allow-debug: the host of an isolate in debug mode sees what is in it, and no image is checked")
    if args.at == DOCUMENT:
        say("note: verified at the document's own time; that says nothing about now")
    if args.at == NOW and args.nonce is None and args.max_age is None:
        say("note: neither --nonce nor --max-age: the document may be a replay, as old as its certificate (3 hours)")
