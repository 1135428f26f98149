# SPDX-License-Identifier: MIT
"""The supervisor's egress proxy: a process of its own, on sockets that the supervisor listens on and hands over."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Sequence

from .proxy import EgressProxy
from .rules import Rule, parse_rules

READY = "ready"  # isolate.READY


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; what is logged goes to stderr."""
    parser = argparse.ArgumentParser(prog="host_shim.egress", allow_abbrev=False)
    parser.add_argument("--listen-fd", type=int, action="append", required=True, help="of each rule, in their order")
    parser.add_argument("--peer", type=int, help="the CID whose connections alone are served")
    parser.add_argument("rules", nargs="+")
    args = parser.parse_args(argv)
    rules = parse_rules(args.rules)
    sockets = [socket.socket(fileno=descriptor) for descriptor in args.listen_fd]
    listeners = dict(zip(rules, sockets, strict=True))
    print(READY, flush=True)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_serve(listeners, args.peer))
    return 0


async def _serve(listeners: dict[Rule, socket.socket], peer: int | None) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await EgressProxy(listeners, log_line, peer=peer).run()


def log_line(text: str) -> None:
    """Write a line as supervisor.log has them."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} egress {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
