# SPDX-License-Identifier: MIT
"""What a container runs, as whom and where: decided when the image is built, and written into measured files."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from attestation.strict_json import read_json
from enclave_image.container.ramdisk import write_ramdisk
from enclave_image.container.settings import MAX_TEXT, Settings, read_settings
from enclave_image.container.tar_reader import Budget
from enclave_image.container.tree import Tree
from enclave_image.eif_tool.layout import BytesSource
from enclave_image.errors import MalformedContainer, UnfitContainer

from .layouts import folder, hard, link, make_tar, member

PASSWD = b"root:x:0:0::/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\nbroken\n"
GROUP = b"root:x:0:\nann:x:1001:\nwheel:x:10:ann,bob\nvideo:x:44:bob,ann\n"


def make_tree(*more: Any) -> Tree:
    tree = Tree()
    tree.apply(BytesSource(make_tar(member("etc/passwd", PASSWD), member("etc/group", GROUP), *more)), Budget())
    return tree


def settings(tree: Tree | None = None, **config: Any) -> Settings:
    raw = json.dumps({"config": {"Cmd": ["app"], **config}}).encode()
    node = read_json(raw, limit=1 << 22, what="config", refusal=MalformedContainer)
    return read_settings(node, make_tree() if tree is None else tree)


def test_the_entrypoint_comes_before_the_command() -> None:
    assert settings(Entrypoint=["/e", "1"], Cmd=["2"]).command == ("/e", "1", "2")
    assert settings(Entrypoint=None).command == ("app",)


def test_path_and_home_are_added_where_the_image_has_none() -> None:
    added = settings(Env=["A=1", "EMPTY="], User="ann").environment
    assert added == (
        "A=1",
        "EMPTY=",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/home/ann",
    )
    assert settings(Env=["PATH=/x", "HOME=/y"]).environment == ("PATH=/x", "HOME=/y")


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, ())), ("0", (0, 0, ())), ("ann", (1000, 1001, (10, 44))), ("1000", (1000, 1001, (10, 44))),
        ("4242", (4242, 0, ())), ("ann:wheel", (1000, 10, ())), ("1000:5", (1000, 5, ())), ("root", (0, 0, ())),
    ],
)  # fmt: skip
def test_users_and_groups_are_those_of_the_image(user: str, expected: tuple[int, int, tuple[int, ...]]) -> None:
    found = settings(User=user)
    assert (found.uid, found.gid, found.groups) == expected


def test_a_link_to_the_users_file_is_followed_inside_the_image() -> None:
    tree = Tree()
    layer = make_tar(
        folder("usr/etc"), member("usr/etc/passwd", PASSWD), folder("etc"), link("etc/passwd", "/usr/etc/passwd")
    )
    tree.apply(BytesSource(layer), Budget())
    assert settings(tree, User="ann").uid == 1000
    assert settings(Tree(), User="7").uid == 7


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"Cmd": []}, "nothing to run"),
        ({"Cmd": [""]}, "no name"),
        ({"Cmd": ["sh", "-c", "a\nb"]}, "line break"),
        ({"Env": ["NOVALUE"]}, "NAME=VALUE"),
        ({"Env": ["=x"]}, "NAME=VALUE"),
        ({"User": "nobody"}, "/etc/passwd"),
        ({"User": "ann:nogroup"}, "/etc/group"),
        ({"User": "4294967295"}, "/etc/passwd"),
        ({"WorkingDir": "relative"}, "absolute"),
    ],
)
def test_what_cannot_run_here_is_told(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UnfitContainer, match=says):
        settings(**config)


def test_wrong_types_and_sizes_are_told() -> None:
    for config in (
        {"Cmd": "app"},
        {"Cmd": [1]},
        {"Cmd": ["a\0b"]},
        {"Env": {"A": "1"}},
        {"Cmd": ["x" * (MAX_TEXT + 1)]},
    ):
        with pytest.raises(MalformedContainer):
            settings(**config)
    with pytest.raises(UnfitContainer, match="/cmd is too long"):
        settings(Cmd=["x" * MAX_TEXT] * 9).files()


def test_the_files_have_one_item_a_line() -> None:
    files = settings(Entrypoint=["/bin/app", ""], Env=["PATH=/bin", "A=b c"], User="ann", WorkingDir="/srv").files()
    assert files == {
        "cmd": b"/bin/app\n\napp\n", "env": b"PATH=/bin\nA=b c\nHOME=/home/ann\n", "user": b"1000 1001 10 44\n",
        "workdir": b"/srv\n",
    }  # fmt: skip


def records(archive: bytes) -> dict[str, tuple[int, ...]]:
    """Read a newc archive by the format's own description: name -> inode, mode, uid, gid, links, time, size."""
    found, at = {}, 0
    while True:
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        if name == "TRAILER!!!":
            return found
        found[name] = tuple(fields[:7])
        at = (at + 110 + fields[11] + 3) // 4 * 4 + (fields[6] + 3) // 4 * 4


def test_the_ramdisk_keeps_owners_and_modes_and_no_times() -> None:
    tree = make_tree(
        member("bin/su", b"x" * 5, mode=0o4755, uid=3, gid=4, mtime=99), hard("bin/again", "bin/su"),
        folder("tmp", 0o700), member("bin/fifo", type=b"6", mode=0o600),
    )  # fmt: skip
    out = io.BytesIO()
    write_ramdisk(tree, {"cmd": b"a\n"}, out)
    found = records(out.getvalue())
    again, first = found["rootfs/bin/su"], found["rootfs/bin/again"]
    assert first[1:] == (0o104755, 3, 4, 2, 0, 5)  # the data stands at the first name
    assert again == (*first[:6], 0)
    assert found["rootfs/bin/fifo"][1:] == (0o010600, 0, 0, 1, 0, 0)
    assert found["rootfs/tmp"][1] == 0o040700  # the image's own
    assert found["rootfs/proc"][1] == 0o040555  # added: /init mounts there
    assert list(found) == sorted(found, key=lambda name: name.encode().split(b"/"))
    assert found["cmd"][6] == 2
