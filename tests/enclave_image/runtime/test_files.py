# SPDX-License-Identifier: MIT
"""The parties' files through the API: rights, whole or not at all, pins, `once`, limits, and what refusals tell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .household import Client, Isolate, Party, isolate, make_policy, participant

PINNED = b"the agreed model"
MIB = 1 << 20


@pytest.fixture(scope="module")
def house(alice: Party, bob: Party) -> Iterator[Isolate]:
    policy = make_policy(
        participants=[
            participant(
                alice,
                {
                    "/input/alice/": ["write", "read", "list", "delete"],
                    "/log": ["append"],
                    "/both/": ["write", "append", "read", "list", "delete"],
                    "/once/": ["write", "append", "delete", "read"],
                    "/pinned": ["write", "append", "read"],
                },
            ),
            participant(bob, {"/output/": ["read"], "/log": ["read"], "/both/": ["write", "read"]}),
        ],
        join=["alice"],
        pins={"/pinned": hashlib.sha256(PINNED).hexdigest()},
        once=["/once/"],
        limits={"storage_mib": 4, "file_mib": 1},
    )
    with isolate(policy) as ran:
        yield ran


@pytest.fixture
def as_alice(house: Isolate, alice: Party) -> Iterator[Client]:
    with house.connect(alice) as client:
        yield client


@pytest.fixture
def as_bob(house: Isolate, bob: Party) -> Iterator[Client]:
    with house.connect(bob) as client:
        yield client


def test_reads_back_what_was_written(as_alice: Client) -> None:
    put = as_alice.put("/input/alice/a", b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert (put.status, put.json) == (201, {"path": "/input/alice/a", "size": 7, "sha256": digest})
    got = as_alice.get("/input/alice/a")
    assert (got.status, got.body, got.headers["x-content-sha256"]) == (200, b"content", digest)
    head = as_alice.ask("HEAD", "/v1/files/input/alice/a")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "7")


def test_an_empty_file_is_a_file(as_alice: Client) -> None:
    assert as_alice.put("/input/alice/empty", b"").status == 201
    assert (as_alice.get("/input/alice/empty").status, as_alice.get("/input/alice/empty").body) == (200, b"")


def test_forbidden_and_absent_are_the_same_bytes(as_alice: Client, as_bob: Client) -> None:
    as_alice.put("/input/alice/table", b"secret")
    answers = set()
    for path in ("/input/alice/table", "/input/alice/nothing", "/nowhere", "/output/absent"):
        for method in ("GET", "DELETE"):
            answer = as_bob.ask(method, f"/v1/files{path}")
            answers.add((answer.status, answer.body, tuple(sorted(answer.headers.items()))))
    answers.add((404, as_bob.get("/input/alice/").body, tuple(sorted(as_bob.get("/input/alice/").headers.items()))))
    put = as_bob.put("/input/alice/table", b"other")
    answers.add((put.status, put.body, tuple(sorted(put.headers.items()))))
    assert len(answers) == 1
    heads = {
        (answer.status, tuple(sorted(answer.headers.items())))
        for answer in (as_bob.ask("HEAD", f"/v1/files{path}") for path in ("/input/alice/table", "/nowhere"))
    }
    assert len(heads) == 1


def test_a_refused_body_does_not_cost_the_connection(as_bob: Client) -> None:
    assert as_bob.put("/input/alice/big", bytes(MIB)).status == 404
    assert as_bob.ask("GET", "/v1/policy").status == 200


@pytest.mark.parametrize(
    "path", ["/a//b", "/../x", "/input/alice/../x", "/input/alice/%2e%2e/x", "/a%00", "/%zz", "/%", "/a%0a", "/%ff",
             "/proc/x", "/input/./x", "/" + "a" * 256]
)  # fmt: skip
def test_a_path_has_one_spelling(as_alice: Client, path: str) -> None:
    assert as_alice.get(path).slug == "malformed-request"


def test_an_escaped_path_is_the_path(as_alice: Client) -> None:
    assert as_alice.put("/input/alice/a%20b", b"blank").json["path"] == "/input/alice/a b"
    assert as_alice.get("/input%2Falice/a%20b").body == b"blank"


def test_a_body_that_is_not_what_its_digest_says_is_not_stored(as_alice: Client) -> None:
    refused = as_alice.put("/input/alice/wrong", b"content", sha256="0" * 64)
    assert (refused.status, refused.slug) == (409, "digest-mismatch")
    assert as_alice.get("/input/alice/wrong").status == 404


@pytest.mark.parametrize("headers", [{}, {"X-Content-SHA256": "12"}, {"X-Content-SHA256": "z" * 64}])
def test_a_digest_is_needed(as_alice: Client, headers: dict[str, str]) -> None:
    assert as_alice.ask("PUT", "/v1/files/input/alice/x", b"x", headers).slug == "malformed-request"


def test_an_upload_that_is_cut_leaves_nothing(house: Isolate, alice: Party, as_alice: Client) -> None:
    as_alice.put("/input/alice/cut", b"old")
    with house.connect(alice) as client:
        client.tls.sendall(
            b"PUT /v1/files/input/alice/cut HTTP/1.1\r\nHost: i\r\nContent-Length: 1000\r\n"
            b"X-Content-SHA256: " + b"0" * 64 + b"\r\n\r\nonly this"
        )
    assert as_alice.get("/input/alice/cut").body == b"old"


def test_a_file_over_the_limit_is_refused_and_one_at_it_is_not(as_alice: Client) -> None:
    refused = as_alice.put("/input/alice/large", bytes(MIB + 1))
    assert (refused.status, refused.slug) == (413, "too-large")
    assert as_alice.put("/input/alice/large", bytes(MIB)).status == 201
    assert as_alice.ask("DELETE", "/v1/files/input/alice/large").status == 204


def test_a_share_of_the_storage_is_ones_own(as_alice: Client, as_bob: Client) -> None:
    """4 MiB for two who store: Alice's third MiB is refused, and Bob cannot tell that hers are full."""
    statuses = [as_alice.put(f"/both/alice-{number}", bytes(MIB)).status for number in range(3)]
    assert statuses[-1] == 413
    assert as_bob.put("/both/bob", bytes(MIB)).status == 201
    for number in range(3):
        as_alice.ask("DELETE", f"/v1/files/both/alice-{number}")
    assert as_alice.put("/both/alice-0", bytes(MIB)).status == 201
    as_alice.ask("DELETE", "/v1/files/both/alice-0")


def test_appends_whole_and_tells_its_sender_nothing_of_the_rest(as_alice: Client, as_bob: Client) -> None:
    for piece in (b"one ", b"two"):
        answer = as_alice.put("/log", piece, method="PATCH")
        assert answer.status == 200
        assert answer.json["sha256"] == hashlib.sha256(piece).hexdigest()
    assert as_bob.get("/log").body == b"one two"
    assert as_bob.get("/log").headers["x-content-sha256"] == hashlib.sha256(b"one two").hexdigest()
    assert as_alice.get("/log").status == 404
    assert as_alice.put("/log", b"over", sha256="0" * 64, method="PATCH").slug == "digest-mismatch"
    assert as_bob.put("/log", b"x", method="PATCH").status == 404
    assert as_bob.get("/log").body == b"one two"


def test_a_pinned_path_takes_its_one_content(as_alice: Client) -> None:
    assert as_alice.put("/pinned", b"another").slug == "pin-mismatch"
    assert as_alice.put("/pinned", PINNED[:3], method="PATCH").slug == "pin-mismatch"
    assert as_alice.put("/pinned", PINNED).status == 201
    assert as_alice.put("/pinned", b"!", method="PATCH").slug == "pin-mismatch"
    assert as_alice.get("/pinned").body == PINNED


def test_once_freezes_a_path_at_its_first_complete_write(as_alice: Client) -> None:
    assert as_alice.put("/once/a", b"x", sha256="0" * 64).slug == "digest-mismatch"
    assert as_alice.put("/once/a", b"first").status == 201
    assert as_alice.put("/once/a", b"second").slug == "frozen"
    assert as_alice.put("/once/a", b"more", method="PATCH").slug == "frozen"
    assert as_alice.ask("DELETE", "/v1/files/once/a").slug == "frozen"
    assert as_alice.put("/once/b", b"other").status == 201
    assert as_alice.get("/once/a").body == b"first"


def test_lists_names_kinds_and_sizes(as_alice: Client) -> None:
    as_alice.put("/both/dir/b", b"12")
    as_alice.put("/both/dir/sub/c", b"123")
    assert as_alice.get("/both/dir/").json["entries"] == [
        {"name": "b", "kind": "file", "size": 2},
        {"name": "sub", "kind": "directory", "size": 0},
    ]
    assert as_alice.get("/input/alice/none/").json == {"entries": []}


def test_a_path_is_not_both_file_and_directory(as_alice: Client) -> None:
    as_alice.put("/both/file", b"")
    assert as_alice.put("/both/file/below", b"x").status == 404
    as_alice.put("/both/other/below", b"x")
    assert as_alice.put("/both/other", b"x").status == 404


def test_deletes(as_alice: Client) -> None:
    as_alice.put("/input/alice/gone", b"x")
    assert as_alice.ask("DELETE", "/v1/files/input/alice/gone").status == 204
    assert as_alice.get("/input/alice/gone").status == 404


def test_takes_a_body_that_waits_for_100_continue(house: Isolate, alice: Party) -> None:
    body = b"waited"
    head = (
        f"PUT /v1/files/input/alice/waited HTTP/1.1\r\nHost: i\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"X-Content-SHA256: {hashlib.sha256(body).hexdigest()}\r\n\r\n"
    )
    with house.connect(alice) as client:
        client.tls.sendall(head.encode())
        assert client.tls.recv(4096).startswith(b"HTTP/1.1 100")
        client.tls.sendall(body)
        assert client.tls.recv(4096).startswith(b"HTTP/1.1 201")


def test_leaves_no_file_of_replaced_contents(alice: Party, start: Callable[..., Any]) -> None:
    ran = start(make_policy(alice))
    store = Path(ran.host.base).parent / "scratch" / "store"
    with ran.connect(alice) as client:
        for number in range(5):
            client.put("/a", str(number).encode())
            client.put("/b", b"bad", sha256="0" * 64)
        assert [path.read_bytes() for path in store.iterdir()] == [b"4"]
        assert store.stat().st_mode & 0o777 == 0o700
