# SPDX-License-Identifier: MIT
"""Pinned isolates: a participant's first verb remembers the isolate under the policy's hash, later ones refuse another.

An isolate is its TLS key. A host can boot any number of isolates that all pass verification, so evidence alone does not
show that this is the one that holds what was sent before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .binding import HASH_SIZE
from .certificates import MAX_DER
from .errors import EnvironmentLacks, IsolateChanged, MalformedInput, UsageError
from .files import naming, read_limited, user_folder, write_new, write_whole
from .strict_json import read_json

SCHEMA = "veracruz.pin/1"
MAX_PIN = 64 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Pin:
    """One isolate: its certificate (DER), the root under which it was verified (SHA-256), and when that was."""

    certificate: bytes
    root: bytes
    since: str

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate, as hex: how an isolate is named to people."""
        return hashlib.sha256(self.certificate).hexdigest()

    def matches(self, other: Pin) -> bool:
        """Return whether both are the same isolate under the same root."""
        return (self.certificate, self.root) == (other.certificate, other.root)


def new_pin(certificate: bytes, root: bytes, *, at: datetime) -> Pin:
    """Return the pin of an isolate that was verified at a time."""
    return Pin(certificate, root, at.strftime("%Y-%m-%dT%H:%M:%SZ"))


def state_folder() -> Path:
    """Return where this user's state is kept."""
    return user_folder("XDG_STATE_HOME", ".local/state")


class PinStore:
    """The pins of one user: a file POLICYHASH.json for each policy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, policy_hash: bytes) -> Pin | None:
        """Return the pin under a policy; raise MalformedInput for a file that is none (it is not ignored)."""
        path = self._path(policy_hash)
        if not path.exists():
            return None
        raw = read_limited(path, limit=MAX_PIN, what="pin")
        with naming(path, hint="restore it; to give up the isolate that it names, say --new-isolate"):
            top = read_json(raw, limit=MAX_PIN, what="the pin", refusal=MalformedInput)
            members = top.object("schema", "policy", "certificate", "root", "since")
            if members["schema"].value != SCHEMA or members["policy"].hexadecimal(HASH_SIZE) != policy_hash:
                raise MalformedInput(
                    "the pin is another policy's, or of another schema",
                    expected=f"{SCHEMA} of policy {policy_hash.hex()}", actual=members["policy"].value,
                )  # fmt: skip
            size = len(members["certificate"].text(most=2 * MAX_DER)) // 2
            certificate = members["certificate"].hexadecimal(size)
            return Pin(certificate, members["root"].hexadecimal(HASH_SIZE), members["since"].text(most=32))

    def check(self, policy_hash: bytes, pin: Pin) -> None:
        """Raise IsolateChanged if another isolate is pinned under the policy."""
        known = self.find(policy_hash)
        if known is not None and not known.matches(pin):
            raise IsolateChanged(
                f"another isolate answers than the one that you have used under this policy since {known.since}",
                expected=known.fingerprint,
                actual=pin.fingerprint,
                hint="what you sent is not in this one; if you mean to start anew with it: --new-isolate",
            )

    def keep(self, policy_hash: bytes, pin: Pin) -> None:
        """Pin an isolate if none is pinned; raise IsolateChanged if another one is, be it since a moment ago."""
        self.check(policy_hash, pin)
        if self.find(policy_hash) is not None:
            return
        try:
            self._make_folder()
            write_new(self._path(policy_hash), _dump(policy_hash, pin), mode=0o600)
        except UsageError:  # another verb was faster
            self.check(policy_hash, pin)

    def replace(self, policy_hash: bytes, pin: Pin) -> None:
        """Pin an isolate whatever was pinned before."""
        self._make_folder()
        write_whole(self._path(policy_hash), _dump(policy_hash, pin), mode=0o600)

    def _path(self, policy_hash: bytes) -> Path:
        return self._folder / f"{policy_hash.hex()}.json"

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentLacks(f"cannot make {self._folder}: {error.strerror}") from error


def _dump(policy_hash: bytes, pin: Pin) -> bytes:
    members = {
        "schema": SCHEMA,
        "policy": policy_hash.hex(),
        "certificate": pin.certificate.hex(),
        "root": pin.root.hex(),
        "since": pin.since,
    }
    return (json.dumps(members, indent=2) + "\n").encode()
