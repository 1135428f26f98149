# SPDX-License-Identifier: MIT
"""Container images made for tests: layers by Python's own tarfile, in all forms in which they come on a disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
CONFIG = {"Entrypoint": ["/bin/app"], "Cmd": ["one", "two"], "Env": ["GREETING=hello"]}


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return one member; `fields` are TarInfo's."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, mode: int = 0o755, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def make_tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


@dataclass
class Layout:
    """The files of an OCI image layout, to be changed before they are written."""

    files: dict[str, bytes] = field(default_factory=lambda: {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'})
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def blob(self, raw: bytes, kind: str) -> dict[str, Any]:
        self.files[f"blobs/sha256/{hashlib.sha256(raw).hexdigest()}"] = raw
        return {"mediaType": kind, "digest": digest(raw), "size": len(raw)}

    def add(
        self, layers: Sequence[bytes], config: Mapping[str, Any] = CONFIG, *, architecture: str = "amd64",
        packed: bool = True, named: bool = True,
    ) -> str:  # fmt: skip
        """Add an image of these uncompressed layers; return its digest."""
        platform = {"os": "linux", "architecture": architecture}
        rootfs = {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}
        raw = json.dumps({**platform, "config": dict(config), "rootfs": rootfs}).encode()
        blobs = [
            self.blob(
                gzip.compress(layer, mtime=0) if packed else layer, f"{OCI}.layer.v1.tar{'+gzip' if packed else ''}"
            )
            for layer in layers
        ]
        manifest = {
            "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.blob(raw, f"{OCI}.config.v1+json"), "layers": blobs,
        }  # fmt: skip
        descriptor = self.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
        self.manifests.append(descriptor | ({"platform": platform} if named else {}))
        return str(descriptor["digest"])

    def all_files(self) -> dict[str, bytes]:
        index = json.dumps({"schemaVersion": 2, "manifests": self.manifests}).encode()
        return {"index.json": index, **self.files}

    def write(self, path: Path) -> Path:
        """Write the layout as a folder."""
        for name, raw in self.all_files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(raw)
        return path

    def write_tar(self, path: Path) -> Path:
        """Write the layout as a tar."""
        path.write_bytes(make_tar(*(member(name, raw) for name, raw in self.all_files().items())))
        return path


def write_docker_save(path: Path, layers: Sequence[bytes], config: Mapping[str, Any] = CONFIG) -> str:
    """Write what `docker save` wrote before it wrote layouts; return the image's id."""
    raw = json.dumps(
        {"os": "linux", "architecture": "amd64", "config": dict(config),
         "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}}
    ).encode()  # fmt: skip
    name = f"{hashlib.sha256(raw).hexdigest()}.json"
    paths = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": name, "RepoTags": ["app:latest"], "Layers": paths}]).encode()
    files = [member(name, raw), *(member(p, layer) for p, layer in zip(paths, layers, strict=True))]
    path.write_bytes(make_tar(*files, member("manifest.json", manifest)))
    return digest(raw)
