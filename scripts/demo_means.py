# SPDX-License-Identifier: MIT
"""Who takes part in the demo, and the commands that they type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_stage import Person, Refusal, Stage, StepFailed

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED = "../shared"  # the folder of what is public among all, as seen from each person's own
IMAGE = f"{SHARED}/image.eif"
MEASUREMENTS = f"{SHARED}/measurements.json"
POLICY = f"{SHARED}/policy.json"
ROOT = f"{SHARED}/root.pem"
PROGRAM = "/program/recommender.wasm"
MODEL = "/output/model.json"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    kind: str  # of isolate: qemu or process
    image: Path | None  # one that is built already
    build_options: tuple[str, ...]

    @property
    def boots(self) -> bool:
        """Whether an image is booted, and not the runtime started as a process."""
        return self.kind != "process"


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part, and the folder of what is public."""

    alice: Person
    bob: Person
    mallory: Person
    host: Person
    shared: Path


@dataclass(frozen=True, slots=True)
class Isolate:
    """A running isolate, as the host tells of it; nobody believes it."""

    name: str
    address: str

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.address.rpartition(":")
        return host, int(port)


@dataclass(frozen=True, slots=True)
class Means:
    """The commands, with the options that each needs here."""

    stage: Stage
    options: Options
    cast: Cast

    def trust(self, address: str, *, root: bool = True) -> list[str]:
        """Return the options by which a participant says where the isolate is and what they trust."""
        given = ["--root", ROOT] if root else []  # without: AWS's
        if self.options.boots or not root:
            return ["--isolate", address, "--policy", POLICY, "--measurements", MEASUREMENTS, *given]
        return ["--isolate", address, "--policy", POLICY, "--allow-debug", *given]

    def verb(
        self, person: Person, address: str, *words: str, refusal: Refusal | None = None, shown: bool = True
    ) -> dict[str, Any]:
        """Run a participant's verb."""
        command = [*words, *self.trust(address), "--identity", "."]
        return self.stage.veracruz(person, *command, refusal=refusal, shown=shown)

    def send(
        self, person: Person, address: str, local: str, path: str, *, refusal: Refusal | None = None
    ) -> dict[str, Any]:
        """Send a file."""
        return self.verb(person, address, "send", local, path, refusal=refusal)

    def fetch(
        self, person: Person, address: str, *, refusal: Refusal | None = None, root: bool = True
    ) -> dict[str, Any]:
        """Fetch evidence and check it."""
        return self.stage.veracruz(person, "attest", "fetch", *self.trust(address, root=root), refusal=refusal)

    def policy_command(self, out: str, *more: str) -> list[str]:
        """Return the command that writes the policy, or with further options another one."""
        return [
            "policy", "new", "--name", "which cracker next", "--out", out, "--measurements", MEASUREMENTS,
            "--participant", f"alice={SHARED}/alice.pem", "--participant", f"bob={SHARED}/bob.pem",
            "--program", f"{PROGRAM}={SHARED}/recommender.wasm",
            "--program-right", f"{PROGRAM}:/input/:read", "--program-right", f"{PROGRAM}:/output/:write",
            "--program-limit", f"{PROGRAM}=memory_mib=16", "--program-limit", f"{PROGRAM}=fuel=2000000000",
            "--right", f"alice:{PROGRAM}:write,execute,observe", "--right", "alice:/input/alice/:write,list",
            "--right", "alice:/output/:read,list",
            "--right", f"bob:{PROGRAM}:execute,observe", "--right", "bob:/input/bob/:write,list",
            "--right", "bob:/output/:read,list", *more,
        ]  # fmt: skip

    def boot_command(self, name: str, image: str, policy: str) -> list[str]:
        """Return the command that starts an isolate; it goes on when the command returns."""
        what = [image] if self.options.boots else ["--isolate", "process"]
        return ["enclave", "run", *what, "--policy", policy, "--listen", "127.0.0.1:0", "--name", name, "--detach"]

    def boot(self, command: list[str], *, shown: bool = True) -> dict[str, Any]:
        """Start an isolate, which is stopped when the story ends, however it ends."""
        self.stage.started(self.cast.host, command[command.index("--name") + 1])
        return self.stage.veracruz(self.cast.host, *command, shown=shown)


def demand(holds: bool, what: str) -> None:
    """Raise StepFailed unless what must hold does."""
    if not holds:
        raise StepFailed(what)
