# SPDX-License-Identifier: MIT
"""Layers become one tree: whiteouts, replaced files, links inside; what would leave the tree is refused."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave_image.container.ramdisk import walk, write_ramdisk
from enclave_image.container.tar_reader import Budget, Kind
from enclave_image.container.tree import Folder, Leaf, Tree
from enclave_image.eif_tool.layout import BytesSource
from enclave_image.errors import MalformedContainer, UnfitContainer

from .layouts import folder, hard, link, make_tar, member

Member = tuple[tarfile.TarInfo, bytes]


def build(*layers: list[Member]) -> Tree:
    tree, budget = Tree(), Budget()
    for members in layers:
        tree.apply(BytesSource(make_tar(*members)), budget)
    return tree


def show(tree: Tree) -> dict[str, str]:
    """Return each path with its content, -> target, or /."""

    def text(node: Leaf | Folder) -> str:
        if isinstance(node, Folder):
            return "/"
        if node.kind is Kind.SYMBOLIC_LINK:
            return f"-> {node.target}"
        assert node.source is not None
        return node.source.read(node.offset, node.size).decode()

    return {path: text(node) for path, node in walk(tree.root)}


def test_later_layers_replace_and_whiteouts_take_away() -> None:
    tree = build(
        [folder("etc"), member("etc/a", b"1"), member("etc/b", b"1"), folder("old"), member("old/x", b"1")],
        [member("etc/a", b"2"), member("etc/.wh.b"), member(".wh.old")],
    )
    assert show(tree) == {"etc": "/", "etc/a": "2"}


def test_an_opaque_whiteout_hides_what_is_below_it_and_not_its_own_layer() -> None:
    tree = build(
        [folder("d"), member("d/a", b"1"), folder("d/sub"), member("e", b"1")],
        [member("d/new", b"2"), member("d/.wh..wh..opq")],  # the order within the layer does not count
    )
    assert show(tree) == {"d": "/", "d/new": "2", "e": "1"}


def test_a_whiteout_spares_what_its_own_layer_adds_under_that_name() -> None:
    assert show(build([member("a", b"1")], [member("a", b"2"), member(".wh.a")])) == {"a": "2"}


def test_a_directory_takes_the_later_layers_mode_and_keeps_its_files() -> None:
    tree = build([folder("d", 0o700), member("d/a", b"1")], [folder("d", 0o1777, uid=5)])
    found = tree.find("/d")
    assert isinstance(found, Folder)
    assert (found.mode, found.uid, list(found.children)) == (0o1777, 5, ["a"])


def test_a_file_in_place_of_a_directory_and_the_other_way_round() -> None:
    tree = build([folder("d"), member("d/a", b"1"), member("f", b"1")], [member("d", b"2"), folder("f")])
    assert show(tree) == {"d": "2", "f": "/"}


def test_links_on_the_way_are_followed_inside_the_tree() -> None:
    tree = build(
        [folder("usr/bin"), link("bin", "usr/bin"), link("abs", "/usr/bin"), link("up", "usr/../usr/bin")],
        [member("bin/a", b"1"), member("abs/b", b"1"), member("up/c", b"1")],
    )
    assert {"usr/bin/a", "usr/bin/b", "usr/bin/c"} <= show(tree).keys()
    assert isinstance(tree.find("/bin/a"), Leaf)


def test_names_may_begin_with_a_slash_or_a_dot() -> None:
    assert show(build([folder("./"), member("/a", b"1"), member("./b//c", b"2")])) == {"a": "1", "b": "/", "b/c": "2"}


def test_a_hard_link_is_one_file_and_stays_it_when_the_other_name_is_replaced() -> None:
    tree = build([member("a", b"1"), hard("b", "a"), hard("/c", "./a")], [member("a", b"2")])
    assert show(tree) == {"a": "2", "b": "1", "c": "1"}
    assert tree.find("b") is tree.find("c")


def test_device_nodes_below_dev_are_left_out_and_said() -> None:
    tree = build([folder("dev"), member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)])
    assert (show(tree), tree.left_out) == ({"dev": "/"}, ["dev/null"])


HOSTILE = {
    "a name that leads up": ([member("../etc/passwd")], "leads up"),
    "a name that leads up further in": ([member("a/../../b")], "leads up"),
    "a link out": ([link("a", "../secret")], "leads out"),
    "a link out from further in": ([link("d/a", "../../secret")], "leads out"),
    "an absolute link out": ([link("a", "/../secret")], "leads out"),
    "a link to nothing": ([link("a", "")], "to nothing"),
    "a hard link out": ([hard("a", "../secret")], "leads up"),
    "a hard link to nothing": ([hard("a", "b")], "no file"),
    "a hard link to a directory": ([folder("d"), hard("a", "d")], "no file"),
    "a hard link to a later file": ([hard("a", "b"), member("b")], "no file"),
    "a block device": ([member("sda", type=tarfile.BLKTYPE)], "block device outside"),
    "a device that hides below dev's name": ([member("x/dev/null", type=tarfile.CHRTYPE)], "character device outside"),
    "one name twice": ([member("a", b"1"), member("a", b"2")], "twice"),
    "one name twice, by a link": ([folder("d"), link("l", "d"), member("d/a"), member("l/a")], "twice"),
    "a directory after a file of its name": ([member("a"), folder("a")], "twice"),
    "below a file": ([member("a"), member("a/b")], "is a file"),
    "below a loop": ([link("a", "b"), link("b", "a"), member("a/x")], "is a file, or a link"),
    "a whiteout with data": ([member(".wh.a", b"data")], "no whiteout"),
    "a whiteout of the way up": ([member(".wh...")], "no whiteout"),
    "too deep": ([member("d/" * 300 + "f")], "too deep"),
    "a long name": ([member("n" * 256)], "too long"),
    "a root that is a file": ([member(".")], "root is no directory"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_what_is_hostile(name: str) -> None:
    members, says = HOSTILE[name]
    with pytest.raises(MalformedContainer, match=says):
        build(members)


PATHS = st.lists(st.sampled_from(["a", "b", "c", ".."]), min_size=1, max_size=4).map("/".join)
MEMBERS = st.one_of(
    PATHS.map(lambda path: member(path, b"x")), PATHS.map(folder), st.builds(link, PATHS, PATHS.map(lambda p: f"/{p}")),
    st.builds(link, PATHS, PATHS), st.builds(hard, PATHS, PATHS), PATHS.map(lambda path: member(f"{path}/.wh.a")),
    PATHS.map(lambda path: member(f"{path}/.wh..wh..opq")),
)  # fmt: skip


@settings(max_examples=120)
@given(st.lists(st.lists(MEMBERS, max_size=6), max_size=3))
def test_any_layers_give_a_tree_that_a_ramdisk_holds_or_their_error(layers: list[list[Member]]) -> None:
    tree, budget = Tree(), Budget()
    try:
        for members in layers:
            tree.apply(BytesSource(make_tar(*members)), budget)
    except MalformedContainer:
        return
    out = io.BytesIO()
    write_ramdisk(tree, {"cmd": b"a\n"}, out)
    again = io.BytesIO()
    write_ramdisk(tree, {"cmd": b"a\n"}, again)
    assert out.getvalue() == again.getvalue()
    assert len(out.getvalue()) % 512 == 0


def test_what_is_mounted_upon_must_be_a_directory() -> None:
    with pytest.raises(UnfitContainer, match="/proc of the container"):
        write_ramdisk(build([member("proc", b"x")]), {}, io.BytesIO())
