# SPDX-License-Identifier: MIT
"""Unpack the layers of a container image into scratch files, held against their digests, and apply them in order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from attestation.files import PIECE

from ..eif_tool.decompression import Feed, Packing, decompress, find_packing
from ..eif_tool.layout import FileSource, Source
from ..errors import ContainerMismatch, MalformedContainer, MalformedRamdisk
from .layout import Container
from .tar_reader import Budget
from .tree import Tree

MAX_UNPACKED = 8 << 30  # bytes of all layers: what a later layer replaces is unpacked too
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # zstd frames without data, RFC 8878 3.1.2
_PACKINGS = {Packing.GZIP, Packing.ZSTD}


def apply_layers(container: Container, scratch: Path) -> tuple[Tree, list[FileSource]]:
    """Return the file tree of a container, and the open files in `scratch` that hold its contents: close them."""
    tree, budget, left, opened = Tree(), Budget(), MAX_UNPACKED, list[FileSource]()
    try:
        for number, (packed, digest) in enumerate(container.layers):
            layer = _unpack(packed, digest, scratch / str(number), left)
            opened.append(layer)
            left -= layer.size
            tree.apply(layer, budget)
    except BaseException:
        close(opened)
        raise
    return tree, opened


def close(opened: list[FileSource]) -> None:
    """Close what `apply_layers` opened."""
    for source in opened:
        os.close(source.descriptor)


def _unpack(packed: Source, digest: str, path: Path, left: int) -> FileSource:
    actual, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            for piece in _decompressed(packed):
                size += len(piece)
                if size > left:
                    raise MalformedContainer("the layers are too large unpacked", expected=f"{MAX_UNPACKED} bytes")
                actual.update(piece)
                file.write(piece)
        if f"sha256:{actual.hexdigest()}" != digest:
            raise ContainerMismatch(
                "a layer's content is not what the configuration says", expected=digest, actual=actual.hexdigest()
            )
    except BaseException:
        os.close(descriptor)
        raise
    return FileSource(descriptor, size)


def _read(source: Source) -> Iterator[bytes]:
    at = 0
    while piece := source.read(at, PIECE):
        at += len(piece)
        yield piece


def _decompressed(packed: Source) -> Iterator[bytes]:
    """Yield a layer's tar: as it is, or out of one or more members of gzip or zstd."""
    packing = find_packing(packed.read(0, 16))
    if packing not in _PACKINGS and not _is_skippable(packed.read(0, 4)):
        yield from _read(packed)
        return
    feed = Feed(_read(packed))
    while head := feed.peek(16):
        packing = find_packing(head)
        if _is_skippable(head[:4]):
            feed.take(4)
            _skip(feed, int.from_bytes(feed.take(4), "little"))
        elif packing in _PACKINGS:
            try:
                yield from decompress(feed, packing)
            except MalformedRamdisk as error:
                raise MalformedContainer(f"a layer: {error.what}", actual=error.actual) from error
        else:
            raise MalformedContainer("a layer: bytes behind its compressed data")


def _is_skippable(head: bytes) -> bool:
    return len(head) == 4 and int.from_bytes(head, "little") in _SKIPPABLE


def _skip(feed: Feed, size: int) -> None:
    while size:
        taken = feed.take(min(size, PIECE))
        if not taken:
            raise MalformedContainer("a layer: a frame of zstd is truncated")
        size -= len(taken)
