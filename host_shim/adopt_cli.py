# SPDX-License-Identifier: MIT
"""The host's verb `veracruz enclave adopt`: a new supervisor for an enclave that outlived its own."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attestation.console import Commands, new_parser

from .errors import NoSuchIsolate
from .list_cli import summary_of
from .record import Record, Stage
from .run_cli import add_egress, supervise_here_or_behind
from .state import Isolates

if TYPE_CHECKING:
    from .report import Report


def add_adopt(enclave: Commands) -> None:
    """Add the verb."""
    parser = new_parser(
        enclave, "adopt", summary="relay again to a Nitro enclave that outlived its supervisor", run=adopt_isolate
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--listen", metavar="ENDPOINT", help="for participants (default: where it was reached before)")
    add_egress(parser)
    parser.add_argument("--detach", action="store_true", help="return when it serves; end it with `enclave stop`")


def adopt_isolate(args: argparse.Namespace) -> int:
    """Take an enclave over: its key and its data are the same as before."""
    record = demand_adoptable(Isolates(), args.name)
    return supervise_here_or_behind(args, lambda report, tell: _supervise(args, record, report, tell))


def demand_adoptable(isolates: Isolates, name: str) -> Record:
    """Return the record of an enclave that goes on without a supervisor; raise NoSuchIsolate for any other."""
    from .nitro_cli import NitroCli

    record = isolates.find(name)
    if record.stage is not Stage.LOST or record.outside is None:
        raise NoSuchIsolate(
            "there is no enclave of this name without a supervisor", actual=f"{name} is {record.stage.value}",
            hint=f"veracruz enclave describe {name}",
        )  # fmt: skip
    enclave = NitroCli(record.outside.tool).find(record.outside.name)
    if enclave is None or enclave.state != "RUNNING" or enclave.cid != record.outside.cid:
        raise NoSuchIsolate(
            "its enclave runs no more", actual=enclave.state if enclave else "nitro-cli knows none of its name",
            hint=f"veracruz enclave stop {name}",
        )  # fmt: skip
    if record.served is None:
        raise NoSuchIsolate(
            "its supervisor died before it served: it may wait for its policy for ever", actual=name,
            hint=f"veracruz enclave stop {name}",
        )  # fmt: skip
    return record


def _supervise(
    args: argparse.Namespace, record: Record, report: Report, serving: Callable[[Mapping[str, Any]], None]
) -> signal.Signals | None:
    from .adopted import AdoptedEnclave
    from .dev_pki import open_root
    from .egress.rules import parse_rules
    from .listen import parse_endpoint
    from .supervisor import Order, Supervisor

    isolate = AdoptedEnclave.of(record)
    order = Order(
        isolates=[isolate], policy=None, image=record.image, listen=parse_endpoint(args.listen or record.endpoint),
        name=record.name, memory_mib=record.memory_mib, cpus=record.cpus, adopted=replace(record, restart="never"),
        egress=parse_rules(args.egress),
    )  # fmt: skip
    root = open_root(lambda: datetime.now(UTC))
    return Supervisor(order, root, report, lambda told: serving(summary_of(told))).run(Isolates())
