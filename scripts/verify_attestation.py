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
from attestation.measurements import load_measurements
from attestation.verifier import verify


def main(*arguments: str) -> int:
    """Verify and print what the document binds; return an exit code."""
    try:
        document, measurements, nonce, root = arguments if len(arguments) == 4 else (*arguments, None)
        image = ImageIs.any_of(load_measurements(Path(measurements).read_bytes()))
        expected = Expectations.of(image, NonceIs(bytes.fromhex(nonce)))
        chosen = load_root(Path(root).read_bytes()) if root else aws_root()
        appraisal = verify(Path(document).read_bytes(), expected=expected, at=datetime.now(UTC), roots=[chosen])
    except VeracruzError as error:
        print(f"{error.slug}: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError) as error:  # a file that cannot be read, a nonce that is no hex, a wrong count
        print(f"{error}\n{__doc__}", file=sys.stderr)
        return 2
    print(appraisal.verdict, appraisal.module_id, (appraisal.public_key or b"").hex())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
