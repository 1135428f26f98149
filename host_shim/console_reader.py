# SPDX-License-Identifier: MIT
"""Copies an enclave's console to stdout from its first byte on: python -m host_shim.console_reader --vsock CID:PORT.

The hypervisor offers it in debug mode as soon as the enclave starts, long before nitro-cli's own `console` may ask.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence

PATIENCE = 180.0  # seconds until the console must be there; the enclave's memory is filled first
PAUSE = 0.05  # seconds


def connect(args: argparse.Namespace) -> socket.socket | None:
    """Return the connection once there is one; None where none comes."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if args.unix is not None:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                address: str | tuple[int, ...] = args.unix
            else:
                sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
                address = tuple(map(int, args.vsock.split(":")))
        except OSError as error:
            print(f"console reader: {error.strerror}", file=sys.stderr)
            return None
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            time.sleep(PAUSE)
        else:
            return sock
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Copy until the enclave ends."""
    parser = argparse.ArgumentParser(prog="host_shim.console_reader", allow_abbrev=False)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--vsock", metavar="CID:PORT")
    place.add_argument("--unix", metavar="PATH")
    sock = connect(parser.parse_args(argv))
    if sock is None:
        return 1
    with sock:
        while data := sock.recv(65536):
            while data:
                data = data[os.write(1, data) :]
    return 0


if __name__ == "__main__":
    sys.exit(main())
