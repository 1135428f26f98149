# SPDX-License-Identifier: MIT
"""The supervisor's egress proxy: a process of its own, on Unix sockets BASE_PORT that it makes itself."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .proxy import EgressProxy
from .rules import Rule, parse_rules

BACKLOG = 64
READY = "ready"  # isolate.READY


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; what is logged goes to stderr."""
    parser = argparse.ArgumentParser(prog="host_shim.egress", allow_abbrev=False)
    parser.add_argument("--base", required=True, help="prefix of the sockets")
    parser.add_argument("rules", nargs="+")
    args = parser.parse_args(argv)
    listeners = {rule: _listen(Path(f"{args.base}_{rule.port}")) for rule in parse_rules(args.rules)}
    print(READY, flush=True)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_serve(listeners))
    return 0


async def _serve(listeners: dict[Rule, socket.socket]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await EgressProxy(listeners, log_line).run()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


def log_line(text: str) -> None:
    """Write a line as supervisor.log has them."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} egress {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
