# SPDX-License-Identifier: MIT
"""A vsock peer that asks and never listens, and what a kernel does about it.

On Nitro the enclave's peer is the parent's kernel, whose driver stops taking packets while too many of its own replies
wait. If the enclave's kernel stops likewise, both can wait for each other for good. So the peer here requests
connections to a port where nobody listens, and takes none of the resets: how many requests does the guest take?

    python -m tests.boot.neglect IMAGE.eif
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from enclave_image.eif import Eif, SectionType, load_eif, read_eif, write_eif
from enclave_image.initramfs import File, write_cpio
from host_shim.accel import Accel
from host_shim.qemu import BootFiles, Machine, QemuIsolate, find_qemu
from host_shim.vhost_user import packet
from host_shim.vhost_user.errors import FaultLog
from host_shim.vhost_user.inbox import Inbox
from host_shim.vhost_user.loop import Loop
from host_shim.vhost_user.packet import Address
from host_shim.vhost_user.session import Session
from host_shim.vhost_user.virtqueue import Virtqueue

GUEST_CID, PARENT_CID = 4, 3
CLOSED_PORT = 5000
RING = 1024  # places of QEMU's rings for vsock
REQUESTS = 8 * RING
SILENCE = 10.0  # seconds without a buffer of the guest's, after which it counts as stopped
START = 120.0  # seconds for the guest's driver to be there


@dataclass(slots=True)
class Neglectful:
    """A device that sends requests while the guest takes them, and looks at what the guest sends only when told to."""

    requested: int = 0
    resets: int = 0  # taken from the guest
    listening: bool = False
    last: float = field(default_factory=time.monotonic)  # when something moved
    inbox: Inbox | None = None
    outbox: Virtqueue | None = None

    @property
    def running(self) -> bool:
        return self.inbox is not None

    def attach(self, receive: Virtqueue, transmit: Virtqueue) -> None:
        self.inbox, self.outbox = Inbox(receive, GUEST_CID), transmit

    def detach(self) -> None:
        self.inbox = self.outbox = None

    def lose_guest(self) -> None:
        pass

    def service(self) -> bool:
        """Do some work; return whether there is more to do at once."""
        if self.inbox is None or self.outbox is None:
            return False
        more = self._listen(self.outbox) if self.listening else False
        while self.requested < REQUESTS:
            address = Address(PARENT_CID, 10_000 + self.requested, CLOSED_PORT)
            if not self.inbox.send(address, packet.REQUEST, window=1 << 18):
                more = self.inbox.arm() or more
                break
            self.requested += 1
            self.last = time.monotonic()
        self.inbox.publish()
        return more

    def _listen(self, outbox: Virtqueue) -> bool:
        chains = outbox.take(RING)
        used: list[int] = []
        for head, readable, _ in chains:
            header = packet.Header._make(packet.HEADER.unpack(b"".join(readable)[: packet.HEADER_SIZE]))
            self.resets += header.op == packet.RST
            used += (head, 0)
        if chains:
            self.last = time.monotonic()
        outbox.push(used)
        outbox.publish()
        return len(chains) == RING or outbox.arm()


def pausing_init() -> bytes:
    """Return a static x86-64 ELF that waits for signals for ever."""
    base, headers = 0x400000, 64 + 56
    code = b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"  # again: mov eax, pause; syscall; jmp again
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = headers + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


def neglect(image: Eif) -> dict[str, int]:
    """Boot an image's kernel with nobody inside; return how many requests it took unheard, and what came of them then.

    `unheard`: requests taken while nothing was taken of it; `resets`: what it had kept of its answers;
    `afterwards`: requests taken in all once it was heard.
    """
    ramdisk = write_cpio({"init": File(pausing_init(), executable=True)})
    sections = [
        (SectionType.KERNEL, bytes(image.kernel)), (SectionType.CMDLINE, image.cmdline),
        (SectionType.METADATA, b"{}"), (SectionType.RAMDISK, ramdisk),
    ]  # fmt: skip
    with ExitStack() as stack:
        files = stack.enter_context(BootFiles(read_eif(write_eif(sections))))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        device, loop = Neglectful(), Loop()
        session = Session(ours, device, loop, FaultLog(), guest_cid=GUEST_CID)  # type: ignore[arg-type]

        def on_frontend(_events: int) -> None:
            try:
                session.receive()
            except EOFError:
                loop.discard(ours)
                loop.stop()

        loop.add(ours, on_frontend, 0x1 | 0x2000)  # EPOLLIN, EPOLLRDHUP
        server = threading.Thread(target=lambda: loop.run(device.service, lambda: 0.05), daemon=True)
        command = QemuIsolate(find_qemu(), files, Machine(), Accel.TCG).command(theirs.fileno())
        descriptors = [theirs.fileno(), files.kernel.descriptor, files.ramdisks.descriptor]
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=descriptors,
        )  # fmt: skip
        theirs.close()
        try:
            server.start()
            wait_until_quiet(device, began=time.monotonic())
            unheard = device.requested
            device.listening = True
            device.last = time.monotonic()
            wait_until_quiet(device, began=time.monotonic())
            return {"unheard": unheard, "resets": device.resets, "afterwards": device.requested}
        finally:
            guest.kill()
            guest.wait()
            server.join(SILENCE)
            session.close()


def wait_until_quiet(device: Neglectful, *, began: float) -> None:
    """Wait until nothing has moved for a while; raise if the guest's driver never came."""
    while device.requested == 0 or time.monotonic() - device.last < SILENCE:
        if device.requested == 0 and time.monotonic() - began > START:
            raise AssertionError("the guest's vsock driver did not come up")
        time.sleep(0.1)


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    print(json.dumps(neglect(load_eif(Path(sys.argv[1])))))
