# SPDX-License-Identifier: MIT
"""Decompress what an initramfs may be compressed with, piece by piece, within limits.

Source: the kernel's lib/decompress.c for the magic numbers. lzo and lz4 are recognised, not read: nothing that this
package may depend on reads them.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import Any, Protocol

from attestation.errors import EnvironmentLacks
from attestation.files import PIECE

from ..errors import MalformedRamdisk

MAX_WINDOW = 27  # log2 of bytes: the kernel's own limit for zstd, lib/decompress_unzstd.c
FIRST_INPUT = 4096  # bytes; then more and more: what a short member leaves unread is copied
MAX_LZMA_MEMORY = 256 * 1024 * 1024  # bytes; `xz -9` needs 65 MiB


class Packing(StrEnum):
    """How a ramdisk, or one of the archives in it, is compressed."""

    NONE = "cpio"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    LZMA = "lzma"
    XZ = "xz"
    ZSTD = "zstd"
    LZ4 = "lz4"
    LZO = "lzo"

    @property
    def suffix(self) -> str:
        """How a file of it is named."""
        return {"cpio": ".cpio", "gzip": ".cpio.gz", "bzip2": ".cpio.bz2", "zstd": ".cpio.zst"}.get(
            self.value, f".cpio.{self.value}"
        )


_MAGIC = (
    (b"0707", Packing.NONE),
    (b"\x1f\x8b", Packing.GZIP),
    (b"BZh", Packing.BZIP2),
    (b"\x5d\x00\x00", Packing.LZMA),
    (b"\xfd7zXZ\x00", Packing.XZ),
    (b"\x28\xb5\x2f\xfd", Packing.ZSTD),
    (b"\x02\x21\x4c\x18", Packing.LZ4),
    (b"\x89LZO", Packing.LZO),
)


def find_packing(head: bytes) -> Packing | None:
    """Return what begins with these bytes, None for what Linux would not unpack."""
    return next((packing for magic, packing in _MAGIC if head.startswith(magic)), None)


class _Decompressor(Protocol):
    """The interface that bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """zlib behind the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(out) < max_length
        return out


@cache
def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError as error:
            raise EnvironmentLacks(
                "this Python has no module for zstd, which the ramdisk is compressed with",
                hint="pip install 'veracruz[image]', or: pip install backports.zstd",
            ) from error
    return zstd


def _new(packing: Packing) -> _Decompressor:
    match packing:
        case Packing.GZIP:
            return _Gunzip()
        case Packing.BZIP2:
            return bz2.BZ2Decompressor()
        case Packing.LZMA:
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_LZMA_MEMORY)
        case Packing.XZ:
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_LZMA_MEMORY)
        case Packing.ZSTD:
            zstd = _zstd()
            made: _Decompressor = zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW}
            )
            return made
    raise MalformedRamdisk(f"a ramdisk compressed with {packing} cannot be looked into", expected="zstd, gzip or xz")


class Feed:
    """Bytes that arrive in pieces, taken in any amounts; `position` counts those taken."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""
        self._at = 0
        self.position = 0

    def _fill(self, size: int) -> None:
        if len(self._held) - self._at >= size:
            return
        parts = [self._held[self._at :]]
        have = len(parts[0])
        while have < size and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            have += len(piece)
        self._held, self._at = b"".join(parts), 0

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end, and leave them there."""
        self._fill(size)
        return self._held[self._at : self._at + size]

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        taken = self.peek(size)
        self._at += len(taken)
        self.position += len(taken)
        return taken

    def give_back(self, size: int) -> None:
        """Put back what the last `take` ended with."""
        self._at -= size
        self.position -= size

    def skip_zeros(self) -> None:
        """Go on to the next byte that is not zero, as the kernel does between archives."""
        while part := self.peek(FIRST_INPUT):
            zeros = len(part) - len(part.lstrip(b"\0"))
            self.take(zeros)
            if zeros < len(part):
                return


def decompress(feed: Feed, packing: Packing) -> Iterator[bytes]:
    """Yield the contents of the one compressed member that `feed` stands at, at most a mebibyte at a time.

    Leaves `feed` behind the member. Raises MalformedRamdisk for damage, EnvironmentLacks where this Python lacks zstd.
    """
    decompressor = _new(packing)
    size = FIRST_INPUT
    while not decompressor.eof:
        data = b""
        if decompressor.needs_input:
            data = feed.take(size)
            size = min(2 * size, PIECE)
        if not data and decompressor.needs_input:
            raise MalformedRamdisk(f"the {packing} data is truncated", hint="the kernel would not unpack it")
        try:
            out = decompressor.decompress(data, PIECE)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:
            raise MalformedRamdisk(f"the {packing} data is damaged", actual=error) from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # its module may not be there
                raise
            raise MalformedRamdisk(f"the {packing} data is damaged", actual=error) from error
        if out:
            yield out
    feed.give_back(len(decompressor.unused_data))
