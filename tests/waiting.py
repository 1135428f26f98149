# SPDX-License-Identifier: MIT
"""Waiting for what happens a little later than the call that caused it: a killed process takes a moment to be gone."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 30.0  # seconds; a loaded machine needs some of them, a test that passes none


def eventually(happened: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Return whether something happens within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
