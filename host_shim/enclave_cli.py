# SPDX-License-Identifier: MIT
"""The host's verbs: `veracruz enclave run|adopt|list|describe|console|stop`."""

from __future__ import annotations

from attestation.console import Commands, new_group, new_parser

from .adopt_cli import add_adopt
from .list_cli import describe_isolate, list_isolates
from .metrics_cli import add_health
from .run_cli import add_run
from .stop_cli import show_console, stop_isolates


def add_verbs(commands: Commands) -> None:
    """Add this package's verbs to the command line."""
    enclave = new_group(commands, "enclave", summary="run isolates on this host")
    add_run(enclave)
    add_adopt(enclave)
    listing = new_parser(enclave, "list", summary="show this user's isolates", run=list_isolates)
    listing.add_argument("--all", action="store_true", help="also those that have ended")
    describe = new_parser(enclave, "describe", summary="show all that is known of an isolate", run=describe_isolate)
    describe.add_argument("name", metavar="NAME")
    console = new_parser(enclave, "console", summary="show what an isolate wrote to its console", run=show_console)
    console.add_argument("name", metavar="NAME")
    console.add_argument("-f", "--follow", action="store_true", help="go on until the isolate ends")
    add_health(enclave)
    stop = new_parser(
        enclave, "stop", summary="end isolates, and clear what a killed supervisor left", run=stop_isolates
    )
    stop.add_argument("names", metavar="NAME", nargs="*")
    stop.add_argument("--all", action="store_true", help="every isolate of this user that runs or was lost")
