# SPDX-License-Identifier: MIT
"""One life, one policy: what a host can try on an isolate from its first packet to its end, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cbor2
import pytest

from attestation.binding import policy_hash, policy_pcr
from attestation.errors import Unreachable
from attestation.limits import MAX_POLICY
from attestation.nsm import ExtendPcr, LockPcr, encode_request
from enclave_image.eif import read_eif
from enclave_image.runtime.wire import PORT_EVENTS, PORT_HEARTBEAT, PORT_NSM, PORT_POLICY, Event
from host_shim.nsm_emulator import NsmEmulator

from .conftest import Scene
from .machines import World, change, copy_source
from .probed import PROGRAM, boot_probe
from .rig import Guest, Host, Reader, Serve, Writer, boot, frame

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

DIALLED_ONCE = [PORT_HEARTBEAT, PORT_EVENTS, PORT_NSM, PORT_POLICY]


def on_rig(scene: Scene, body: Callable[[Guest], Coroutine[Any, Any, None]], **more: Any) -> None:
    """Boot the shared image on a host of the test's making and run `body` on it."""

    async def run() -> None:
        state = Path(scene.world.environment["XDG_STATE_HOME"]) / "veracruz"
        options = {"policy": scene.policy.read_bytes(), **more}
        async with boot(read_eif(scene.image.read_bytes()), state=state, **options) as guest:
            await body(guest)

    asyncio.run(run())


def pcr16(document: bytes) -> bytes:
    """Return PCR16 of a document that somebody else verifies."""
    value: bytes = cbor2.loads(cbor2.loads(document)[2])["pcrs"][16]
    return value


def test_takes_one_policy_and_serves_nothing_before(scene: Scene) -> None:
    """The host holds the policy back, then gives two on one connection, and at last presses the reset button."""
    first = scene.policy.read_bytes()
    second = first.replace(b'"shared"', b'"second"')
    assert second != first
    go = asyncio.Event()

    async def give_two(host: Host, reader: Reader, writer: Writer) -> None:
        await go.wait()
        writer.write(frame(first) + frame(second))
        await writer.drain()
        host.policy_answers += await reader.read()

    async def body(guest: Guest) -> None:
        await guest.wait_for(lambda: PORT_POLICY in guest.host.dialled)
        with pytest.raises(Unreachable):
            await guest.fetch()
        assert guest.host.events == [Event.ATTESTOR_READY]
        go.set()
        await guest.wait_for_event(Event.SERVING)
        document = (await guest.fetch()).document
        assert pcr16(document) == policy_pcr(policy_hash(first))
        assert policy_hash(second) not in document
        await guest.wait_for(lambda: len(guest.host.policy_answers) > 0)
        assert guest.host.policy_answers == bytes([Event.POLICY_TAKEN])
        assert guest.host.dialled == sorted(DIALLED_ONCE, key=guest.host.dialled.index)
        await guest.reset()
        await guest.wait_for_end(30)
        assert guest.code == 0
        with pytest.raises(Unreachable):
            await guest.fetch()

    on_rig(scene, body, give=give_two)


def test_does_not_rise_again_after_a_reset(scene: Scene) -> None:
    """A host whose QEMU survives a reset: the module that knows the first life serves no second one."""

    async def body(guest: Guest) -> None:
        await guest.wait_for_event(Event.SERVING)
        await guest.reset()
        await guest.wait_for_event(Event.HALT_NSM)
        assert guest.host.events == [
            Event.ATTESTOR_READY, Event.POLICY_TAKEN, Event.SERVING, Event.HALT_NSM
        ]  # fmt: skip
        assert guest.host.dialled.count(PORT_POLICY) == 1

    on_rig(scene, body, command=lambda command: [word for word in command if word != "-no-reboot"])


def lock(module: NsmEmulator) -> None:
    module.answer(encode_request(LockPcr(16)))


def test_halts_where_pcr16_is_locked_beforehand(scene: Scene) -> None:
    async def body(guest: Guest) -> None:
        await guest.wait_for_end()
        assert guest.host.events == [Event.ATTESTOR_READY, Event.HALT_POLICY_PCR]
        assert guest.host.policy_answers == bytes([Event.HALT_POLICY_PCR])
        assert guest.code == 0

    on_rig(scene, body, prepare=lock)


def test_halts_where_pcr16_was_extended_beforehand_and_the_host_says_so(scene: Scene, tmp_path: Path) -> None:
    """By the real command line, of a host whose module is not fresh."""
    source = copy_source(tmp_path / "source")
    extend = encode_request(ExtendPcr(16, b"a policy of the host's own"))
    old = "    return NsmEmulator(state, chain, clock="
    change(source / "host_shim/boot.py", old, old.replace("return", "module ="))
    lines = (source / "host_shim/boot.py").read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("    module = NsmEmulator("))
    lines[at + 1 : at + 1] = [f"    module.answer({extend!r})", "    return module"]
    (source / "host_shim/boot.py").write_text("\n".join(lines) + "\n")
    host = World(tmp_path / "host", source)
    host.environment["XDG_STATE_HOME"] = scene.world.environment["XDG_STATE_HOME"]
    done = host.run("enclave", "run", scene.image, "--policy", scene.policy, "--json", expect=5)
    assert done.slug == "isolate-refused"
    assert "PCR16 was not zero and unlocked" in done.err
    assert "serving" not in done.err


def give_raw(data: bytes) -> Serve:
    async def give(host: Host, reader: Reader, writer: Writer) -> None:
        writer.write(data)
        await writer.drain()
        host.policy_answers += await reader.read()

    return give


@pytest.mark.parametrize(
    "sent",
    [frame(b'{"schema": "veracruz.policy/1", "name": '), frame(bytes(MAX_POLICY + 1))],
    ids=["malformed", "long"],
)
def test_halts_at_what_is_no_policy_and_leaves_pcr16_alone(scene: Scene, sent: bytes) -> None:
    async def body(guest: Guest) -> None:
        await guest.wait_for_end()
        assert guest.host.events == [Event.ATTESTOR_READY, Event.HALT_POLICY]
        register = guest.host.module.answer(encode_request(ExtendPcr(16, b"")))
        assert b"ReadOnlyIndex" not in register

    on_rig(scene, body, give=give_raw(sent))


@pytest.mark.parametrize(
    ("words", "code", "slug", "text"),
    [
        (("--root", "aws"), 5, "isolate-refused", "the policy demands AWS's root, and here is an emulated module"),
        (("--not-after", "2024-01-01T00:00:00Z"), 5, "isolate-died", "the policy has expired"),
    ],
    ids=["root-aws", "expired"],
)
def test_refuses_a_policy_that_is_not_for_here_and_now(
    scene: Scene, words: tuple[str, ...], code: int, slug: str, text: str
) -> None:
    policy = scene.world.policy("refused", scene.image.with_suffix(".json"), *words)
    done = scene.world.run("enclave", "run", scene.image, "--policy", policy, "--json", expect=code)
    assert done.slug == slug
    assert text in done.err
    assert "serving" not in done.err


def base_of(world: World, name: str) -> str:
    """Return the prefix of a running isolate's sockets, out of its backend's command line."""
    pid = next(e["pid"] for e in world.run("enclave", "list", "--json").json["isolates"] if e["name"] == name)
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1] if b"--base" in words else ""
            if parent == str(pid):
                return words[words.index(b"--base") + 1].decode()
    raise AssertionError(f"no backend of {name}")


@pytest.mark.parametrize("port", [PORT_NSM, PORT_POLICY])
def test_a_second_connection_to_module_or_policy_is_closed_unanswered(scene: Scene, port: int) -> None:
    """What a hostile process inside would dial; the first connection is the attestor's, and goes on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(f"{base_of(scene.world, scene.enclave.name)}_{port}")
        with suppress(OSError):
            sock.sendall(frame(encode_request(ExtendPcr(17, b"x"))))
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    scene.world.run("attest", "fetch", "--isolate", scene.enclave.endpoint, "--json")


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        ("runtime", "the isolate died"),
        ("zygote", "the isolate halted: an error inside the runtime"),
        ("attestor", "the isolate halted: no security module answered inside"),
    ],
)
def test_nothing_inside_is_ever_restarted(
    world: World, tmp_path_factory: pytest.TempPathFactory, victim: str, reason: str
) -> None:
    """One process of the runtime's is killed: the machine powers off. Its host can only boot another isolate."""
    directory = tmp_path_factory.getbasetemp() / "probed-for-life"
    directory.mkdir(exist_ok=True)
    with boot_probe(world, directory, secrets=False) as probed:
        probed.run(f"kill-{victim}")
        probed.party("bob", "run", PROGRAM, "--wait", expect=None)  # asks for evidence and for another worker
        record = wait_for_end(probed.world, probed.enclave.name)
        assert record["stage"] == "failed"
        assert record["reason"].startswith(reason)
        console = probed.world.run("enclave", "console", probed.enclave.name).out
        assert console.count("init: ready") == 1
        assert victim != "runtime" or console.count("init: the runtime has ended") == 1


def wait_for_end(world: World, name: str) -> dict[str, Any]:
    for _ in range(100):
        records = world.run("enclave", "list", "--all", "--json").json["isolates"]
        record: dict[str, Any] = next(record for record in records if record["name"] == name)
        if record["stage"] not in ("booting", "serving"):
            return record
        time.sleep(0.2)
    raise AssertionError(record)


class Switch:
    """One address for participants; who is behind it is decided for each connection."""

    def __init__(self, *targets: str) -> None:
        self.targets = [(host, int(port)) for host, port in (target.rsplit(":", 1) for target in targets)]
        self.plan: list[int] = []  # for the next connections; the last one stays
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                number = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
                threading.Thread(target=self._relay, args=(client, self.targets[number]), daemon=True).start()

    def _relay(self, client: socket.socket, target: tuple[str, int]) -> None:
        with client, socket.create_connection(target) as server:
            back = threading.Thread(target=self._carry, args=(server, client))
            back.start()
            self._carry(client, server)
            back.join()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def switched(*targets: str) -> Iterator[Switch]:
    switch = Switch(*targets)
    try:
        yield switch
    finally:
        switch.close()


def test_a_clone_behind_the_same_address_is_refused_by_the_next_verb(scene: Scene, tmp_path: Path) -> None:
    """Same image, same policy, same PCR16, genuine evidence: but it is not the isolate that Alice has talked to."""
    world = scene.world
    policy = world.policy("cloned", scene.image.with_suffix(".json"))
    table = tmp_path / "table.csv"
    table.write_text("a,b\n")
    with world.enclave(scene.image, policy) as one, world.enclave(scene.image, policy) as two:
        registers = []
        for number, enclave in enumerate((one, two)):
            out = tmp_path / str(number)
            world.run("attest", "fetch", "--isolate", enclave.endpoint, "--out", out, "--json")
            registers.append(pcr16(out.read_bytes()))
        assert registers == [policy_pcr(policy_hash(policy.read_bytes()))] * 2
        with switched(one.endpoint, two.endpoint) as switch:
            front = type(one)("front", switch.address, one.measurements)
            switch.plan = [0]
            world.party("alice", "send", front, policy, table, "/input/alice/table.csv")
            switch.plan = [1]
            refused = world.party("alice", "send", front, policy, table, "/input/alice/table.csv", expect=1)
            assert refused.slug == "isolate-changed"
            switch.plan = [0, 1]  # the evidence of one, then the other
            refused = world.party("alice", "send", front, policy, table, "/input/alice/table.csv", expect=1)
            assert refused.slug == "key-mismatch"
            switch.plan = [0]
            assert [e["name"] for e in world.party("alice", "ls", front, policy, "/input/alice/").json["entries"]] == [
                "table.csv"
            ]
        # Nothing came to the clone: Alice has not even joined there, so nothing runs.
        listed = world.party("alice", "ls", two, policy, "/input/alice/", "--new-isolate")
        assert listed.json["entries"] == []


def test_evidence_names_the_policy_that_is_enforced(scene: Scene, tmp_path: Path) -> None:
    out = tmp_path / "document"
    answer = scene.world.run("attest", "fetch", "--isolate", scene.enclave.endpoint, "--out", out, "--json").json
    assert pcr16(out.read_bytes()) == policy_pcr(policy_hash(scene.policy.read_bytes()))
    other = scene.world.directory / "other.policy.json"
    other.write_bytes(scene.policy.read_bytes().replace(b'"shared"', b'"others"'))
    done = scene.world.run(
        "attest", "verify", out, "--policy", other, "--root", scene.world.root, "--nonce", answer["nonce"],
        "--measurements", scene.image.with_suffix(".json"), "--json", expect=1,
    )  # fmt: skip
    assert json.loads(done.out)["slug"] == "policy-mismatch"
