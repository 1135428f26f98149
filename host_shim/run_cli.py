# SPDX-License-Identifier: MIT
"""The host's verb `veracruz enclave run`: its options, and a supervisor in the foreground or in the background."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attestation.console import EXIT_INTERRUPTED, Commands, emit, new_parser, say
from attestation.errors import EXIT_OK, UsageError
from enclave_image.runtime.wire import PORT_API

from .choice import KINDS, choose_isolates, port_of
from .list_cli import summary_of
from .relay_cli import add_limits, check_limits, make_limits
from .restart import FORM, RestartPolicy
from .state import Isolates

if TYPE_CHECKING:
    from .report import Report

LONGEST_DRAIN = 10.0  # seconds; within stop_cli.STOP_TIMEOUT

Tell = Callable[[Mapping[str, Any]], None]
Serve = Callable[["Report", Tell], signal.Signals | None]


def add_run(enclave: Commands) -> None:
    """Add the verb."""
    parser = new_parser(enclave, "run", summary="start an isolate and relay participants to it", run=run_isolate)
    parser.add_argument("image", metavar="IMAGE.eif", type=Path, nargs="?", help="the image (`process` needs none)")
    policy = parser.add_mutually_exclusive_group(required=True)
    policy.add_argument("--policy", metavar="FILE", type=Path, help="the one policy of its life")
    policy.add_argument(
        "--no-policy", action="store_true",
        help="the image is not one of ours (`image build --from-oci`, AWS's tools): it gets none",
    )  # fmt: skip
    parser.add_argument("--port", metavar="N", type=int, help="with --no-policy: the isolate's vsock port to relay to")
    parser.add_argument("--isolate", choices=KINDS, default="qemu", help="default: qemu")
    parser.add_argument(
        "--listen", metavar="ENDPOINT", default="127.0.0.1:0",
        help="ADDRESS:PORT or unix:PATH for participants (default 127.0.0.1:0, a free port)",
    )  # fmt: skip
    parser.add_argument("--name", metavar="NAME", help="default: isolate, isolate-2, ...")
    parser.add_argument("--memory", metavar="MIB", type=int, help="default: 512; on Nitro four times the image")
    parser.add_argument("--cpus", metavar="N", type=int, help="default: 1; on Nitro 2")
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="auto: KVM if it works, else TCG"
    )
    parser.add_argument("--detach", action="store_true", help="return when it serves; end it with `enclave stop`")
    parser.add_argument(
        "--restart", metavar="WHEN", default="never",
        help=f"{FORM}: start a new isolate, with a new key, after one has died (default never)",
    )  # fmt: skip
    parser.add_argument("--debug-mode", action="store_true", help="evidence with PCR0-2 zero, as Nitro's debug mode")
    parser.add_argument(
        "--old-documents", action="store_true",
        help="evidence in the form that AWS wrote until April 2025 (definite-length map; qemu and process only)",
    )  # fmt: skip
    parser.add_argument("--role", metavar="ARN", help="the parent's IAM role, for PCR3 (not on Nitro: it is its own)")
    add_egress(parser)
    parser.add_argument("--instance-id", metavar="ID", help="the parent's instance, for PCR4 (not on Nitro)")
    parser.add_argument("--qemu", metavar="PATH", type=Path, help="the QEMU to use (default: found by name)")
    parser.add_argument("--nitro-cli", metavar="PATH", type=Path, help="the nitro-cli to use (default: found by name)")
    parser.add_argument("--enclave-cid", metavar="N", type=int, help="the enclave's CID on Nitro (default: a free one)")
    parser.add_argument(
        "--boot-limit", metavar="SECONDS", type=float, default=120.0, help="until it must serve (default 120)"
    )
    add_limits(parser, drain=0.0)


def add_egress(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets an isolate out."""
    parser.add_argument(
        "--egress", metavar="PORT=HOST:PORT", action="append", default=[],
        help="what the isolate may reach, by that port of its parent (repeat it; default: nothing)",
    )  # fmt: skip


def run_isolate(args: argparse.Namespace) -> int:
    """Start an isolate; in the foreground, keep it until it ends."""
    _demand_range("--memory", args.memory, 64, 1 << 20, "MiB")
    _demand_range("--cpus", args.cpus, 1, 64, "processors")
    _demand_range("--boot-limit", args.boot_limit, 1, 86400, "seconds")
    _demand_range("--port", args.port, 0, (1 << 32) - 2, "(a vsock port)")
    _demand_range("--enclave-cid", args.enclave_cid, 4, (1 << 32) - 2, "(a CID that is nobody's)")
    check_limits(args, longest_drain=LONGEST_DRAIN)
    RestartPolicy.parse(args.restart)
    return supervise_here_or_behind(args, lambda report, tell: _supervise(args, report, tell))


def supervise_here_or_behind(args: argparse.Namespace, serve: Serve) -> int:
    """Run a supervisor until its isolate ends, or with --detach in a process of its own until it serves."""
    from .report import Report

    if args.detach:
        from .detach import run_detached

        def body(tell: Tell) -> int:
            report = Report(lambda line: tell({"line": line}))

            def serving(data: Mapping[str, Any]) -> None:
                report.hush()
                tell({"serving": data})

            serve(report, serving)
            return EXIT_OK

        data = run_detached(body, show=say)
        emit(args, data, f"{data['name']} {data['endpoint']}")
        return EXIT_OK
    served = False

    def show(data: Mapping[str, Any]) -> None:
        nonlocal served
        served = True
        emit(args, data, f"{data['name']} {data['endpoint']}")

    asked = serve(Report(say), show)
    return EXIT_INTERRUPTED if asked is signal.SIGINT or not served else EXIT_OK


def _demand_range(option: str, value: float | None, least: int, most: int, unit: str) -> None:
    if value is not None and not least <= value <= most:
        raise UsageError(f"{option} is out of range", expected=f"{least} to {most} {unit}", actual=value)


def _demand_agreement(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if args.no_policy and args.isolate == "process":
        raise UsageError("a `process` isolate is our runtime, which wants a policy", hint="--policy FILE")
    if args.no_policy and args.port is None:
        raise UsageError("without a policy nothing says where the isolate serves", hint="--port N: its vsock port")
    if args.port is not None and not args.no_policy:
        raise UsageError(
            f"an image of ours serves at its port {PORT_API}", actual=f"--port {args.port}",
            hint="leave --port out; for an image of another kind: --no-policy",
        )  # fmt: skip
    if args.old_documents and (args.no_policy or args.isolate not in ("qemu", "process")):
        raise UsageError(
            "--old-documents is a form of our own module's evidence", expected="--isolate qemu or process",
            actual="--no-policy" if args.no_policy else f"--isolate {args.isolate}",
        )  # fmt: skip


def _supervise(args: argparse.Namespace, report: Report, serving: Tell) -> signal.Signals | None:
    from attestation.input_files import read_policy

    from .dev_pki import open_root
    from .egress.rules import parse_rules
    from .listen import parse_endpoint
    from .supervisor import Order, Supervisor

    _demand_agreement(args)
    listen = parse_endpoint(args.listen)
    egress = parse_rules(args.egress)
    if args.name is not None:
        Isolates().directory(args.name)
    policy = None if args.no_policy else read_policy(args.policy)
    with contextlib.ExitStack() as stack:
        choice = choose_isolates(args, stack)
        if policy is not None:
            _warn(report, policy, choice.isolates)
        order = Order(
            isolates=choice.isolates,
            policy=policy.raw if policy is not None else None,
            image=None if args.image is None or args.isolate == "process" else str(args.image.absolute()),
            listen=listen,
            name=args.name,
            role=args.role,
            instance_id=args.instance_id,
            boot_limit=args.boot_limit,
            egress=egress,
            limits=make_limits(args),
            works=choice.works,
            memory_mib=choice.memory_mib,
            cpus=choice.cpus,
            restart=RestartPolicy.parse(args.restart),
            port=port_of(args),
            old_documents=args.old_documents,
        )
        root = open_root(lambda: datetime.now(UTC))
        return Supervisor(order, root, report, lambda record: serving(summary_of(record))).run(Isolates())


def _warn(report: Report, policy: Any, isolates: Sequence[Any]) -> None:
    """Say what participants will refuse. The host may run it all the same: it is not whom they trust."""
    measurements = isolates[0].measurements
    if measurements is not None and measurements not in policy.images:
        report.note("the policy does not accept this image: its participants will refuse it")
