# SPDX-License-Identifier: MIT
"""The command `veracruz`: one parser out of each package's own verbs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attestation.console import run_command, run_verb

if TYPE_CHECKING:
    import argparse

PACKAGES = ("attestation", "enclave_image", "host_shim")
IMAGE_COMMANDS = frozenset({"image", "cache"})  # the other packages take longer to import than an unchanged build takes


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """Return the whole command line; of a command that is named in IMAGE_COMMANDS no more than its own part."""
    from attestation.arguments import Parser
    from enclave_image import cli as image_cli  # here, where Ctrl-C is already answered: these take a while

    parser = Parser(prog="veracruz", description="Compute together in attested isolates.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    image_cli.add_verbs(commands)
    if command in IMAGE_COMMANDS:
        return parser

    from attestation import cli as attestation_cli
    from attestation import explain_cli

    from . import doctor_cli, enclave_cli, metrics_cli, relay_cli

    enclave_cli.add_verbs(commands)
    doctor_cli.add_verbs(commands)
    metrics_cli.add_verbs(commands)
    relay_cli.add_verbs(commands)
    attestation_cli.add_verbs(commands)
    explain_cli.add_verbs(commands, PACKAGES)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run its verb, return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: run_verb(make_parser(words[0] if words else "").parse_args(words)))


if __name__ == "__main__":
    sys.exit(main())
