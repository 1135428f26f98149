# SPDX-License-Identifier: MIT
"""`policy new|check|hash|explain`: write a policy, and read what it says before joining."""

from __future__ import annotations

import argparse
import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from .binding import HASH_SIZE
from .console import Commands, emit, new_group, new_parser, warn, write_out
from .errors import EXIT_OK, EXIT_REFUSED, UsageError, escape
from .files import hash_limited, read_limited, write_new, write_whole
from .identity import load_certificate
from .input_files import read_measurements, read_policy, read_root
from .limits import MAX_CERTIFICATE_PEM
from .policy import RunLimits, StoreLimits, parse_policy
from .policy_draft import Draft, DraftParticipant, DraftProgram
from .policy_flow import Flow, find_flows
from .policy_lint import Finding, lint_policy
from .policy_text import describe_parties, explain_policy, rights_table

MAX_PINNED = 1 << 32  # bytes of a file whose hash goes into a policy
MAX_PROGRAM = 1 << 30  # bytes; far above what an isolate stores
WASM_MAGIC = b"\0asm"

_V = TypeVar("_V")


def add_verbs(commands: Commands) -> None:
    """Add the noun `policy`."""
    policy = new_group(commands, "policy", summary="write and read the file that everybody agrees on")
    _add_new(policy)
    check = new_parser(
        policy, "check", summary="check a policy's form and say what is likely not meant", run=check_policy
    )
    check.add_argument("file", metavar="FILE", type=Path)
    check.add_argument("--strict", action="store_true", help="exit 1 if there is a warning")
    digest = new_parser(policy, "hash", summary="print a policy's SHA-256, by which evidence names it", run=hash_policy)
    digest.add_argument("file", metavar="FILE", type=Path)
    words = new_parser(policy, "explain", summary="say a policy in plain words: who learns what", run=explain)
    words.add_argument("file", metavar="FILE", type=Path)


def check_policy(args: argparse.Namespace) -> int:
    """Parse a policy, print what each party may do, and warn of what is likely not meant."""
    policy = read_policy(args.file)
    findings = lint_policy(policy, at=datetime.now(UTC))
    data = {
        "name": policy.name,
        "hash": policy.hash.hex(),
        "participants": {party.name: rights_table(party.rights) for party in policy.participants},
        "warnings": [{"slug": finding.slug, "message": finding.message} for finding in findings],
    }
    emit(args, data, "\n".join([f"{policy.name}: well formed, SHA-256 {policy.hash.hex()}", *describe_parties(policy)]))
    _warn(findings)
    return EXIT_REFUSED if args.strict and findings else EXIT_OK


def hash_policy(args: argparse.Namespace) -> int:
    """Print the hash of a well-formed policy."""
    policy = read_policy(args.file)
    emit(args, {"name": policy.name, "hash": policy.hash.hex()}, policy.hash.hex())
    return EXIT_OK


def explain(args: argparse.Namespace) -> int:
    """Say a policy in plain words."""
    policy = read_policy(args.file)
    data = {"name": policy.name, "hash": policy.hash.hex(), "flows": [_flow(flow) for flow in find_flows(policy)]}
    emit(args, data, explain_policy(policy))
    return EXIT_OK


def new_policy(args: argparse.Namespace) -> int:
    """Write a policy out of options."""
    raw = draft(args).encode()
    policy = parse_policy(raw)
    if args.out is None:
        if args.json:
            raise UsageError("--json describes what was written", hint="give --out FILE")
        write_out(raw.decode(), end="")
    else:
        write_whole(args.out, raw) if args.force else write_new(args.out, raw, mode=0o644)
        data = {"file": str(args.out), "name": policy.name, "hash": policy.hash.hex()}
        emit(args, data, f"{args.out}  SHA-256 {policy.hash.hex()}")
    _warn(lint_policy(policy, at=datetime.now(UTC)))
    return EXIT_OK


def draft(args: argparse.Namespace) -> Draft:
    """Return the policy that the options of `policy new` describe."""
    result = Draft(name=args.name, clock=args.clock, not_after=args.not_after, once=args.once)
    result.root = args.root if args.root in (None, "aws") else read_root(args.root).fingerprint.hex()
    result.images = list(dict.fromkeys(read_measurements(args.measurements)))
    for name, certificate in (_pair(text, "--participant", "NAME=CERT.pem") for text in args.participant):
        load_certificate(Path(certificate))
        pem = _read(certificate).decode("ascii").strip() + "\n"
        _put(result.participants, name, DraftParticipant(pem), "--participant")
    for path, file in (_pair(text, "--program", "PATH=FILE.wasm") for text in args.program):
        _put(result.programs, path, DraftProgram(_wasm_hash(Path(file))), "--program")
    for text in args.right:
        name, key, words = _right(text, "--right", "NAME:/path/:read,list")
        _add_right(_known(result.participants, name, "--right").rights, key, words)
    for text in args.program_right:
        path, key, words = _right(text, "--program-right", "PATH:/path/:read")
        _add_right(_known(result.programs, path, "--program-right").rights, key, words)
    _program_settings(args, result)
    for path, value in (_pair(text, "--pin", "PATH=FILE or PATH=SHA256") for text in args.pin):
        _put(result.pins, path, _digest(value), "--pin")
    for path, count in (_pair(text, "--runs", "PATH=N") for text in args.runs):
        _put(result.runs, path, _integer(count, "--runs"), "--runs")
    result.join = _split(args.join)
    result.shutdown = _split(args.shutdown)
    result.limits = {name: getattr(args, name) for name in _STORE_LIMITS if getattr(args, name) is not None}
    return result


_STORE_LIMITS = tuple(StoreLimits.__dataclass_fields__)
_RUN_LIMITS = tuple(RunLimits.__dataclass_fields__)


def _add_new(policy: Commands) -> None:
    new = new_parser(policy, "new", summary="write a policy out of options", run=new_policy)
    new.add_argument("--name", required=True, help="what the parties call it")
    new.add_argument("--out", metavar="FILE", type=Path, help="where to write it (default: standard output)")
    new.add_argument("--force", action="store_true", help="replace FILE if it exists")

    def many(option: str, form: str, text: str, **more: Any) -> None:
        new.add_argument(option, metavar=form, action="append", default=[], help=f"{text}; repeat for more", **more)

    many("--measurements", "FILE", "an image that is accepted: PCR0, PCR1 and PCR2", type=Path)
    many("--participant", "NAME=CERT.pem", "a party and its certificate")
    many(
        "--right",
        "NAME:/path/:WORDS",
        "what a party may do under a path: read,write,append,execute,observe,list,delete",
    )
    many("--program", "PATH=FILE.wasm", "a program, pinned by the hash of FILE")
    many(
        "--program-right",
        "PATH:/path/:WORDS",
        "what runs of a program may do under a path: read,write,append,list,delete",
    )
    many("--program-arg", "PATH=TEXT", "an argument of a program")
    many("--program-env", "PATH=NAME=TEXT", "a variable of a program's environment")
    many("--program-limit", "PATH=NAME=N", f"a limit of a program's runs: {', '.join(_RUN_LIMITS)}")
    many("--join", "NAME[,NAME]", "who must have connected before anything runs (default: all)")
    many("--pin", "PATH=FILE|SHA256", "a path that takes one content only")
    many("--once", "PATH", "a path or subtree/ whose files freeze when first written")
    many("--runs", "PATH=N", "how often a program may run")
    many("--shutdown", "NAME[,NAME]", "who must all ask before the isolate ends (default: the join list)")
    new.add_argument("--not-after", metavar="TIME", help="when the isolate stops serving, as 2027-01-01T00:00:00Z")
    new.add_argument(
        "--root", metavar="aws|FILE", help="the only root whose evidence counts (default: each party's choice)"
    )
    new.add_argument("--clock", action="store_true", help="let programs see a clock")
    for name in _STORE_LIMITS:
        option = f"--{name.replace('_', '-')}"
        new.add_argument(option, metavar="N", type=int, help=f"limit (default: {getattr(StoreLimits(), name)})")


def _program_settings(args: argparse.Namespace, result: Draft) -> None:
    for path, value in (_pair(text, "--program-arg", "PATH=TEXT") for text in args.program_arg):
        _known(result.programs, path, "--program-arg").args.append(value)
    for path, rest in (_pair(text, "--program-env", "PATH=NAME=TEXT") for text in args.program_env):
        name, value = _pair(rest, "--program-env", "PATH=NAME=TEXT")
        _put(_known(result.programs, path, "--program-env").env, name, value, "--program-env")
    for path, rest in (_pair(text, "--program-limit", "PATH=NAME=N") for text in args.program_limit):
        name, value = _pair(rest, "--program-limit", "PATH=NAME=N")
        if name not in _RUN_LIMITS:
            raise UsageError("--program-limit: no such limit", expected=", ".join(_RUN_LIMITS), actual=name)
        limits = _known(result.programs, path, "--program-limit").limits
        _put(limits, name, _integer(value, "--program-limit"), "--program-limit")


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    left, separator, right = text.partition("=")
    if not (left and separator):
        raise UsageError(f"{option}: wrong form", expected=form, actual=text)
    return left, right


def _right(text: str, option: str, form: str) -> tuple[str, str, list[str]]:
    holder, first, rest = text.partition(":")
    key, second, words = rest.rpartition(":")
    if not (holder and first and key and second and words):
        raise UsageError(f"{option}: wrong form", expected=form, actual=text)
    return holder, key, words.split(",")


def _add_right(rights: dict[str, list[str]], key: str, words: list[str]) -> None:
    rights.setdefault(key, []).extend(word for word in words if word not in rights.get(key, []))


def _put(table: dict[str, _V], key: str, value: _V, option: str) -> None:
    if key in table:
        raise UsageError(f"{option}: {escape(key)} is given twice")
    table[key] = value


def _known(table: dict[str, _V], key: str, option: str) -> _V:
    if key not in table:
        raise UsageError(f"{option}: not known", expected=", ".join(table) or "one given before", actual=key)
    return table[key]


def _split(texts: list[str]) -> list[str]:
    return [name for text in texts for name in text.split(",")]


def _integer(text: str, option: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise UsageError(f"{option}: no number", expected="digits", actual=text)
    return int(text)


def _read(path: str) -> bytes:
    return read_limited(Path(path), limit=MAX_CERTIFICATE_PEM, what="certificate")


def _digest(text: str) -> bytes:
    if re.fullmatch(f"[0-9a-fA-F]{{{2 * HASH_SIZE}}}", text):
        return bytes.fromhex(text)
    return hash_limited(Path(text), limit=MAX_PINNED, what="pinned file")


def _wasm_hash(path: Path) -> bytes:
    raw = read_limited(path, limit=MAX_PROGRAM, what="program")
    if not raw.startswith(WASM_MAGIC):
        raise UsageError(f"{path} is no WebAssembly module", expected=WASM_MAGIC, actual=raw[: len(WASM_MAGIC)])
    return hashlib.sha256(raw).digest()


def _flow(flow: Flow) -> dict[str, Any]:
    return {name: getattr(flow, name) for name in Flow.__dataclass_fields__}


def _warn(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        warn(f"{finding.message} [{finding.slug}]")
