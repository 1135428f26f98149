# SPDX-License-Identifier: MIT
"""The verbs by which machines look: `veracruz metrics` and `veracruz enclave health`."""

from __future__ import annotations

import argparse

from attestation.console import Commands, emit, new_parser
from attestation.errors import EXIT_ISOLATE, EXIT_OK

DEFAULT = "127.0.0.1:9464"


def add_verbs(commands: Commands) -> None:
    """Add `metrics`."""
    parser = new_parser(commands, "metrics", summary="serve Prometheus metrics and health on loopback", run=serve)
    parser.add_argument(
        "--listen",
        metavar="ENDPOINT",
        default=DEFAULT,
        help=f"a loopback ADDRESS:PORT or unix:PATH (default {DEFAULT})",
    )
    parser.add_argument("--once", action="store_true", help="print the metrics and end, for a textfile collector")


def add_health(enclave: Commands) -> None:
    """Add `enclave health`."""
    parser = new_parser(
        enclave, "health", summary="exit with 0 if an isolate serves, for orchestrators", run=tell_health
    )
    parser.add_argument("name", metavar="NAME")


def serve(args: argparse.Namespace) -> int:
    """Serve until interrupted, or print once."""
    from .metrics import exposition
    from .state import Isolates

    isolates = Isolates()
    if args.once:
        text = exposition(isolates).decode()
        emit(args, {"metrics": text.splitlines()}, text.rstrip("\n"))
        return EXIT_OK
    from .metrics_server import MetricsServer, listen_on

    with listen_on(args.listen) as listener, MetricsServer(listener, isolates) as server:
        emit(args, {"listen": str(listener.endpoint)}, f"metrics on {listener.endpoint}, paths /metrics and /health")
        server.serve_forever()
    return EXIT_OK


def tell_health(args: argparse.Namespace) -> int:
    """Print an isolate's stage; exit with 5 unless it serves."""
    from .metrics import healthy
    from .state import Isolates

    record = Isolates().find(args.name)
    well = healthy(record)
    emit(
        args, {"name": record.name, "healthy": well, "stage": record.stage.value}, f"{record.name} {record.stage.value}"
    )
    return EXIT_OK if well else EXIT_ISOLATE
