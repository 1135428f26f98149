# SPDX-License-Identifier: MIT
"""`python -m host_shim.vhost_user`: the vsock backend as a process of its own, ended by SIGTERM or with its parent."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from attestation.console import report
from attestation.errors import EXIT_OK, UsageError, VeracruzError

from .backend import Backend, Settings, allow_descriptors, die_with_parent
from .host import demand_host

MIN_CID, MAX_CID = 3, 0xFFFF_FFFE  # 0 to 2 are reserved, the last means any (linux/vm_sockets.h)
MAX_PORT = 0xFFFF_FFFE


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m host_shim.vhost_user", allow_abbrev=False,
        description="Serve the virtual vsock of one QEMU: the guest's port N is the Unix socket BASE_N.",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, metavar="PATH", help="listen here for QEMU")
    where.add_argument("--fd", type=int, metavar="N", help="QEMU's connection, already open; end with it")
    parser.add_argument("--base", required=True, metavar="BASE", help="prefix of the Unix sockets")
    parser.add_argument(
        "--listen", type=int, action="append", default=[], metavar="PORT",
        help="let the host open this port of the guest at BASE_PORT (repeatable)",
    )  # fmt: skip
    parser.add_argument("--guest-cid", type=int, default=4, metavar="CID", help="the guest's own CID (default 4)")
    return parser


def make_settings(args: argparse.Namespace) -> Settings:
    """Check the command line; raises UsageError."""
    if not MIN_CID < args.guest_cid <= MAX_CID:
        raise UsageError("--guest-cid: no CID for a guest", expected="4..4294967294", actual=args.guest_cid)
    for port in args.listen:
        if not 0 <= port <= MAX_PORT:
            raise UsageError("--listen: no vsock port", expected="0..4294967294", actual=port)
    if args.fd is None:
        return Settings(args.base, args.guest_cid, sorted(set(args.listen)), args.socket)
    try:
        connection = socket.socket(fileno=args.fd)
        connection.setblocking(False)
    except OSError as error:
        raise UsageError("--fd: no open socket", actual=args.fd) from error
    return Settings(args.base, args.guest_cid, sorted(set(args.listen)), connection)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    parent = os.getppid()
    args = make_parser().parse_args(argv)
    if not die_with_parent(parent):
        return EXIT_OK
    try:
        with ExitStack() as resources:
            demand_host()
            allow_descriptors()
            backend = Backend(make_settings(args), resources)
            backend.stop_on(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            print("ready", flush=True)
            backend.run()
    except VeracruzError as error:
        report(error, as_json=False)
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
