# SPDX-License-Identifier: MIT
"""The `process` isolate: the runtime as a child process, for developing programs and policies in seconds.

Its emulator is in debug mode (PCR0-2 zero), so that clients refuse it unless they are told `--allow-debug`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from attestation.measurements import Measurements

from .children import Child, python_command
from .isolate import BesideUs, Evidence, Running

RUNTIME = "enclave_image.runtime.process"
CAUTION = (
    "a `process` isolate protects nothing: it runs on this host's own Python, in debug mode, without the jail of an"
    " image, and with the host's clock"
)


@dataclass(frozen=True, slots=True)
class ProcessIsolate(BesideUs):
    """The runtime of this checkout; no image is booted, so none is measured."""

    kind: str = "process"
    accel: str | None = None
    tentative: bool = False
    caution: str = CAUTION
    evidence: Evidence = Evidence.DEVELOPMENT
    measurements: Measurements | None = None
    signer: bytes | None = None

    async def start(self, base: Path, log: int) -> Running:
        """Start the runtime with a scratch directory beside its sockets."""
        scratch = base.parent / "scratch"
        scratch.mkdir(mode=0o700, exist_ok=True)
        console, console_end = os.pipe()
        try:
            guest = Child(
                python_command(RUNTIME, str(base), str(scratch)),
                name="runtime", stdout=console_end, stderr=console_end,
            )  # fmt: skip
        except BaseException:
            os.close(console)
            raise
        finally:
            os.close(console_end)
        return Running(guest, (), console)
