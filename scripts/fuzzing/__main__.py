# SPDX-License-Identifier: MIT
"""The command `scripts/fuzz`: run a target for a while, replay one input, write the seed corpora."""

from __future__ import annotations

import argparse
import faulthandler
import sys
from pathlib import Path

from attestation.console import emit, run_command, run_verb, say
from attestation.errors import EXIT_OK, EXIT_REFUSED
from attestation.files import read_limited, user_folder

from .campaign import HARD_SECONDS, fuzz
from .findings import default_folder, replay_command
from .seeds import CORPUS, write_seeds
from .target import TOP, Target, bounded_memory, judge
from .targets import TARGETS

MAX_INPUT = 1 << 20  # bytes of a file to replay
DEFAULT_MINUTES = 2.0


def replay(target: Target, path: Path) -> int:
    """Run one input again; show what is wrong with it."""
    data = read_limited(path, limit=MAX_INPUT, what="input")
    faulthandler.dump_traceback_later(HARD_SECONDS, exit=True, file=sys.__stderr__)
    with bounded_memory():
        finding = judge(target, data)
    faulthandler.cancel_dump_traceback_later()
    if finding is None:
        say(f"{target.name}: nothing is wrong with this input")
        return EXIT_OK
    say(f"{finding.place}: {finding.message}\n\n{finding.trace}")
    return EXIT_REFUSED


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Fuzz one reader of untrusted bytes, guided by coverage.", allow_abbrev=False
    )
    add = parser.add_argument
    add("target", nargs="?", metavar="TARGET", help="what to fuzz; without it, the targets are listed")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, metavar="M", help="for how long (default: 2)")
    length.add_argument("--runs", type=int, metavar="N", help="how many inputs")
    add("--corpus", type=Path, metavar="DIR", help="where inputs that reach something new are kept (default: cache)")
    add("--findings", type=Path, metavar="DIR", help="where findings are saved (default: the state directory)")
    add("--seed", type=int, default=1, metavar="N", help="of the random numbers (default: 1)")
    add("--json", action="store_true", help="print the result as one JSON object")
    add("--replay", type=Path, metavar="FILE", help="run one input again and show what is wrong with it")
    add("--write-seeds", action="store_true", help="write the seed corpora of the checkout anew")
    args = parser.parse_args()
    args.run, args.debug = _run, False
    if args.target is not None and args.target not in TARGETS:
        parser.error(f"no such target: {args.target!a}; expected one of {', '.join(TARGETS)}")
    return run_verb(args)


def _run(args: argparse.Namespace) -> int:
    if args.write_seeds:
        say(f"{write_seeds()} seeds written to {CORPUS.relative_to(TOP)}/")
        return EXIT_OK
    if args.target is None:
        for target in TARGETS.values():
            print(f"  {target.name:<16} {target.what}")
        return EXIT_OK
    target = TARGETS[args.target]
    if args.replay is not None:
        return replay(target, args.replay)
    result = fuzz(
        target,
        seconds=None if args.runs else 60 * (args.minutes or DEFAULT_MINUTES),
        runs=args.runs,
        corpus=args.corpus or user_folder("XDG_CACHE_HOME", ".cache") / "fuzz" / target.name,
        findings=args.findings or default_folder(target.name),
        seed=args.seed,
    )
    for path in result.findings:
        say(f"finding: {replay_command(target.name, path)}")
    data = {
        "fuzz": result.target,
        "inputs": result.inputs,
        "seconds": round(result.seconds, 1),
        "edges": result.edges,
        "corpus": result.corpus,
        "findings": [str(path) for path in result.findings],
    }
    text = (
        f"{result.target}: {result.inputs} inputs in {result.seconds:.0f} s, {result.edges} edges, "
        f"{result.corpus} inputs kept, {len(result.findings)} findings"
    )
    emit(args, data, text)
    return EXIT_REFUSED if result.findings else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
