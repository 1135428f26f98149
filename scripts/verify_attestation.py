#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A relying party's client in one page: verify a Nitro attestation document against an image and a nonce of one's own.

usage: verify_attestation.py DOCUMENT MEASUREMENTS.json NONCE_HEX [ROOT.pem]
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from attestation.chain import aws_root, load_root
from attestation.errors import VeracruzError
from attestation.expectations import Expectations, ImageIs, NonceIs
from attestation.files import read_limited
from attestation.measurements import load_measurements
from attestation.verifier import verify


def main(*arguments: str) -> int:
    """Verify and print what the document binds; return an exit code."""
    if len(arguments) not in (3, 4):
        print(f"expected 3 or 4 arguments, got {len(arguments)}\n{__doc__}", file=sys.stderr)
        return 2
    try:
        files = arguments[:2] + arguments[3:]
        document, images, *root = [read_limited(Path(name), limit=65536, what="file") for name in files]
        expected = Expectations.of(ImageIs.any_of(load_measurements(images)), NonceIs(bytes.fromhex(arguments[2])))
        chosen = load_root(root[0]) if root else aws_root()
        appraisal = verify(document, expected=expected, at=datetime.now(UTC), roots=[chosen])
    except (VeracruzError, ValueError) as error:  # ValueError: a nonce that is no hex
        print(f"{getattr(error, 'slug', 'usage: NONCE_HEX')}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    print(appraisal.verdict, appraisal.module_id, (appraisal.public_key or b"").hex())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
