# SPDX-License-Identifier: MIT
"""`identity new`: a key, and the certificate that a policy names."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import Commands, emit, new_group, new_parser, say
from .errors import EXIT_OK
from .identity import write_identity


def add_verbs(commands: Commands) -> None:
    """Add the noun `identity`."""
    identity = new_group(commands, "identity", summary="make the identity by which a policy knows a participant")
    new = new_parser(identity, "new", summary="make a P-256 key and its self-signed certificate", run=new_identity)
    new.add_argument("name", metavar="NAME", help="stands in the certificate, for people")
    new.add_argument("--out", metavar="DIR", type=Path, required=True, help="gets NAME.key (0600) and NAME.pem")


def new_identity(args: argparse.Namespace) -> int:
    """Make an identity."""
    identity = write_identity(args.name, args.out)
    data = {
        "name": args.name,
        "certificate": str(identity.certificate_file),
        "key": str(identity.key_file),
        "sha256": identity.fingerprint.hex(),
    }
    emit(args, data, f"certificate  {identity.certificate_file}  (SHA-256 {identity.fingerprint.hex()})")
    say(f"the key is in {identity.key_file}: keep it; the certificate goes to whoever writes the policy")
    return EXIT_OK
