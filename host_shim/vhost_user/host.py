# SPDX-License-Identifier: MIT
"""On which machines the backend can be: it shares rings with a guest, and relies on the processor's memory order."""

from __future__ import annotations

import os

from attestation.errors import EnvironmentLacks

HOST = "x86_64"  # as uname has it; virtqueue.py has no barrier for another order, and that machine is little-endian


def demand_host() -> None:
    """Raise EnvironmentLacks on a host whose memory order virtqueue.py does not hold."""
    machine = os.uname().machine
    if machine != HOST:
        raise EnvironmentLacks(
            "the vsock backend serves x86-64 hosts alone: its rings rely on their memory order", expected=HOST,
            actual=machine, hint="on this host, isolates of the kinds process and nitro",
        )  # fmt: skip
