# SPDX-License-Identifier: MIT
"""The relying party's verbs, and `python -m attestation` for who installs nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import explain_cli, participant_cli, verify_cli
from .arguments import Parser
from .console import Commands, new_group, run_command, run_verb


def add_verbs(commands: Commands) -> None:
    """Add this package's verbs to the command line."""
    attest = new_group(commands, "attest", summary="fetch evidence from an isolate and verify it")
    verify_cli.add_verbs(attest)
    participant_cli.add_verbs(commands, attest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m attestation verify ...`: the verifier alone, and what its errors mean."""
    parser = Parser(prog="python -m attestation")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verify_cli.add_verbs(commands)
    explain_cli.add_verbs(commands, ["attestation"])
    return run_command(lambda: run_verb(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
