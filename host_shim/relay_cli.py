# SPDX-License-Identifier: MIT
"""`veracruz relay`: the relay on its own, for an isolate that something else runs (an enclave on Nitro, say)."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attestation.console import Commands, emit, new_parser, say
from attestation.errors import EXIT_OK, EnvironmentLacks, UsageError

if TYPE_CHECKING:
    from .relay.limits import Limits

SYSTEMD = "systemd"


def add_verbs(commands: Commands) -> None:
    """Add the verb to the command line."""
    parser = new_parser(commands, "relay", summary="carry connections between a socket and an isolate", run=run_relay)
    parser.add_argument(
        "--listen", metavar="ENDPOINT", action="append", required=True,
        help="tcp:ADDRESS:PORT, unix:PATH, vsock:CID:PORT (CID may be any), systemd or systemd:NAME; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--to", metavar="ENDPOINT", required=True,
        help="tcp:ADDRESS:PORT, unix:PATH or vsock:CID:PORT; a host name is resolved once, at start",
    )  # fmt: skip
    add_limits(parser, drain=30.0)
    parser.add_argument(
        "--accept-proxy", metavar="NETWORK", action="append",
        help="take PROXY protocol v2 headers from this network's load balancers and from Unix sockets, and no "
        "connection without one; may be repeated",
    )  # fmt: skip
    parser.add_argument("--send-proxy", action="store_true", help="tell the target of each client by such a header")
    parser.add_argument("--counters", metavar="FILE", type=Path, help="publish counters here, once a second")
    parser.add_argument("--log-connections", action="store_true", help="a line for each beginning and end")


def add_limits(parser: argparse.ArgumentParser, *, drain: float) -> None:
    """Add the options that every relay has, the supervisor's too."""
    parser.add_argument("--max-connections", metavar="N", type=int, default=1024, help="at once (default 1024)")
    parser.add_argument(
        "--max-per-source", metavar="N", type=int, default=0,
        help="of one IPv4 address, IPv6 /64, user or CID (default 0: no limit)",
    )  # fmt: skip
    parser.add_argument(
        "--idle", metavar="SECONDS", type=float, default=300.0, help="without a byte until it is cut (default 300)"
    )
    parser.add_argument(
        "--connect-limit", metavar="SECONDS", type=float, default=5.0, help="for the isolate's side (default 5)"
    )
    parser.add_argument(
        "--drain", metavar="SECONDS", type=float, default=drain,
        help=f"for connections to finish after SIGTERM (default {drain:g})",
    )  # fmt: skip


def check_limits(args: argparse.Namespace, *, longest_drain: float = 86400) -> None:
    """Refuse what makes no sense; raise UsageError."""
    for option, value, least, most in (
        ("--max-connections", args.max_connections, 1, 1 << 20),
        ("--max-per-source", args.max_per_source, 0, 1 << 20),
        ("--idle", args.idle, 0.1, 7 * 86400),
        ("--connect-limit", args.connect_limit, 0.1, 3600),
        ("--drain", args.drain, 0, longest_drain),
    ):
        if not least <= value <= most:
            raise UsageError(f"{option} is out of range", expected=f"{least} to {most}", actual=value)


def make_limits(args: argparse.Namespace) -> Limits:
    """Return the limits that were given."""
    from .relay.limits import Limits

    return Limits(
        connections=args.max_connections, per_source=args.max_per_source, idle=args.idle,
        connect=args.connect_limit, drain=args.drain,
    )  # fmt: skip


def run_relay(args: argparse.Namespace) -> int:
    """Relay until SIGTERM or SIGINT, then drain; a second signal ends it at once."""
    from .board import Board
    from .relay.counters import Counters
    from .relay.limits import fit_descriptors
    from .relay.resolve import find_target
    from .relay.server import Relay
    from .systemd import notify

    check_limits(args)
    networks = None if args.accept_proxy is None else [_network(text) for text in args.accept_proxy]
    target, resolved = find_target(args.to)
    with contextlib.ExitStack() as stack:
        listeners, told = _listen(args.listen, stack)
        board = None
        if args.counters is not None:
            board = Board(descriptor := _open_counters(args.counters), Counters)
            stack.callback(os.close, descriptor)
        if resolved:
            say(resolved)
        connections = fit_descriptors(args.max_connections)
        if connections < args.max_connections:
            say(f"descriptors allow {connections} connections, not {args.max_connections} (ulimit -Hn)", label="note:")
        limits = replace(make_limits(args), connections=connections)
        relay = Relay(
            listeners, target, limits=limits, balancers=networks, introduce=args.send_proxy, board=board, tell=say,
            tell_connections=args.log_connections,
        )  # fmt: skip

        def stop(*_: Any) -> None:
            notify(os.environ, "STOPPING=1")
            relay.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        emit(args, {"listen": told, "to": target.text}, f"{' '.join(told)} -> {target.text}")
        sys.stdout.flush()
        notify(os.environ, "READY=1")
        relay.run()
    return EXIT_OK


def _listen(wanted: list[str], stack: contextlib.ExitStack) -> tuple[list[socket.socket], list[str]]:
    """Return the sockets to accept from, and where they listen."""
    from .listen import Listener, parse_endpoint
    from .systemd import take_sockets

    sockets: list[socket.socket] = []
    told: list[str] = []
    handed = [text for text in wanted if text == SYSTEMD or text.startswith(SYSTEMD + ":")]
    if len(handed) > 1:
        raise UsageError("systemd's sockets are given once", actual=" ".join(handed))
    for text in wanted:
        if text in handed:
            taken = take_sockets(os.environ, text.partition(":")[2] or None)
            sockets += taken
            told += [_told(sock) for sock in taken]
        else:
            listener = stack.enter_context(Listener(parse_endpoint(text)))
            sockets.append(listener.sock)
            told.append(str(listener.endpoint))
    return sockets, told


def _told(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    return f"vsock:{name[0]}:{name[1]}"


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(
            "--accept-proxy", expected="a network such as 10.0.0.0/8 or 2001:db8::/32", actual=text
        ) from error


def _open_counters(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise EnvironmentLacks(f"cannot write counters to {path}: {error.strerror}") from error
