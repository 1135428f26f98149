# SPDX-License-Identifier: MIT
"""A container image on disk: found, verified from its digest down, for one platform; what is wrong is named."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from attestation.errors import UsageError, VeracruzError
from enclave_image.container import layers as layers_module
from enclave_image.container.layers import apply_layers, close
from enclave_image.container.layout import open_container
from enclave_image.container.ramdisk import walk
from enclave_image.errors import ContainerMismatch, MalformedContainer, UnfitContainer

from .layouts import OCI, Layout, folder, link, make_tar, member, write_docker_save

LAYERS = [make_tar(folder("bin"), member("bin/app", b"app", mode=0o755)), make_tar(member("etc/name", b"second"))]
FILES = ["bin", "bin/app", "etc", "etc/name"]


def unpack(path: Path, scratch: Path, platform: str = "linux/amd64") -> tuple[str, list[str]]:
    """Return an image's digest and the paths in it."""
    scratch.mkdir()
    with open_container(path, platform=platform) as container:
        tree, opened = apply_layers(container, scratch)
        close(opened)
        return container.digest, [name for name, _ in walk(tree.root)]


@pytest.fixture
def layout() -> Layout:
    return Layout()


def test_a_folder_and_a_tar_of_it_hold_the_same_image(layout: Layout, tmp_path: Path) -> None:
    wanted = layout.add(LAYERS)
    for number, path in enumerate((layout.write(tmp_path / "folder"), layout.write_tar(tmp_path / "image.tar"))):
        assert unpack(path, tmp_path / f"s{number}") == (wanted, FILES)


def test_what_docker_save_wrote_is_read_and_has_the_images_id(tmp_path: Path) -> None:
    path = tmp_path / "saved.tar"
    wanted = write_docker_save(path, LAYERS)
    assert unpack(path, tmp_path / "s") == (wanted, FILES)


def test_layers_may_be_plain_or_of_several_gzip_members_or_zstd_frames(tmp_path: Path) -> None:
    raw = LAYERS[0]
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    forms = {
        f"{OCI}.layer.v1.tar": raw,
        f"{OCI}.layer.v1.tar+gzip": gzip.compress(raw[:700]) + gzip.compress(raw[700:]),
        f"{OCI}.layer.v1.tar+zstd": skippable + zstd.compress(raw[:700]) + skippable + zstd.compress(raw[700:]),
    }
    for number, (kind, packed) in enumerate(forms.items()):
        layout = Layout()
        layout.add([raw], packed=False)
        repack(layout, kind, packed)
        assert unpack(layout.write(tmp_path / f"l{number}"), tmp_path / f"s{number}")[1] == FILES[:2]


def repack(layout: Layout, kind: str, packed: bytes) -> None:
    """Give the one image's one layer another form."""
    name = f"blobs/{layout.manifests[0]['digest'].replace(':', '/')}"
    manifest = json.loads(layout.files.pop(name))
    manifest["layers"] = [layout.blob(packed, kind)]
    layout.manifests = [layout.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")]


def test_an_index_of_several_platforms_gives_the_one_asked_for(layout: Layout, tmp_path: Path) -> None:
    layout.add([LAYERS[1]], architecture="arm64")
    wanted = layout.add([LAYERS[0]])
    nested = Layout(dict(layout.files))
    index = json.dumps({"schemaVersion": 2, "manifests": layout.manifests}).encode()
    nested.manifests = [nested.blob(index, f"{OCI}.index.v1+json")]
    assert unpack(layout.write(tmp_path / "flat"), tmp_path / "s1") == (wanted, FILES[:2])
    assert unpack(nested.write(tmp_path / "nested"), tmp_path / "s2") == (wanted, FILES[:2])
    with pytest.raises(UnfitContainer, match="not there for this platform"):
        unpack(tmp_path / "flat", tmp_path / "s3", "linux/s390x")


def test_where_the_index_names_no_platform_the_configuration_does(layout: Layout, tmp_path: Path) -> None:
    layout.add([LAYERS[1]], architecture="arm64", named=False)
    wanted = layout.add([LAYERS[0]], named=False)
    assert unpack(layout.write(tmp_path / "l"), tmp_path / "s")[0] == wanted


def damage_blob(layout: Layout) -> None:
    name = max(layout.files, key=lambda name: len(layout.files[name]))
    layout.files[name] = layout.files[name][:-1] + b"?"


def drop_blob(layout: Layout) -> None:
    del layout.files[max(layout.files, key=lambda name: len(layout.files[name]))]


def lie_about_size(layout: Layout) -> None:
    layout.manifests[0]["size"] += 1


def change_manifest(layout: Layout) -> None:
    name = f"blobs/{layout.manifests[0]['digest'].replace(':', '/')}"
    layout.files[name] = layout.files[name].replace(b'"schemaVersion": 2', b'"schemaVersion": 3')


def lie_about_content(layout: Layout) -> None:
    repack(layout, f"{OCI}.layer.v1.tar", LAYERS[1])


def add_another(layout: Layout) -> None:
    layout.add([LAYERS[1]])


def drop_layer(layout: Layout) -> None:
    name = f"blobs/{layout.manifests[0]['digest'].replace(':', '/')}"
    manifest = json.loads(layout.files.pop(name))
    manifest["layers"] = []
    layout.manifests = [layout.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")]


BAD: dict[str, tuple[Callable[[Layout], None], type[VeracruzError], str]] = {
    "damaged layer": (damage_blob, ContainerMismatch, "not what its digest says"),
    "missing layer": (drop_blob, MalformedContainer, "missing"),
    "wrong size": (lie_about_size, ContainerMismatch, "size of sha256:"),
    "changed manifest": (change_manifest, ContainerMismatch, "not what its digest says"),
    "another content": (lie_about_content, ContainerMismatch, "not what the configuration says"),
    "several images": (add_another, MalformedContainer, "several images"),
    "too few layers": (drop_layer, MalformedContainer, "disagree on the layers"),
    "unknown layer": (lambda one: repack(one, f"{OCI}.layer.v1.tar+x", b"x"), UnfitContainer, "another type"),
    "damaged gzip": (lambda one: repack(one, f"{OCI}.layer.v1.tar+gzip", gzip.compress(LAYERS[0])[:-9]),
                     MalformedContainer, "truncated"),
    "bytes behind gzip": (lambda one: repack(one, f"{OCI}.layer.v1.tar+gzip", gzip.compress(LAYERS[0]) + b"more"),
                          MalformedContainer, "behind its compressed data"),
    "no digest": (lambda one: one.manifests[0].update(digest="md5:00"), MalformedContainer, "sha256:HEX"),
    "path for a digest": (lambda one: one.manifests[0].update(digest="sha256:../x"), MalformedContainer, "sha256:HEX"),
    "no JSON": (lambda one: one.files.update({"index.json": b"{"}), MalformedContainer, "no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_is_not_what_it_says(layout: Layout, name: str, tmp_path: Path) -> None:
    change, error, says = BAD[name]
    layout.add([LAYERS[0]])
    change(layout)
    with pytest.raises(error, match=says):
        unpack(layout.write(tmp_path / "l"), tmp_path / "s")


def test_refuses_layers_that_unpack_to_too_much(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.add([make_tar(member("zeros", bytes(4_000_000)))])
    monkeypatch.setattr(layers_module, "MAX_UNPACKED", 1_000_000)
    with pytest.raises(MalformedContainer, match="too large unpacked"):
        unpack(layout.write(tmp_path / "l"), tmp_path / "s")


def test_follows_no_link_on_this_machine(layout: Layout, tmp_path: Path) -> None:
    layout.add([LAYERS[0]])
    path = layout.write(tmp_path / "l")
    name = next(path.glob("blobs/sha256/*"))
    (tmp_path / "elsewhere").write_bytes(name.read_bytes())
    name.unlink()
    name.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot read"):
        unpack(path, tmp_path / "s")


def test_links_of_an_old_docker_save_name_equal_layers(tmp_path: Path) -> None:
    path, other = tmp_path / "saved.tar", tmp_path / "linked.tar"
    wanted = write_docker_save(path, [LAYERS[0], LAYERS[0]])
    raw = path.read_bytes()
    members = []
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for info in tar:
            stream = tar.extractfile(info)
            assert stream is not None
            again = info.name == "1/layer.tar"
            members.append(link(info.name, "../0/layer.tar") if again else member(info.name, stream.read()))
    other.write_bytes(make_tar(*members))
    assert unpack(other, tmp_path / "s") == (wanted, FILES[:2])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot read"),
        (lambda path: path.write_bytes(gzip.compress(b"x")), "compressed"),
        (os.mkfifo, "neither folder nor file"),
        (lambda path: path.write_bytes(b"no tar at all" * 100), "checksum"),
        (lambda path: path.mkdir(), "no container image"),
        (lambda path: path.write_bytes(make_tar(member("a", b"1"), member("./a", b"2"))), "names a file twice"),
    ],
    ids=["nothing", "gzip", "fifo", "no tar", "empty", "twice"],
)
def test_says_what_is_no_container_image(make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    make(tmp_path / "image")
    with pytest.raises(VeracruzError, match=says), open_container(tmp_path / "image", platform="linux/amd64"):
        pass


def test_scratch_files_are_closed_when_a_layer_is_refused(layout: Layout, tmp_path: Path) -> None:
    layout.add([LAYERS[0], make_tar(member("../x"))])
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(MalformedContainer, match="leads up"):
        unpack(layout.write(tmp_path / "l"), tmp_path / "s")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
