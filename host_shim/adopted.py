# SPDX-License-Identifier: MIT
"""An enclave that goes on under nitro-cli, taken over by a new supervisor: nothing is started, it is only reached."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from attestation.errors import VeracruzError
from attestation.measurements import Measurements, load_measurements

from .errors import IsolateDied
from .isolate import Evidence, Running
from .nitro import NitroHost, VsockHost, read_console
from .nitro_cli import NitroCli
from .nitro_guest import NitroGuest
from .parent_seat import Seat
from .record import Outside, Record

CAUTION = "taken over as it is: its events are not heard any more, so that its end is told, but not why it came"


@dataclass(frozen=True, slots=True)
class AdoptedEnclave:
    """The enclave of one record."""

    kept: Outside
    measurements: Measurements | None
    debug_mode: bool
    port: int
    host: NitroHost = field(default_factory=VsockHost)
    kind: str = "nitro"
    accel: str | None = None
    tentative: bool = False
    adopted: bool = True
    caution: str = CAUTION
    evidence: Evidence = Evidence.AWS
    signer: bytes | None = None

    @classmethod
    def of(cls, record: Record) -> AdoptedEnclave:
        """Return the enclave that a record tells of."""
        assert record.outside is not None
        measured = None
        if not record.debug:
            try:
                measured = load_measurements(json.dumps({"Measurements": record.measurements}).encode())[0]
            except VeracruzError as error:
                raise IsolateDied("the record's measurements have another form", actual=error) from error
        return cls(record.outside, measured, record.debug, record.port)

    def seat(self, base: Path) -> Seat:
        """Return the parent's ports, of which only those of the way out are opened any more."""
        return self.host.seat(self.kept.name, self.kept.cid)

    def outside(self, base: Path) -> Outside:
        """Return under which name nitro-cli knows it."""
        return self.kept

    async def start(self, base: Path, log: int) -> Running:
        """Watch the process of nitro-cli that holds it; raise IsolateDied if there is none."""
        enclave = NitroCli(self.kept.tool).find(self.kept.name)
        if enclave is None:
            raise IsolateDied("the enclave has ended meanwhile", actual=self.kept.name)
        complaints, complaints_end = os.pipe()
        guest = NitroGuest(self.kept.tool, self.kept.name, complaints=complaints_end, enclave=enclave)
        console, extras = read_console(self.host, self.kept.name, self.kept.cid, log, debug_mode=self.debug_mode)
        return Running(
            guest, (), console, complaints, extras, self.host.target(self.kept.name, self.kept.cid, self.port)
        )
