# SPDX-License-Identifier: MIT
"""Find the one image in a container image on disk: an OCI image layout or what `docker save` writes, folder or tar.

Sources: OCI image specification, image-layout.md, image-index.md, manifest.md, config.md, descriptor.md; the form of
`docker save` before it wrote layouts: manifest.json, whose configuration is named by its SHA-256. Every byte that is
used is held against the digest and size that name it, from the manifest's own digest down.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from attestation.errors import UsageError
from attestation.files import PIECE
from attestation.strict_json import Node, read_json

from ..eif_tool.layout import FileSource, Source
from ..errors import ContainerMismatch, MalformedContainer, UnfitContainer
from .tar_reader import Budget, Kind, read_tar

MAX_JSON = 4 * 1024 * 1024  # bytes; the distribution specification's limit for a manifest
MAX_LAYERS = 256  # Docker makes at most 127
MAX_MANIFESTS = 256  # of one index
MAX_NESTED = 3  # indexes in one another
DIGEST = r"sha256:[0-9a-f]{64}"
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
LAYERS = (
    "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar.zstd",
)  # fmt: skip
HINT = "skopeo copy SOURCE oci:DIR, or docker save IMAGE --output FILE.tar, make one"


class Files(Protocol):
    """The files of a container image, by path."""

    def open(self, path: str) -> Source | None:
        """Return a file, None where there is none."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What names a blob."""

    media_type: str
    digest: str  # sha256:HEX
    size: int
    platform: str  # os/architecture[/variant], nothing where it is not said


@dataclass(frozen=True, slots=True)
class Container:
    """One container image whose manifest and configuration were verified; its layers are, when they are read."""

    digest: str  # sha256:HEX of the manifest; of the configuration where an old `docker save` wrote no manifest
    config: Node
    layers: tuple[tuple[Source, str], ...]  # packed bytes, and the digest of what is in them


class _Folder:
    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self._path, self._stack = path, stack

    def open(self, path: str) -> Source | None:
        try:
            descriptor = os.open(self._path / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"cannot read {self._path / path}: {error.strerror}") from error
        self._stack.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise MalformedContainer(f"{path} is no regular file")
        return FileSource(descriptor, found.st_size)


@dataclass(frozen=True, slots=True)
class _Part:
    """A member of a tar."""

    whole: Source
    start: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on."""
        return self.whole.read(self.start + offset, max(0, min(size, self.size - offset)))


class _Tar:
    def __init__(self, source: Source) -> None:
        self._files: dict[str, Source] = {}
        links = {}
        for member in read_tar(source, Budget()):
            name = os.path.normpath(member.name).lstrip("/")  # of no file on this machine
            if member.kind is Kind.FILE:
                if name in self._files:
                    raise MalformedContainer("the archive names a file twice", actual=name)
                self._files[name] = _Part(source, member.offset, member.size)
            elif member.kind is Kind.SYMBOLIC_LINK:  # an old `docker save` names equal layers by links
                links[name] = os.path.normpath(f"{os.path.dirname(name)}/{member.target}")  # noqa: PTH120
        for name, target in links.items():
            if target in self._files:
                self._files.setdefault(name, self._files[target])

    def open(self, path: str) -> Source | None:
        return self._files.get(path)


@contextlib.contextmanager
def open_container(path: Path, *, platform: str) -> Iterator[Container]:
    """Open the one image for a platform (os/architecture[/variant]) in a folder or tar.

    Raises UsageError for what cannot be read, MalformedContainer, ContainerMismatch, or UnfitContainer for another
    platform.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cannot read the container image {path}: {error.strerror}", hint=HINT) from error
        stack.callback(os.close, descriptor)
        found = os.fstat(descriptor)
        files: Files
        if stat.S_ISDIR(found.st_mode):
            files = _Folder(path, stack)
        elif stat.S_ISREG(found.st_mode):
            if os.pread(descriptor, 2, 0) == b"\x1f\x8b":
                raise UsageError(f"{path} is compressed", expected="a tar as it is", hint=f"gunzip {path}")
            files = _Tar(FileSource(descriptor, found.st_size))
        else:
            raise UsageError(f"{path} is neither folder nor file")
        yield _find_container(files, platform)


def _find_container(files: Files, platform: str) -> Container:
    if (index := files.open("index.json")) is not None:
        found = dict(_walk(files, _read(index, "index.json"), platform, MAX_NESTED))
    elif (manifest := files.open("manifest.json")) is not None:
        return _old_docker(files, _read(manifest, "manifest.json"), platform)
    else:
        raise MalformedContainer("no container image", expected="index.json or manifest.json", hint=HINT)
    if not found:
        raise UnfitContainer("the container image is not there for this platform", expected=platform)
    if len(found) > 1:
        raise MalformedContainer(
            "several images for this platform", expected="one", actual=", ".join(found),
            hint="copy the one that is meant into a layout of its own",
        )  # fmt: skip
    return next(iter(found.values()))


def _walk(files: Files, index: Node, platform: str, depth: int) -> Iterator[tuple[str, Container]]:
    """Yield the images of an index that are for the platform, by digest."""
    for node in _members(index, "manifests").array(most=MAX_MANIFESTS):
        descriptor = _descriptor(node)
        if descriptor.platform and not _fits(descriptor.platform, platform):
            continue
        if descriptor.media_type in INDEXES:
            if not depth:
                raise MalformedContainer("indexes in one another", expected=f"at most {MAX_NESTED}")
            inner = _blob(files, descriptor, INDEXES)
            yield from _walk(files, _json(inner, descriptor.digest), platform, depth - 1)
        elif descriptor.media_type in MANIFESTS:
            container, own = _container(files, descriptor)
            if _fits(own, platform):
                yield descriptor.digest, container


def _fits(actual: str, wanted: str) -> bool:
    """Return whether a platform is the one wanted; a variant counts only where one is wanted."""
    return actual == wanted or (wanted.count("/") == 1 and actual.startswith(f"{wanted}/"))


def _container(files: Files, descriptor: Descriptor) -> tuple[Container, str]:
    manifest = _json(_blob(files, descriptor, MANIFESTS), descriptor.digest)
    config = _json(_blob(files, _descriptor(_members(manifest, "config")), CONFIGS), "the configuration")
    named = [_descriptor(node) for node in _members(manifest, "layers").array(most=MAX_LAYERS)]
    layers = [(_open(files, layer, LAYERS), layer.digest) for layer in named]
    for source, digest in layers:
        _check(source, digest)
    contents = _diff_ids(config, len(layers))
    sources = tuple((source, content) for (source, _), content in zip(layers, contents, strict=True))
    return Container(descriptor.digest, config, sources), _platform(config)


def _old_docker(files: Files, manifest: Node, platform: str) -> Container:
    images = manifest.array(least=1, most=MAX_MANIFESTS)
    if len(images) != 1:
        raise MalformedContainer("images in manifest.json", expected=1, actual=len(images), hint=HINT)
    table = dict(images[0].members())
    if not {"Config", "Layers"} <= table.keys():
        raise MalformedContainer("manifest.json", expected="Config and Layers")
    name = table["Config"].match(r"[0-9a-f]{64}\.json", form="SHA-256.json")
    source = _demand(files, name)
    if source.size > MAX_JSON:
        raise MalformedContainer("the configuration is too long", expected=f"at most {MAX_JSON} bytes")
    digest = f"sha256:{name.removesuffix('.json')}"
    config = _json(_check(source, digest, keep=True), "the configuration")
    if not _fits(_platform(config), platform):
        raise UnfitContainer("the container image is for another platform", expected=platform, actual=_platform(config))
    paths = [node.text(most=4096) for node in table["Layers"].array(most=MAX_LAYERS)]
    sources = [_demand(files, path) for path in paths]
    return Container(digest, config, tuple(zip(sources, _diff_ids(config, len(sources)), strict=True)))


def _diff_ids(config: Node, count: int) -> list[str]:
    rootfs = _members(config, "rootfs")
    found = [node.match(DIGEST, form="sha256:HEX") for node in _members(rootfs, "diff_ids").array(most=MAX_LAYERS)]
    if len(found) != count:
        raise MalformedContainer("manifest and configuration disagree on the layers", expected=count, actual=len(found))
    return found


def _platform(config: Node) -> str:
    table = dict(config.members())
    words = [table[key].text(most=64) for key in ("os", "architecture", "variant") if key in table]
    return "/".join(word for word in words if word)


def _members(node: Node, key: str) -> Node:
    found = dict(node.members()).get(key)
    if found is None:
        node.fail(f"{key} is missing")
    return found


def _descriptor(node: Node) -> Descriptor:
    table = dict(node.members())
    if not {"mediaType", "digest", "size"} <= table.keys():
        node.fail("no descriptor", expected="mediaType, digest and size")
    platform = _platform(table["platform"]) if "platform" in table else ""
    return Descriptor(
        table["mediaType"].text(most=256), table["digest"].match(DIGEST, form="sha256:HEX"),
        table["size"].integer(least=0, most=1 << 40), platform,
    )  # fmt: skip


def _demand(files: Files, path: str) -> Source:
    if (source := files.open(path)) is None:
        raise MalformedContainer("a file of the container image is missing", actual=path)
    return source


def _open(files: Files, descriptor: Descriptor, types: tuple[str, ...]) -> Source:
    if descriptor.media_type not in types:
        raise UnfitContainer("a blob of another type", expected=" or ".join(types), actual=descriptor.media_type)
    source = _demand(files, f"blobs/{descriptor.digest.replace(':', '/')}")
    if source.size != descriptor.size:
        raise ContainerMismatch(f"size of {descriptor.digest}", expected=descriptor.size, actual=source.size)
    return source


def _blob(files: Files, descriptor: Descriptor, types: tuple[str, ...]) -> bytes:
    """Return a blob of JSON that was checked."""
    if descriptor.size > MAX_JSON:
        raise MalformedContainer(
            f"{descriptor.digest} is too long", expected=f"at most {MAX_JSON} bytes", actual=descriptor.size
        )
    return _check(_open(files, descriptor, types), descriptor.digest, keep=True)


def _check(source: Source, digest: str, *, keep: bool = False) -> bytes:
    """Hold a file against its digest; return its bytes if they are to be kept."""
    actual, kept, at = hashlib.sha256(), [], 0
    while piece := source.read(at, PIECE):
        actual.update(piece)
        at += len(piece)
        if keep:
            kept.append(piece)
    if f"sha256:{actual.hexdigest()}" != digest:
        raise ContainerMismatch("a blob is not what its digest says", expected=digest, actual=actual.hexdigest())
    return b"".join(kept)


def _read(source: Source, what: str) -> Node:
    if source.size > MAX_JSON:
        raise MalformedContainer(f"{what} is too long", expected=f"at most {MAX_JSON} bytes", actual=source.size)
    return _json(source.read(0, MAX_JSON), what)


def _json(raw: bytes, what: str) -> Node:
    return read_json(raw, limit=MAX_JSON, what=what, refusal=MalformedContainer)
