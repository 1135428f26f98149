# SPDX-License-Identifier: MIT
"""The supervisor's relay: on an inherited listening socket, behind a gate, until it is told to end."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..board import Board
from .counters import Counters
from .dial import Target
from .limits import CONNECT, HEADER, IDLE, MAX_CONNECTIONS, Limits, fit_descriptors
from .resolve import find_target
from .server import Relay


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; what is logged goes to stderr."""
    parser = argparse.ArgumentParser(prog="host_shim.relay", allow_abbrev=False)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--gate-fd", type=int, help="begin to accept when this descriptor becomes readable")
    parser.add_argument("--counters-fd", type=int, help="publish counters in this file")
    parser.add_argument("--target", required=True, help="the isolate's Unix socket, or vsock:CID:PORT")
    parser.add_argument("--max-connections", type=int, default=MAX_CONNECTIONS)
    parser.add_argument("--max-per-source", type=int, default=0)
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds")
    parser.add_argument("--connect-limit", type=float, default=CONNECT, help="seconds")
    parser.add_argument("--drain", type=float, default=0.0, help="seconds")
    args = parser.parse_args(argv)
    limits = Limits(
        connections=fit_descriptors(args.max_connections),
        per_source=args.max_per_source,
        idle=args.idle,
        connect=args.connect_limit,
        header=HEADER,
        drain=args.drain,
    )
    if limits.connections < args.max_connections:
        log_line(f"descriptors allow {limits.connections} connections, not {args.max_connections}: see ulimit -Hn")
    vsock = args.target.startswith("vsock:")
    target = find_target(args.target)[0] if vsock else Target.unix(Path(args.target))
    listener = socket.socket(fileno=args.listen_fd)
    listener.setblocking(False)
    board = None if args.counters_fd is None else Board(args.counters_fd, Counters)
    relay = Relay([listener], target, limits=limits, board=board, tell=log_line)
    signal.signal(signal.SIGTERM, lambda *_: relay.stop())
    relay.run(args.gate_fd)
    return 0


def log_line(text: str) -> None:
    """Write a line as supervisor.log has them."""
    with contextlib.suppress(OSError):  # a full disk ends no connection
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} relay: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
