# SPDX-License-Identifier: MIT
"""The way out: one place a port, no address that nobody chose, every decision told, bytes carried whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_shim.children import python_command
from host_shim.egress.proxy import EgressProxy
from host_shim.egress.rules import Address, Rule, parse_rule, parse_rules
from host_shim.errors import MalformedEgress
from host_shim.parent_seat import UnixSeat

LIMIT = 30.0  # seconds for anything here


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("8000=kms.example:443", Rule(8000, "kms.example", 443)),
        ("8000=KMS.Example:443,private", Rule(8000, "kms.example", 443, private=True)),
        ("8000=192.0.2.7:443", Rule(8000, "192.0.2.7", 443)),
        ("8000=[2001:db8::1]:443", Rule(8000, "2001:db8::1", 443)),
    ],
)
def test_a_rule_is_read_and_written(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "", "8000", "8000=", "8000=host", "8000=host:", "=host:443", "0=host:443", "65536=host:443", "8000=host:0",
        "8000=host:65536", "8000=:443", "8000=ho st:443", "8000=host\n:443", "8000=-host:443", "8000=a..b:443",
        "8000=[host]:443", "8000=2001:db8::1:443", "8000=999.1.1.1:443", "8000=127.1:443", "8000=host:443,public",
        "8000=host:443,", "٨=host:443", "8000=" + "a" * 64 + ":443", "8000=" + "a." * 127 + "a:443",
        "9000=host:443", "9002=host:443", "5000=host:443",
    ],
)  # fmt: skip
def test_refuses_what_is_no_rule(text: str) -> None:
    with pytest.raises(MalformedEgress):
        parse_rule(text)


@given(st.text(max_size=80))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    with contextlib.suppress(MalformedEgress):
        assert parse_rule(str(parse_rule(text))) == parse_rule(text)


def test_refuses_two_rules_for_one_port() -> None:
    with pytest.raises(MalformedEgress, match="have one port"):
        parse_rules(["8000=a:1", "8000=b:2"])


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("1.1.1.1", True, True), ("2606:4700::1111", True, True),
        ("10.1.2.3", False, True), ("172.16.0.1", False, True), ("192.168.1.1", False, True), ("fd00::1", False, True),
        ("::ffff:10.0.0.1", False, True), ("::ffff:169.254.169.254", False, False),
        ("169.254.169.254", False, False), ("fe80::1", False, False), ("127.0.0.1", False, False),
        ("::1", False, False), ("0.0.0.0", False, False), ("::", False, False), ("224.0.0.1", False, False),
        ("192.0.2.1", False, False), ("240.0.0.1", False, False), ("255.255.255.255", False, False),
    ],
)  # fmt: skip
def test_which_addresses_a_name_may_lead_to(address: str, public: bool, private: bool) -> None:
    parsed = ipaddress.ip_address(address)
    assert (Rule(8000, "kms.example", 443).refuses(parsed) is None) is public
    assert (Rule(8000, "kms.example", 443, private=True).refuses(parsed) is None) is private


def test_an_address_that_is_written_out_is_taken_and_no_other() -> None:
    rule = parse_rule("8000=127.0.0.1:443")
    assert rule.refuses(ipaddress.ip_address("127.0.0.1")) is None
    assert rule.refuses(ipaddress.ip_address("127.0.0.2")) is not None


class World:
    """A proxy under test: a place to reach, the isolate's side, and what was told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "v_8000"
        self.told: list[str] = []

    @contextlib.asynccontextmanager
    async def proxy(self, rule: Rule, **options: object) -> AsyncIterator[None]:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen()
        proxy = EgressProxy({rule: listener}, self.told.append, **options)  # type: ignore[arg-type]
        task = asyncio.create_task(proxy.run())
        try:
            async with asyncio.timeout(LIMIT):
                yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def dial_in_vain(self) -> None:
        reader, writer = await self.dial()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()

    async def until_told(self, word: str) -> str:
        while True:
            for line in self.told:
                if word in line:
                    return line
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def place(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


def test_carries_bytes_both_ways_with_half_close(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def body() -> None:
        sent = os.urandom(3_000_000)
        async with place(echo) as port, world.proxy(parse_rule(f"8000=127.0.0.1:{port}")):
            reader, writer = await world.dial()

            async def send() -> None:
                writer.write(sent)
                await writer.drain()
                writer.write_eof()

            _, back = await asyncio.gather(send(), reader.read())
            writer.close()
            assert hashlib.sha256(back).digest() == hashlib.sha256(sent).digest()
            line = await world.until_told("closed")
            assert "3000000 bytes out, 3000000 back" in line

    asyncio.run(body())
    assert any("allowed: 127.0.0.1" in line for line in world.told)


def names(*addresses: str) -> Callable[[Rule], Awaitable[list[Address]]]:
    async def resolve(rule: Rule) -> list[Address]:
        return [ipaddress.ip_address(text) for text in addresses]

    return resolve


def test_a_name_that_leads_home_is_refused_and_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    connected: list[bool] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(True)
        writer.close()

    async def body() -> None:
        async with (
            place(served) as port,
            world.proxy(Rule(8000, "kms.example", port), resolve=names("127.0.0.1", "169.254.169.254", "10.0.0.1")),
        ):
            await world.dial_in_vain()

    asyncio.run(body())
    assert connected == []
    assert [line.partition("refused: ")[2] for line in world.told] == [
        "127.0.0.1: the address is this host's own",
        "169.254.169.254: the address is of the link",
        "10.0.0.1: the address is private, and the rule does not end in ,private",
    ]


def test_the_name_is_asked_afresh_for_each_connection(tmp_path: Path) -> None:
    world = World(tmp_path)
    asked: list[str] = []

    async def resolve(rule: Rule) -> list[Address]:
        asked.append(rule.host)
        return []

    async def body() -> None:
        async with world.proxy(Rule(8000, "kms.example", 443), resolve=resolve):
            await world.dial_in_vain()
            await world.dial_in_vain()

    asyncio.run(body())
    assert asked == ["kms.example", "kms.example"]


def test_a_name_that_nobody_knows_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def resolve(rule: Rule) -> list[Address]:
        raise socket.gaierror(-2, "Name or service not known\x1b[2J")

    async def body() -> None:
        async with world.proxy(Rule(8000, "kms.example", 443), resolve=resolve):
            await world.dial_in_vain()

    asyncio.run(body())
    (line,) = world.told
    assert "refused: the name cannot be resolved: Name or service not known" in line
    assert "\x1b" not in line


def test_a_place_that_does_not_listen_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def body() -> None:
        async with world.proxy(parse_rule(f"8000=127.0.0.1:{port}")):
            await world.dial_in_vain()

    asyncio.run(body())
    (line,) = world.told
    assert "not reached: 127.0.0.1:" in line


def test_a_connection_on_which_nothing_moves_is_ended(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def body() -> None:
        async with place(silent) as port, world.proxy(parse_rule(f"8000=127.0.0.1:{port}"), idle=0.2):
            await world.dial_in_vain()
            await world.until_told(" idle: ")

    asyncio.run(body())


def test_a_rule_has_only_so_many_connections(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def body() -> None:
        async with place(silent) as port, world.proxy(parse_rule(f"8000=127.0.0.1:{port}"), connections=1):
            _, first = await world.dial()
            await world.until_told("allowed")
            await world.dial_in_vain()
            assert "refused: 1 connections are open" in await world.until_told("refused")
            first.close()
            await world.until_told("closed")
            reader, second = await world.dial()
            second.write_eof()
            assert await reader.read() == b""  # served again
            second.close()

    asyncio.run(body())


def test_a_connection_of_another_peer_is_dropped_unread(tmp_path: Path) -> None:
    """As on vsock, where every enclave of a host can dial the port; a Unix socket names no CID."""
    world = World(tmp_path)

    async def body() -> None:
        async with place(silent) as port, world.proxy(parse_rule(f"8000=127.0.0.1:{port}"), peer=7):
            await world.dial_in_vain()

    asyncio.run(body())
    assert world.told == []


def test_the_program_serves_its_rules_and_ends_when_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with UnixSeat(tmp_path / "v").open(8000) as listener:
            given = listener.fileno()
            command = python_command("host_shim.egress", f"--listen-fd={given}", f"8000=127.0.0.1:{port}")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[given]
            )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with socket.socket(socket.AF_UNIX) as inside:
                inside.settimeout(LIMIT)
                inside.connect(str(tmp_path / "v_8000"))
                outside, _ = server.accept()
                with outside:
                    outside.sendall(b"hello")
                    assert inside.recv(5) == b"hello"
            process.terminate()
            _, talk = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert f"egress 8000=127.0.0.1:{port}: allowed: 127.0.0.1" in talk
    assert "Traceback" not in talk


def test_the_program_refuses_a_malformed_rule(tmp_path: Path) -> None:
    with UnixSeat(tmp_path / "v").open(8000) as listener:
        given = listener.fileno()
        command = python_command("host_shim.egress", f"--listen-fd={given}", "nonsense")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT, check=False, pass_fds=[given]
        )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == ""  # it never said that it is ready
    assert "MalformedEgress: no egress rule" in done.stderr
