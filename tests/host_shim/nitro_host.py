# SPDX-License-Identifier: MIT
"""Unix sockets in the place of the kernel's vsock, as fake_nitro_cli's enclaves use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from host_shim.parent_seat import Seat, UnixSeat


class _SharedSeat(UnixSeat):
    """Ports that are closed early, as on vsock."""

    shared = True


@dataclass(frozen=True, slots=True)
class UnixNitroHost:
    """Everything of an enclave lies under HOME/NAME."""

    home: Path

    def seat(self, name: str, cid: int) -> Seat:
        """Return the parent's ports."""
        (self.home / name).mkdir(exist_ok=True)  # the parent listens before the launcher begins
        return _SharedSeat(self.home / name / "v")

    def target(self, name: str, cid: int, port: int) -> str:
        """Return the port's socket."""
        return f"{self.home / name / 'v'}_{port}"

    def console(self, name: str, cid: int) -> Sequence[str]:
        """Return a socket where the console would be."""
        return ("--unix", f"{self.home / name / 'console.sock'}")
