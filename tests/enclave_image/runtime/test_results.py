# SPDX-License-Identifier: MIT
"""Taking results back out of a tree that an attacker made, without a worker: the tree is laid out by hand."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from attestation.policy import Participant, Policy, Program, Right, Rights, RunLimits, parse_policy
from enclave_image.runtime.results import Results, ResultsRefused, collect, read_stream
from enclave_image.runtime.staging import STDOUT, Staging, find_preopens, make_staging
from enclave_image.runtime.store import Store
from enclave_image.runtime.task import Preopen

from .household import Party, make_policy


def a_program(**rights: str) -> Program:
    entries = tuple((key, frozenset(Right(word) for word in words.split())) for key, words in rights.items())
    return Program("/p.wasm", bytes(32), Rights(tuple(sorted(entries))), (), (), RunLimits())


@pytest.fixture
def policy(alice: Party) -> Policy:
    return parse_policy(json.dumps(make_policy(alice, limits={"storage_mib": 2, "file_mib": 1})).encode())


@pytest.fixture
def store(policy: Policy, tmp_path: Path) -> Store:
    return Store(policy, tmp_path / "store")


def put(store: Store, party: Participant, path: str, content: bytes) -> None:
    store.put(party, path, content=iter([content]), length=len(content), sha256=hashlib.sha256(content).digest())


class Tree:
    """A staging tree whose program has these rights."""

    def __init__(self, tmp_path: Path, store: Store, **rights: str) -> None:
        self.store = store
        self.program = a_program(**rights)
        inputs = {path: blob for path, blob in store.snapshot().items() if self.program.rights.allow(path, Right.READ)}
        self.staging: Staging = make_staging(
            tmp_path / "run", program=self.program, inputs=inputs, uid=None, room=0, strict=False
        )
        self.tree = self.staging.root / "tree"

    def collect(self) -> Results:
        return collect(self.staging, program=self.program, store=self.store, owner="alice")


@pytest.fixture
def out(tmp_path: Path, store: Store) -> Tree:
    return Tree(tmp_path, store, **{"/out/": "write"})


def contents(results: Results) -> dict[str, bytes]:
    return {path: blob.read() for path, blob in results.changed.items()}


def test_takes_files_in_directories(out: Tree) -> None:
    (out.tree / "out" / "a" / "b").mkdir(parents=True)
    (out.tree / "out" / "a" / "b" / "c").write_bytes(b"deep")
    (out.tree / "out" / "d").write_bytes(b"")
    assert contents(out.collect()) == {"/out/a/b/c": b"deep", "/out/d": b""}


def test_a_symbolic_link_refuses_all(out: Tree) -> None:
    (out.tree / "out" / "good").write_bytes(b"x")
    (out.tree / "out" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ResultsRefused):
        out.collect()


def test_a_symbolic_link_in_a_directorys_place_refuses_all(out: Tree, tmp_path: Path) -> None:
    (out.tree / "out").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("secret")
    (out.tree / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultsRefused):
        out.collect()


def test_a_pipe_refuses_all_and_blocks_nobody(out: Tree) -> None:
    os.mkfifo(out.tree / "out" / "pipe")
    with pytest.raises(ResultsRefused):
        out.collect()


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", "\x1b[31m", "\udce4"])
def test_a_name_that_is_no_path_of_ours_refuses_all(out: Tree, name: str) -> None:
    (out.tree / "out" / name).write_bytes(b"x")
    with pytest.raises(ResultsRefused):
        out.collect()


def test_too_deep_refuses_all(out: Tree) -> None:
    (out.tree / "out" / "/".join("d" * 40)).mkdir(parents=True)
    with pytest.raises(ResultsRefused):
        out.collect()


def test_too_many_refuse_all(out: Tree) -> None:
    for number in range(2100):
        (out.tree / "out" / str(number)).touch()
    with pytest.raises(ResultsRefused):
        out.collect()


def test_a_file_that_is_too_large_refuses_all(out: Tree) -> None:
    (out.tree / "out" / "large").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ResultsRefused):
        out.collect()
    assert list((out.tree.parent.parent / "store").iterdir()) == []


def test_what_did_not_change_is_not_taken(tmp_path: Path, store: Store, policy: Policy) -> None:
    put(store, policy.participants[0], "/out/same", b"same")
    put(store, policy.participants[0], "/out/other", b"other")
    tree = Tree(tmp_path, store, **{"/out/": "read write"})
    (tree.tree / "out" / "other").chmod(0o600)
    (tree.tree / "out" / "other").write_bytes(b"changed")
    results = tree.collect()
    assert contents(results) == {"/out/other": b"changed"}
    assert results.deleted == []


@pytest.mark.parametrize(("after", "added"), [(b"old and new", b" and new"), (b"new", None), (b"ol", None)])
def test_an_appender_that_may_read_only_adds(
    tmp_path: Path, store: Store, policy: Policy, after: bytes, added: bytes | None
) -> None:
    put(store, policy.participants[0], "/out/log", b"old")
    tree = Tree(tmp_path, store, **{"/out/log": "read append"})
    (tree.tree / "out" / "log").write_bytes(after)
    if added is None:
        with pytest.raises(ResultsRefused):
            tree.collect()
    else:
        assert {path: blob.read() for path, blob in tree.collect().appended.items()} == {"/out/log": added}


def test_inputs_without_read_are_not_staged(tmp_path: Path, store: Store, policy: Policy) -> None:
    put(store, policy.participants[0], "/out/secret", b"x")
    put(store, policy.participants[0], "/in/read", b"y")
    tree = Tree(tmp_path, store, **{"/out/": "write", "/in/read": "read"})
    assert list((tree.tree / "out").iterdir()) == []
    staged = tree.tree / "in" / "read"
    assert staged.read_bytes() == b"y"
    assert staged.stat().st_mode & 0o777 == 0o444
    assert staged.stat().st_mtime == 0


def test_a_stream_that_is_a_link_tells_nothing(out: Tree) -> None:
    (out.staging.root / STDOUT).unlink()
    (out.staging.root / STDOUT).symlink_to("/etc/passwd")
    assert read_stream(out.staging, STDOUT) == b""


def test_removing_a_tree_follows_no_link(out: Tree, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (out.tree / "out" / "link").symlink_to(tmp_path / "kept")
    out.staging.remove()
    assert not out.staging.root.exists()
    assert (tmp_path / "kept" / "file").exists()


def test_each_right_opens_its_directory_and_changing_rights_make_it_mutable() -> None:
    rights = a_program(
        **{"/in/": "read", "/in/a/b": "write", "/out/": "write list", "/one/file": "read", "/out/sub/": "read"}
    ).rights
    assert find_preopens(rights) == (
        Preopen("/in", "tree/in", False),
        Preopen("/in/a", "tree/in/a", True),
        Preopen("/one", "tree/one", False),
        Preopen("/out", "tree/out", True),
        Preopen("/out/sub", "tree/out/sub", True),
    )
    assert find_preopens(a_program(**{"/": "read"}).rights) == (Preopen("/", "tree", False),)
