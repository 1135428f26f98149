# SPDX-License-Identifier: MIT
"""Ports, event codes and fixed paths: all that the isolate and its host agree on outside TLS.

Outside TLS only these constant codes leave the isolate: no name, path, size, traceback or program output.
"""

from __future__ import annotations

from enum import IntEnum

PARENT_CIDS = (3, 2)  # Nitro's parent instance, then vhost-device-vsock's host; tried in this order
PORT_HEARTBEAT = 9000  # the isolate dials, writes HEARTBEAT, reads it back
PORT_POLICY = 9001  # the isolate dials, reads u32 big-endian length and the policy, answers one Event byte
PORT_NSM = 9002  # emulator only: u32 big-endian length and CBOR, both ways; one connection in a boot
PORT_EVENTS = 9003  # the isolate dials and writes one byte an event
PORT_API = 5000  # the isolate listens: HTTP/1.1 over TLS 1.3

HEARTBEAT = b"\xb7"  # nitro-cli's; aws-nitro-enclaves-sdk-bootstrap init.c


class Event(IntEnum):
    """One byte on port 9003, and the answer on port 9001. From 0x80 on the isolate halts right after it."""

    ATTESTOR_READY = 1
    POLICY_TAKEN = 2
    SERVING = 3
    EXPIRED = 4
    SHUTDOWN_AGREED = 5
    HALT_INTERNAL = 0x80
    HALT_NSM = 0x81  # no NSM answers
    HALT_POLICY_PCR = 0x82  # PCR16 is not zero and unlocked, or does not read back
    HALT_POLICY = 0x83  # the policy is malformed or too long
    HALT_CLOCK = 0x84  # the NSM gives no time, or one that runs back
    HALT_ROOT = 0x85  # the policy demands AWS's root and this NSM is the emulator's
    HALT_IMAGE = 0x86  # the policy accepts no image with this isolate's own measurements

    @property
    def halts(self) -> bool:
        """Whether the isolate powers off after this event."""
        return self >= 0x80
