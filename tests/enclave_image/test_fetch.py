# SPDX-License-Identifier: MIT
"""Inputs reach the cache whole and checked, or not at all; a real HTTP server serves them, well and badly."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_image import fetch
from enclave_image.download import Patience, Turn
from enclave_image.errors import InputMismatch, InputUnavailable
from enclave_image.fetch import Snapshot, fetch_inputs, input_path
from enclave_image.lock import Archive, LockedPackage, Role

from .mirrors import Mirror, serving

BODY = bytes(range(256)) * 4096  # 1 MiB
SHA1 = hashlib.sha1(BODY).hexdigest()
HURRIED = Patience(silence=5.0, window=0.3, least=64, attempts=3, pause=0.01, longest=0.2)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serving() as server:
        server.routes |= {
            "/pool/good.deb": lambda h: h.answer(BODY),
            "/pool/other.deb": lambda h: h.answer(bytes(len(BODY))),
            "/pool/long.deb": lambda h: h.answer(BODY + b"x"),
            "/pool/cut.deb": lambda h: h.answer(BODY, cut=None if h.headers.get("Range") else len(BODY) // 2),
            "/pool/always-cut.deb": lambda h: h.answer(BODY, cut=1000),
            "/pool/no-ranges.deb": lambda h: h.answer(
                BODY, ranges=False, cut=None if h.headers.get("Range") else len(BODY) // 2
            ),
            "/pool/wrong-range.deb": lambda h: h.answer(
                BODY, shift=1, cut=None if h.headers.get("Range") or len(server.requests) > 1 else len(BODY) // 2
            ),
        }
        yield server


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MIRROR_PATIENCE", HURRIED)


def snapshot(server: Mirror) -> Snapshot:
    return Snapshot(server.url, HURRIED, Turn(0.05))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def package(name: str) -> LockedPackage:
    digest = hashlib.sha256(BODY).hexdigest()
    return LockedPackage(name, "1", frozenset({Role.ROOT}), Archive.DEBIAN, f"pool/{name}.deb", len(BODY), digest, SHA1)


def mirrors(*servers: Mirror) -> dict[Archive, tuple[str, ...]]:
    return {Archive.DEBIAN: tuple(server.url for server in servers), Archive.SECURITY: ()}


def leftovers() -> list[Path]:
    return [path for path in input_path(package("x")).parents[1].rglob("*.part") if path.is_file()]


def test_brings_an_input_once(mirror: Mirror) -> None:
    good = package("good")
    assert fetch_inputs([good], mirrors(mirror))["good"].read_bytes() == BODY
    fetch_inputs([good], mirrors(mirror))
    fetch_inputs([good], mirrors(), offline=True)
    assert mirror.requests == [("/pool/good.deb", None)]


def test_goes_on_where_a_connection_was_cut(mirror: Mirror) -> None:
    assert fetch_inputs([package("cut")], mirrors(mirror))["cut"].read_bytes() == BODY
    assert mirror.requests == [("/pool/cut.deb", None), ("/pool/cut.deb", f"bytes={len(BODY) // 2}-")]


def test_asks_the_next_mirror(mirror: Mirror) -> None:
    nobody = {Archive.DEBIAN: ("http://127.0.0.1:9", *mirrors(mirror)[Archive.DEBIAN]), Archive.SECURITY: ()}
    assert fetch_inputs([package("good")], nobody)["good"].read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("other", InputMismatch, "SHA-256 of other.deb"),
        ("long", InputMismatch, "longer than the lock says"),
        ("absent", InputUnavailable, r"absent 1; tried http://127\.0\.0\.1:\d+/pool/absent\.deb: 404 Not Found"),
    ],
)
def test_refuses_a_bad_answer_and_leaves_nothing(mirror: Mirror, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fetch_inputs([package(name)], mirrors(mirror))
    assert not input_path(package(name)).exists()
    assert leftovers() == []


def test_a_truncated_answer_is_named_and_the_next_run_goes_on_where_it_ended(mirror: Mirror) -> None:
    with pytest.raises(InputUnavailable, match=r"always-cut\.deb: truncated: 1000 of 1048576 bytes, then .*3000 of"):
        fetch_inputs([package("always-cut")], mirrors(mirror))
    mirror.requests.clear()
    mirror.routes["/pool/always-cut.deb"] = lambda h: h.answer(BODY)
    assert fetch_inputs([package("always-cut")], mirrors(mirror))["always-cut"].read_bytes() == BODY
    assert mirror.requests == [("/pool/always-cut.deb", "bytes=3000-")]
    assert leftovers() == []


@pytest.mark.parametrize("name", ["no-ranges", "wrong-range"])
def test_a_server_that_cannot_go_on_is_asked_from_the_start(mirror: Mirror, name: str) -> None:
    assert fetch_inputs([package(name)], mirrors(mirror))[name].read_bytes() == BODY


def test_a_beginning_that_was_wrong_is_thrown_away(mirror: Mirror) -> None:
    part = input_path(package("good")).with_name("good.deb.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(5000))
    assert fetch_inputs([package("good")], mirrors(mirror))["good"].read_bytes() == BODY
    assert [wanted for _, wanted in mirror.requests] == ["bytes=5000-", None]


def test_other_bytes_at_one_mirror_leave_the_next_to_be_asked(mirror: Mirror) -> None:
    with serving() as second:
        second.routes["/pool/other.deb"] = lambda h: h.answer(BODY)
        both = {Archive.DEBIAN: (mirror.url, second.url), Archive.SECURITY: ()}
        assert fetch_inputs([package("other")], both)["other"].read_bytes() == BODY


def test_what_a_mirror_no_longer_has_comes_from_the_snapshot_service(mirror: Mirror) -> None:
    with serving() as service:
        service.routes[f"/file/{SHA1}"] = lambda h: h.answer(BODY)
        found = fetch_inputs([package("absent")], mirrors(mirror), snapshot=snapshot(service))
        assert found["absent"].read_bytes() == BODY
        assert service.requests == [(f"/file/{SHA1}", None)]
    assert mirror.requests == [("/pool/absent.deb", None)]


def test_the_snapshot_service_alone_is_enough(mirror: Mirror) -> None:
    mirror.routes[f"/file/{SHA1}"] = lambda h: h.answer(BODY)
    fetch_inputs([package("good")], mirrors(), snapshot=snapshot(mirror))


def test_what_the_snapshot_service_serves_is_checked_by_sha256(mirror: Mirror) -> None:
    mirror.routes[f"/file/{SHA1}"] = lambda h: h.answer(bytes(len(BODY)))
    with pytest.raises(InputMismatch, match=r"SHA-256 of absent\.deb.*tried .*404 Not Found"):
        fetch_inputs([package("absent")], mirrors(mirror), snapshot=snapshot(mirror))
    assert leftovers() == []


def test_without_a_snapshot_service_the_error_says_how_to_name_one(mirror: Mirror) -> None:
    with pytest.raises(InputUnavailable) as caught:
        fetch_inputs([package("absent")], mirrors(mirror))
    assert "VERACRUZ_SNAPSHOT" in str(caught.value.hint)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again_later(mirror: Mirror, code: int) -> None:
    mirror.routes["/pool/busy.deb"] = lambda h: (
        h.refuse(code, Retry_After="0") if len(mirror.requests) < 3 else h.answer(BODY)
    )
    assert fetch_inputs([package("busy")], mirrors(mirror))["busy"].read_bytes() == BODY
    assert len(mirror.requests) == 3


def test_a_server_that_stays_busy_is_given_up_and_what_it_asks_for_is_bounded(mirror: Mirror) -> None:
    mirror.routes["/pool/busy.deb"] = lambda h: h.refuse(429, Retry_After="86400")
    with pytest.raises(InputUnavailable, match="429 Too Many Requests"):
        fetch_inputs([package("busy")], mirrors(mirror))
    assert len(mirror.requests) == HURRIED.attempts


def test_the_snapshot_service_is_asked_one_at_a_time_and_not_often(mirror: Mirror) -> None:
    bodies = {f"p{number}": BODY + bytes([number]) for number in range(3)}
    packages = []
    for name, body in bodies.items():
        sha1 = hashlib.sha1(body).hexdigest()
        mirror.routes[f"/file/{sha1}"] = lambda h, body=body: h.answer(body)  # type: ignore[misc]
        digest = hashlib.sha256(body).hexdigest()
        roles = frozenset({Role.ROOT})
        packages.append(LockedPackage(name, "1", roles, Archive.DEBIAN, f"pool/{name}.deb", len(body), digest, sha1))
    fetch_inputs(packages, mirrors(), snapshot=Snapshot(mirror.url, HURRIED, Turn(0.3)))
    first, second, third = mirror.times
    assert second - first >= 0.3
    assert third - second >= 0.3


def test_a_mirror_that_trickles_is_left_for_the_next(mirror: Mirror) -> None:
    with serving() as slow:
        slow.routes["/pool/good.deb"] = lambda h: h.trickle(BODY, pause=0.05)
        both = {Archive.DEBIAN: (slow.url, mirror.url), Archive.SECURITY: ()}
        assert fetch_inputs([package("good")], both)["good"].read_bytes() == BODY
    with serving() as slow:
        slow.routes["/pool/absent.deb"] = lambda h: h.trickle(BODY, pause=0.05)
        with pytest.raises(InputUnavailable, match="too slow"):
            fetch_inputs([package("absent")], mirrors(slow))


def test_a_redirect_is_followed_a_few_times(mirror: Mirror) -> None:
    mirror.routes["/pool/moved.deb"] = lambda h: h.refuse(302, Location="/pool/good.deb")
    assert fetch_inputs([package("moved")], mirrors(mirror))["moved"].read_bytes() == BODY


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/pool/circle.deb", "circle"),
        ("ftp://127.0.0.1/x", "redirects from http to ftp"),
        ("file:///etc/passwd", "no HTTP address"),
    ],
)
def test_a_redirect_in_a_circle_or_elsewhere_than_http_is_not_followed(
    mirror: Mirror, location: str, words: str
) -> None:
    mirror.routes["/pool/circle.deb"] = lambda h: h.refuse(302, Location=location)
    with pytest.raises(InputUnavailable, match=words):
        fetch_inputs([package("circle")], mirrors(mirror))
    assert mirror.count("/pool/circle.deb") <= 6


def test_says_so_when_no_mirror_is_known() -> None:
    with pytest.raises(InputUnavailable, match="no mirror") as caught:
        fetch_inputs([package("good")], mirrors())
    assert "VERACRUZ_DEBIAN_MIRROR" in str(caught.value.hint)


def test_offline_names_what_is_missing() -> None:
    with pytest.raises(InputUnavailable, match="good, other"):
        fetch_inputs([package("good"), package("other")], mirrors(), offline=True)


def test_a_cache_that_rotted_is_fetched_anew(mirror: Mirror) -> None:
    good = package("good")
    path = fetch_inputs([good], mirrors(mirror))["good"]
    path.write_bytes(bytes(len(BODY)))
    assert fetch_inputs([good], mirrors(mirror))["good"].read_bytes() == BODY


def test_ctrl_c_does_not_wait_for_a_silent_mirror(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "host_shim.cli", "image", "build", "--out", str(tmp_path / "x.eif")]
        environment = {**os.environ, "VERACRUZ_DEBIAN_MIRROR": url, "VERACRUZ_SECURITY_MIRROR": url}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)  # it waits for our answer now
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert leftovers() == []
    assert not (tmp_path / "x.eif").exists()
