# SPDX-License-Identifier: MIT
"""What the guest writes to its console, kept without letting it fill the disk or play with a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from attestation.console import printable
from attestation.errors import escape

MAX_LOG = 1024 * 1024  # bytes of one file; the one before it is kept as console.log.1
READ = 64 * 1024  # bytes
PAUSE = 0.05  # seconds between reads: some 1 MB/s, then QEMU's serial port makes the guest wait
TAIL_LINES = 12  # lines of the console that an error shows
FOLLOW_PAUSE = 0.2  # seconds


class ConsoleLog:
    """Copies a descriptor into console.log, which never grows above twice MAX_LOG with its predecessor."""

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        self._path = path
        self._file = self._open(0 if keep else os.O_TRUNC)
        self._size = os.lseek(self._file, 0, os.SEEK_END)

    def _open(self, more: int = os.O_TRUNC) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | more | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, data: bytes) -> None:
        """Append, after moving a full file aside."""
        if self._size + len(data) > MAX_LOG:
            os.close(self._file)
            self._path.replace(previous(self._path))
            self._file = self._open()
            self._size = 0
        while data:
            written = os.write(self._file, data)
            self._size += written
            data = data[written:]

    async def pump(self, source: int) -> None:
        """Copy until the source ends; a disk that is full loses the console, not the isolate."""
        os.set_blocking(source, False)
        while data := await read_some(source, READ):
            try:
                self.write(data)
            except OSError:
                continue
            await asyncio.sleep(PAUSE if len(data) > READ // 2 else 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


async def read_some(source: int, size: int) -> bytes:
    """Return the next bytes of a non-blocking descriptor, none at its end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(source, size)
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_reader(source, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(source)
        except OSError:
            return b""


def previous(path: Path) -> Path:
    """Return where a full log goes."""
    return path.with_name(path.name + ".1")


def printable_bytes(data: bytes) -> str:
    """Return console bytes as text that cannot steer a terminal: line ends and tabs stay, the rest is escaped."""
    return printable(data.decode("ascii", "backslashreplace").replace("\r\n", "\n"))


def tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """Return the last lines of a console or log, escaped and bounded."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - READ))
            data = file.read(READ)
    except OSError:
        return []
    return [escape(line.rstrip("\r")) for line in data.decode("ascii", "backslashreplace").splitlines()][-lines:]


def read_console(path: Path, *, follow: bool) -> Iterator[bytes]:
    """Give the console's bytes from its beginning; with `follow` the new ones for ever (b"" while there are none)."""
    with contextlib.suppress(FileNotFoundError), previous(path).open("rb") as file:
        yield from _rest(file)
    while True:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            yield from _rest(file)
            while follow and not _moved(file.fileno(), path):
                yield b""
                time.sleep(FOLLOW_PAUSE)
                yield from _rest(file)
            yield from _rest(file)
        if not follow:
            return
        yield b""
        time.sleep(FOLLOW_PAUSE)


def _rest(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(READ):
        yield data


def _moved(descriptor: int, path: Path) -> bool:
    try:
        return not os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return True
