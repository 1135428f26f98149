# SPDX-License-Identifier: MIT
"""`python -m attestation verify FILE`."""

import sys

from .cli import main

sys.exit(main())
