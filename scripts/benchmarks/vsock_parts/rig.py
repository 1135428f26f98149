# SPDX-License-Identifier: MIT
"""One backend with one guest on it, and the clock around the bytes that they move."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from enclave_image.eif import Eif, SectionType, read_eif, write_eif
from enclave_image.initramfs import File, Node, write_cpio
from host_shim.accel import Accel
from host_shim.qemu import BootFiles, Machine, QemuIsolate, find_qemu

CONTROL_PORT, DATA_PORT = 9100, 9101  # as guest.c has them
BOOT_LIMIT = 60.0  # seconds
ORDER = struct.Struct("<IIQ")
CHUNK = 1 << 20  # bytes a read of ours

Command = Callable[[Path, Path], list[str]]  # of a backend: QEMU's socket, the base of the ports' sockets


class Stalled(Exception):
    """The bytes did not arrive in time."""


def make_guest(image: Eif, program: bytes) -> Eif:
    """Return an image of the same kernel whose /init is `program`."""
    ramdisk = write_cpio({"dev/console": Node(5, 1, 0o600), "init": File(program, executable=True)})
    return read_eif(
        write_eif(
            [
                (SectionType.KERNEL, bytes(image.kernel)), (SectionType.CMDLINE, image.cmdline),
                (SectionType.METADATA, b"{}"), (SectionType.RAMDISK, ramdisk),
            ]
        )
    )  # fmt: skip


class Rig:
    """A backend, a guest, and the host's ends of its connections; `close` it."""

    def __init__(self, command: Command, guest: Eif, accel: Accel) -> None:
        self._stack = contextlib.ExitStack()
        try:
            self._start(command, guest, accel)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, command: Command, guest: Eif, accel: Accel) -> None:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="veracruz-bench-")))
        vhost, base = directory / "vhost", directory / "v"
        control, self._data = self._listen(base, CONTROL_PORT), self._listen(base, DATA_PORT)
        self.backend = self._run(command(vhost, base))
        deadline = time.monotonic() + BOOT_LIMIT
        while not vhost.exists():
            if self.backend.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the backend does not start")
            time.sleep(0.01)
        files = self._stack.enter_context(BootFiles(guest))
        words = QemuIsolate(find_qemu(), files, Machine(512, 1), accel).command(0)
        words[words.index("-chardev") + 1] = f"socket,id=vsock,path={vhost}"
        self._run(words, [files.kernel.descriptor, files.ramdisks.descriptor])
        control.settimeout(BOOT_LIMIT)
        self._control = self._stack.enter_context(control.accept()[0])

    def _listen(self, base: Path, port: int) -> socket.socket:
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(f"{base}_{port}")
        listener.listen(8)
        return listener

    def _run(self, command: Sequence[str], fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=fds
        )
        self._stack.callback(_end, process)
        return process

    def close(self) -> None:
        """Stop both and remove their files."""
        self._stack.close()

    def measure(self, *, to_guest: bool, size: int, total: int, limit: float) -> float:
        """Return the seconds that `total` bytes take at `size` bytes a write; raise Stalled after `limit`."""
        self._control.sendall(ORDER.pack(to_guest, size, total))
        self._data.settimeout(limit)
        try:
            data, _ = self._data.accept()
            with data:
                data.settimeout(limit)
                begin = time.monotonic()
                data.sendall(b"!")
                if to_guest:
                    _send(data, size, total, begin + limit)
                    _receive(data, 1, begin + limit)
                else:
                    _receive(data, total + 1, begin + limit)
                return time.monotonic() - begin
        except OSError as error:  # TimeoutError is one
            raise Stalled(f"nothing more within {limit:.0f} s") from error


def _send(data: socket.socket, size: int, total: int, until: float) -> None:
    payload = memoryview(bytes(size))
    while total:
        count = min(size, total)
        data.sendall(payload[:count])
        total -= count
        if time.monotonic() > until:
            raise TimeoutError


def _receive(data: socket.socket, total: int, until: float) -> None:
    buffer = bytearray(CHUNK)
    while total > 0:
        count = data.recv_into(buffer)
        if not count:
            raise ConnectionResetError
        total -= count
        if time.monotonic() > until:
            raise TimeoutError


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
