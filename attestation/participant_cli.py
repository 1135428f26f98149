# SPDX-License-Identifier: MIT
"""A participant's verbs: `send run get ls status shutdown`. Each verifies the isolate anew before it says anything."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import fetch_cli, identity_cli, policy_cli
from .binding import HASH_SIZE
from .console import Commands, Progress, Verb, emit, new_parser, say, warn
from .endpoint import Endpoint
from .errors import EXIT_JOB, EXIT_OK, UsageError
from .files import demand_target
from .identity import load_identity
from .input_files import read_policy
from .jobs import Job, JobState
from .participant import Session, open_session
from .paths import normal_path
from .pins import PinStore, state_folder
from .strict_json import Node
from .trust_options import add_trust_options, read_trust, warn_of_trust


def add_verbs(commands: Commands, attest: Commands) -> None:
    """Add the participant's verbs, and what prepares them: identities, policies, and `attest fetch`."""
    identity_cli.add_verbs(commands)
    policy_cli.add_verbs(commands)
    fetch_cli.add_verbs(attest)

    send_ = _verb(commands, "send", "send a file into the isolate", send)
    send_.add_argument("local", metavar="LOCAL", type=Path, help="a file here")
    send_.add_argument("path", metavar="PATH", help="its path in the isolate, such as /input/alice/table.csv")
    send_.add_argument("--append", action="store_true", help="append to the file that is there")

    run_ = _verb(commands, "run", "run a program in the isolate", run)
    run_.add_argument("program", metavar="PROGRAM", help="its path, such as /program/recommender.wasm")
    run_.add_argument(
        "--input", metavar="PATH=SHA256", action="append", default=[],
        help="run only if this file is the one there; repeat for more",
    )  # fmt: skip
    _add_wait(run_)

    get_ = _verb(commands, "get", "fetch a file from the isolate", get)
    get_.add_argument("path", metavar="PATH", help="its path in the isolate")
    get_.add_argument("--out", metavar="FILE", type=Path, required=True, help="where to write it; - is standard output")

    ls_ = _verb(commands, "ls", "list a directory in the isolate", ls)
    ls_.add_argument("path", metavar="PATH/", help="its path, such as /output/")

    status_ = _verb(commands, "status", "say where a job is", status)
    status_.add_argument("job", metavar="JOB", help="its id, as `run` printed it")
    _add_wait(status_)

    _verb(commands, "shutdown", "ask for the isolate's end; all data in it ends with it", shutdown)


def send(args: argparse.Namespace) -> int:
    """Send one file."""
    path = normal_path(args.path + args.local.name if args.path.endswith("/") else args.path)
    try:
        file = args.local.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {args.local}: {error.strerror}") from error
    with file, _session(args) as session:
        progress = Progress(f"send {args.local.name}", total=args.local.stat().st_size)
        try:
            upload = session.append if args.append else session.put
            stored = upload(path, file, progress=progress.update)
        finally:
            progress.close()
    data = {"path": stored.path, "size": stored.size, "sha256": stored.sha256.hex()}
    emit(args, data, f"{stored.path}  {stored.size} bytes  SHA-256 {stored.sha256.hex()}")
    return EXIT_OK


def get(args: argparse.Namespace) -> int:
    """Fetch one file."""
    path, to_stdout = normal_path(args.path), str(args.out) == "-"
    if to_stdout and args.json:
        raise UsageError("--json and --out - would mix on standard output", hint="give --out FILE")
    if not to_stdout:
        demand_target(args.out)
    with _session(args) as session:
        progress = Progress(f"get {path}")
        try:
            if not to_stdout:
                stored = session.get(path, args.out, progress=progress.update)
            else:
                with tempfile.TemporaryFile() as file:  # nothing reaches a pipe before the digest is right
                    stored = session.read(path, file, progress=progress.update)
                    file.seek(0)
                    shutil.copyfileobj(file, sys.stdout.buffer)
        finally:
            progress.close()
    data = {"path": path, "size": stored.size, "sha256": stored.sha256.hex(), "file": str(args.out)}
    text = f"{args.out}  {stored.size} bytes  SHA-256 {stored.sha256.hex()}"
    emit(args, data, "" if to_stdout else text)
    return EXIT_OK


def ls(args: argparse.Namespace) -> int:
    """List a directory."""
    path = args.path if args.path.endswith("/") else args.path + "/"
    with _session(args) as session:
        entries = session.list(path)
    data = {"path": path, "entries": [{"name": e.name, "kind": e.kind, "size": e.size} for e in entries]}
    lines = [f"{e.size:>12}  {e.name}" if e.kind == "file" else f"{'':>12}  {e.name}/" for e in entries]
    emit(args, data, "\n".join(lines))
    return EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Start a job, and with --wait stay until it ended."""
    program, inputs = normal_path(args.program), _inputs(args.input)
    with _session(args) as session:
        job_id = session.run(program, inputs=inputs)
        if not args.wait:
            emit(args, {"id": job_id, "state": JobState.QUEUED}, job_id)
            return EXIT_OK
        return _wait(args, session, job_id)


def status(args: argparse.Namespace) -> int:
    """Say where a job is; with --wait stay until it ended."""
    with _session(args) as session:
        if args.wait:
            return _wait(args, session, args.job)
        _print_job(args, session.job(args.job))
    return EXIT_OK


def shutdown(args: argparse.Namespace) -> int:
    """Ask for the isolate's end."""
    with _session(args) as session:
        agreed = session.shutdown()
    emit(
        args, {"agreed": agreed}, "the isolate ends" if agreed else "noted; the others who must ask have not all asked"
    )
    return EXIT_OK


def _verb(commands: Commands, name: str, summary: str, action: Verb) -> argparse.ArgumentParser:
    parser = new_parser(commands, name, summary=summary, run=action)
    parser.add_argument("--policy", metavar="FILE", type=Path, required=True, help="the policy that you have read")
    parser.add_argument(
        "--identity",
        metavar="DIR|PREFIX",
        type=Path,
        required=True,
        help="your key and certificate (PREFIX.key, PREFIX.pem)",
    )
    parser.add_argument("--new-isolate", action="store_true", help="give up the isolate used so far under this policy")
    add_trust_options(parser)
    return parser


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="stay until the job ended; exit 6 if it ended badly")
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, help="with --wait: stay no longer than this")


def _seconds(text: str) -> float:
    if not re.fullmatch("[0-9]{1,7}", text):
        raise argparse.ArgumentTypeError("a whole number of seconds is needed")
    return float(text)


def _session(args: argparse.Namespace) -> Session:
    """Open a session by the options that all participant's verbs have."""
    policy = read_policy(args.policy)
    identity = load_identity(args.identity)
    trust = read_trust(args, policy)
    endpoint = Endpoint.parse(args.isolate)
    warn_of_trust(args, trust)
    if policy.participant_of(identity.certificate) is None:
        warn(f"the policy does not name {identity.certificate_file}; the isolate will refuse it")
    pins = PinStore(state_folder() / "pins")
    known = pins.find(policy.hash) if args.new_isolate else None
    session = open_session(
        endpoint, policy.raw, trust=trust, identity=identity, pins=pins, clock=lambda: datetime.now(UTC),
        new_isolate=args.new_isolate,
    )  # fmt: skip
    if known is not None and not known.matches(session.pin):
        warn(
            f"isolate {known.fingerprint[:16]}... (since {known.since}) is forgotten; "
            f"from now on it is {session.pin.fingerprint[:16]}..., which has nothing of what was sent before"
        )
    return session


def _inputs(texts: list[str]) -> dict[str, bytes]:
    inputs: dict[str, bytes] = {}
    for text in texts:
        path, separator, digest = text.rpartition("=")
        if not separator or normal_path(path) in inputs:
            raise UsageError("--input: wrong form, or twice the same path", expected="PATH=SHA256", actual=text)
        inputs[path] = Node(digest, f"--input {path}", UsageError).hexadecimal(HASH_SIZE)
    return inputs


def _wait(args: argparse.Namespace, session: Session, job_id: str) -> int:
    progress = Progress(f"job {job_id[:8]}", unit="s")
    try:
        job = session.wait(job_id, timeout=args.timeout, progress=progress.update)
    except KeyboardInterrupt:
        say(f"job {job_id} goes on without you: veracruz status {job_id} ...")
        raise
    finally:
        progress.close()
    _print_job(args, job)
    if job.state is not JobState.ENDED:
        say("the job has not ended yet")
    return EXIT_JOB if job.outcome is not None and not job.outcome.good else EXIT_OK


def _print_job(args: argparse.Namespace, job: Job) -> None:
    data: dict[str, Any] = {"id": job.id, "state": job.state}
    lines = [f"{job.id}  {job.state}"]
    outcome = job.outcome
    if outcome is not None:
        streams = {"stdout": outcome.stdout, "stderr": outcome.stderr}
        data |= {"exit_code": outcome.exit_code, "trap": outcome.trap, "usage": outcome.usage}
        data |= {name: raw.decode("utf-8", "backslashreplace") for name, raw in streams.items()}
        lines[0] += f"  exit code {outcome.exit_code}" + (f", trap {outcome.trap}" if outcome.trap else "")
        lines += [f"  {name} {value}" for name, value in outcome.usage.items()]
        for name, raw in streams.items():
            if raw:
                lines += [f"--- {name}", raw.decode("utf-8", "backslashreplace").rstrip("\n")]
    emit(args, data, "\n".join(lines))
