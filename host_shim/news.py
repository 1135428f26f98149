# SPDX-License-Identifier: MIT
"""What a supervisor can learn about its isolate, and how each event code is told to people."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from enclave_image.runtime.wire import Event

from .children import Process


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The guest's first sign of life, answered."""


@dataclass(frozen=True, slots=True)
class EventCode:
    """A byte that the isolate told; None for one that this host does not know."""

    event: Event | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A process of ours has ended."""

    child: Process
    code: int


@dataclass(frozen=True, slots=True)
class Complaint:
    """A line that the program that runs the guest wrote to stderr, escaped."""

    line: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody wants the isolate to end."""

    signal: signal.Signals


FromGuest = Heartbeat | EventCode
News = FromGuest | Ended | Complaint | Asked

TOLD = {
    Event.ATTESTOR_READY: "attestor ready",
    Event.POLICY_TAKEN: "policy taken",
    Event.SERVING: "serving",
    Event.EXPIRED: "the policy has expired",
    Event.SHUTDOWN_AGREED: "its participants agreed to shut it down",
}
# After these the isolate's end is no accident.
FAREWELLS = {Event.EXPIRED: "the policy expired", Event.SHUTDOWN_AGREED: "shut down by its participants"}
# What happened, and what to do about it.
HALTS: dict[Event, tuple[str, str | None]] = {
    Event.HALT_INTERNAL: ("an error inside the runtime", None),
    Event.HALT_NSM: ("no security module answered inside", None),
    Event.HALT_POLICY_PCR: ("PCR16 was not zero and unlocked, or did not read back", None),
    Event.HALT_POLICY: ("it refuses the policy as malformed or too long", "veracruz policy check FILE"),
    Event.HALT_CLOCK: ("the security module gave no time, or one that runs back", "check this host's clock"),
    Event.HALT_ROOT: (
        "the policy demands AWS's root, and here is an emulated module",
        "leave `root` out of the policy, or name the development root's hash",
    ),
    Event.HALT_IMAGE: (
        "the policy does not accept this image",
        "compare: veracruz image describe IMAGE.eif, and `images` in the policy",
    ),
}
# The same image and policy halt in the same way each time.
REPEATING_HALTS = frozenset({Event.HALT_POLICY, Event.HALT_POLICY_PCR, Event.HALT_ROOT, Event.HALT_IMAGE})


def tell_event(event: Event | None) -> str:
    """Return an event in words."""
    return TOLD.get(event, "an event of a kind that this host does not know") if event else "an unknown event"
