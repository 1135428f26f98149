# SPDX-License-Identifier: MIT
"""The options by which a person says what they trust, the same on every verb; each unsafe one speaks aloud."""

from __future__ import annotations

import argparse
from pathlib import Path

from .appraising import Trust
from .console import warn
from .errors import UsageError
from .input_files import read_measurements, read_root
from .policy import Policy

AWS_ROOT = "aws"  # what --root names where it is no file


def add_trust_options(parser: argparse.ArgumentParser) -> None:
    """Add where the isolate is, and what is trusted of it."""
    add = parser.add_argument
    add("--isolate", metavar="HOST:PORT", required=True, help="where the isolate is reached (or unix:PATH)")
    add(
        "--measurements", metavar="FILE", type=Path, action="append", default=[],
        help="PCR0, PCR1 and PCR2 of an image that you trust, of your own rebuild; repeat for more",
    )  # fmt: skip
    add("--root", metavar="aws|FILE", default=AWS_ROOT, help="the root to trust (default: AWS's); never remembered")
    add("--allow-debug", action="store_true", help="unsafe: accept an isolate in debug mode (development root only)")
    add(
        "--unsafe-accept-policy-image", action="store_true",
        help="unsafe: without --measurements, trust whatever image the policy names",
    )  # fmt: skip


def read_trust(args: argparse.Namespace, policy: Policy) -> Trust:
    """Return what the options say is trusted; raise UsageError where no image is."""
    images = read_measurements(args.measurements)
    if images and args.unsafe_accept_policy_image:
        raise UsageError("--unsafe-accept-policy-image stands instead of --measurements, not beside it")
    if args.unsafe_accept_policy_image:
        images = policy.images
    if not images and not args.allow_debug:
        raise UsageError(
            "nothing of your own says which image may run: whoever wrote the policy chose it alone",
            expected="--measurements FILE",
            hint="rebuild the image (veracruz image build); else, unsafe: --unsafe-accept-policy-image",
        )
    return Trust(read_root(args.root), images, allow_debug=args.allow_debug)


def warn_of_trust(args: argparse.Namespace, trust: Trust) -> None:
    """Say on stderr what of it is unsafe, each time."""
    if trust.root.development:
        warn(
            f"{trust.root.name} is not AWS's root: whoever holds its key can make any evidence, and read what you send"
        )
    if args.unsafe_accept_policy_image:
        warn(
            "--unsafe-accept-policy-image: you trust the image that the policy's writer chose, and have not checked it"
        )
    if trust.allow_debug:
        warn("--allow-debug: the host of an isolate in debug mode reads all that is in it, and no image is checked")
