# SPDX-License-Identifier: MIT
"""A policy in the making: values collected one by one, then written in the one layout that people compare."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .measurements import Measurements
from .policy import SCHEMA, parse_policy


@dataclass(slots=True)
class DraftProgram:
    """What is known of one program so far."""

    sha256: bytes
    rights: dict[str, list[str]] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class DraftParticipant:
    """What is known of one participant so far."""

    certificate: str  # PEM
    rights: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Draft:
    """Everything that a policy can say; what stays None or empty and is optional is left out."""

    name: str
    images: list[Measurements] = field(default_factory=list)
    root: str | None = None
    participants: dict[str, DraftParticipant] = field(default_factory=dict)
    join: list[str] = field(default_factory=list)
    programs: dict[str, DraftProgram] = field(default_factory=dict)
    pins: dict[str, bytes] = field(default_factory=dict)
    once: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    clock: bool = False
    not_after: str | None = None
    runs: dict[str, int] = field(default_factory=dict)
    shutdown: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the policy's bytes; raise MalformedPolicy if what was collected does not make a policy."""
        raw = (json.dumps(self._members(), indent=2) + "\n").encode()
        parse_policy(raw)
        return raw

    def _members(self) -> dict[str, Any]:
        lifecycle = _given(not_after=self.not_after, runs=self.runs, shutdown=self.shutdown)
        return {
            "schema": SCHEMA,
            "name": self.name,
            **_given(root=self.root),
            "images": [
                {f"PCR{index}": value.hex() for index, value in enumerate(image.registers)} for image in self.images
            ],
            "participants": [
                {"name": name, "certificate": party.certificate, "rights": party.rights}
                for name, party in self.participants.items()
            ],
            "join": self.join or list(self.participants),
            "programs": [
                {
                    "path": path,
                    "sha256": program.sha256.hex(),
                    "rights": program.rights,
                    **_given(args=program.args, env=program.env, limits=program.limits),
                }
                for path, program in self.programs.items()
            ],
            **_given(pins={path: digest.hex() for path, digest in self.pins.items()}, once=self.once),
            **_given(limits=self.limits),
            "clock": self.clock,
            **_given(lifecycle=lifecycle),
        }


def _given(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value not in (None, [], {})}
