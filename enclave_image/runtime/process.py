# SPDX-License-Identifier: MIT
"""The runtime as a `process` isolate: the same life over Unix sockets, on the host's own Python. It protects nothing.

python -m enclave_image.runtime.process BASE SCRATCH [--trace]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .main import main
from .surroundings import Surroundings
from .syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, PR_SET_PDEATHSIG, mount, prctl, unshare
from .transport import Transport, UnixSockets
from .wire import HEARTBEAT, PORT_HEARTBEAT

NOTICE = "process isolate: it protects nothing. The host sees all of its memory, and it runs on the host's kernel"
NO_ROOT = "process isolate: not root, so jobs share one uid and their files are not limited in all"


def beat(transport: Transport) -> None:
    """Tell the supervisor that the isolate is up, as /init does in an image; nobody listening is no error."""
    with suppress(OSError), transport.dial(PORT_HEARTBEAT) as sock:
        sock.sendall(HEARTBEAT)
        sock.settimeout(5.0)
        sock.recv(1)


def start(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the isolate."""
    parser = argparse.ArgumentParser(prog="python -m enclave_image.runtime.process", allow_abbrev=False)
    parser.add_argument("base", metavar="BASE", help="prefix of the Unix sockets BASE_PORT")
    parser.add_argument("scratch", metavar="SCRATCH", type=Path, help="directory for files and jobs")
    parser.add_argument("--trace", action="store_true", help="tracebacks of the runtime itself on stderr")
    args = parser.parse_args(argv)
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 0
    is_root = os.geteuid() == 0
    print(NOTICE, file=sys.stderr, flush=True)
    if is_root:
        with suppress(OSError):  # so that the mounts of jobs go when the isolate does, however it ends
            unshare(CLONE_NEWNS)
            mount("", "/", flags=MS_REC | MS_PRIVATE)
    else:
        print(NO_ROOT, file=sys.stderr, flush=True)
    transport = UnixSockets(os.path.abspath(args.base))  # noqa: PTH100 -- a prefix, not a path
    beat(transport)
    args.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    main(
        Surroundings(
            transport, None, args.scratch.resolve(), is_image=False, is_root=is_root, trace=args.trace
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    code = start()
    sys.stderr.flush()
    os._exit(code)  # threads that still serve have no say
