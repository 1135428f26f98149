# SPDX-License-Identifier: MIT
"""What ends a connection, a device or the backend; the texts are constant, since a guest can provoke them at will."""

from __future__ import annotations

import os

from attestation.errors import EnvironmentLacks, VeracruzError

MAX_LINES = 256  # lines of log in a backend's life: an unread pipe of 64 KiB never blocks it


class GuestFault(VeracruzError):
    """The guest's rings or descriptors break the rules of virtio; its device stops until it is reset."""

    slug = "guest-fault"
    cure = "Boot the isolate again. If it stays, the image's virtio driver is faulty or hostile."


class FrontendFault(VeracruzError):
    """QEMU's vhost-user messages break the rules of the protocol; its session ends."""

    slug = "frontend-fault"
    cure = "Start the isolate again with a supported QEMU (7.2 or later)."


class SocketInUse(EnvironmentLacks):
    """Another process listens on a Unix socket that the backend needs."""

    slug = "socket-in-use"
    cure = "Stop the process that holds the socket, or start the isolate under another name."


class UnsafeDirectory(EnvironmentLacks):
    """Somebody else could put sockets of their own into the directory."""

    slug = "unsafe-directory"
    cure = "Use a directory of your own that nobody else can write to, with a short path."


class FaultLog:
    """Writes each constant line to stderr at most once in a boot of the guest, and few in all."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._left = MAX_LINES

    def note(self, line: str) -> None:
        """Log `line`, a constant of ours, unless this boot has seen it already."""
        if line in self._seen or not self._left:
            return
        self._seen.add(line)
        self._left -= 1
        # Not print: a closed or full stderr must not end the backend.
        try:
            os.write(2, f"vhost-user-vsock: {line}\n".encode())
        except OSError:
            self._left = 0

    def new_boot(self) -> None:
        """Let every line be written once more."""
        self._seen.clear()
