# SPDX-License-Identifier: MIT
"""An isolate whose guest is `stub_guest`: the real interface, real processes and sockets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from attestation.measurements import Measurements
from enclave_image.runtime.wire import PORT_API
from host_shim.children import Child, python_command
from host_shim.isolate import BesideUs, Evidence, Running


@dataclass(frozen=True, slots=True)
class StubIsolate(BesideUs):
    """Lives or dies in the way that it is given."""

    way: str = "serves"
    accel: str | None = None
    tentative: bool = False
    kind: str = "stub"
    caution: str = "a stub"
    evidence: Evidence = Evidence.DEVELOPMENT
    measurements: Measurements | None = None
    signer: bytes | None = None
    port: int = PORT_API

    async def start(self, base: Path, log: int) -> Running:
        """Start the guest, and for some ways a helper that ends when its file goes away."""
        mark = base.with_name("helper")
        helpers: tuple[Child, ...] = ()
        if self.way.endswith("-after-helper"):
            mark.touch()
            helpers = (Child(["sh", "-c", f"while [ -e {mark} ]; do sleep 0.01; done"], name="helper"),)
        console, console_end = os.pipe()
        complaints, complaints_end = os.pipe()
        guest = Child(
            python_command("tests.host_shim.stub_guest", str(base), self.way),
            name="stub guest", stdout=console_end, stderr=complaints_end,
        )  # fmt: skip
        os.close(console_end)
        os.close(complaints_end)
        return Running(guest, helpers, console, complaints, target=f"{base}_{self.port}")
