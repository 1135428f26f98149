# SPDX-License-Identifier: MIT
"""Alice, Bob and Mallory, and the policy of the first two: what tests of the participants' side start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attestation.identity import Identity, write_identity

from .documents import IMAGE

WASM = b"\0asm\1\0\0\0"
PROGRAM = "/program/recommender.wasm"


@dataclass(frozen=True)
class Parties:
    """Three identities, each in a folder of its own."""

    alice: Identity
    bob: Identity
    mallory: Identity

    def members(self) -> dict[str, Any]:
        """Return the members of the policy of Alice and Bob, fresh, to be changed by a test."""
        named = {"alice": self.alice, "bob": self.bob}
        return policy_members({name: identity.certificate_file.read_text() for name, identity in named.items()})

    def policy(self) -> bytes:
        """Return that policy's bytes."""
        return dump(self.members())


def policy_members(certificates: Mapping[str, str]) -> dict[str, Any]:
    """Return the members of the policy of Alice and Bob, whose certificates (PEM) are given."""
    return {
        "schema": "veracruz.policy/1",
        "name": "two retailers",
        "images": [{f"PCR{index}": value.hex() for index, value in enumerate(IMAGE.registers)}],
        "participants": [
            {
                "name": "alice",
                "certificate": certificates["alice"],
                "rights": {
                    "/input/alice/": ["write", "list"],
                    "/output/": ["read", "list"],
                    PROGRAM: ["write", "execute", "observe"],
                },
            },
            {
                "name": "bob",
                "certificate": certificates["bob"],
                "rights": {"/input/bob/": ["write"], "/output/": ["read"], PROGRAM: ["execute"]},
            },
        ],
        "join": ["alice", "bob"],
        "programs": [
            {
                "path": PROGRAM,
                "sha256": hashlib.sha256(WASM).hexdigest(),
                "rights": {"/input/": ["read"], "/output/": ["write"]},
                "args": ["--rounds", "10"],
                "env": {"SEED": "1"},
                "limits": {"memory_mib": 32, "wall_s": 10, "fuel": 1000000},
            }
        ],
        "pins": {"/input/model.json": "ab" * 32},
        "once": ["/input/alice/"],
        "limits": {"storage_mib": 8, "file_mib": 2, "jobs": 1},
        "clock": False,
        "lifecycle": {
            "not_after": "2027-01-01T00:00:00Z",
            "runs": {PROGRAM: 3},
            "shutdown": ["alice", "bob"],
        },
    }


def make_parties(folder: Path) -> Parties:
    """Make the identities."""
    return Parties(*(write_identity(name, folder / name) for name in ("alice", "bob", "mallory")))


def dump(members: dict[str, Any]) -> bytes:
    """Return a policy's bytes."""
    return json.dumps(members, indent=2).encode()
