# SPDX-License-Identifier: MIT
"""The host's verbs: `veracruz enclave run|list|console|stop`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.console import EXIT_INTERRUPTED, Commands, emit, new_group, new_parser, say, write_out
from attestation.errors import EXIT_OK, UsageError

from .relay_cli import add_limits, check_limits, make_limits
from .state import Isolates, Record, Stage

STOP_TIMEOUT = 20.0  # seconds; a supervisor needs two times five for processes that do not listen
LONGEST_DRAIN = 10.0  # seconds; within STOP_TIMEOUT
STOP_PAUSE = 0.05  # seconds


def add_verbs(commands: Commands) -> None:
    """Add this package's verbs to the command line."""
    enclave = new_group(commands, "enclave", summary="run isolates on this host")
    _add_run(enclave)
    listing = new_parser(enclave, "list", summary="show this user's isolates", run=list_isolates)
    listing.add_argument("--all", action="store_true", help="also those that have ended")
    console = new_parser(enclave, "console", summary="show what an isolate wrote to its console", run=show_console)
    console.add_argument("name", metavar="NAME")
    console.add_argument("-f", "--follow", action="store_true", help="go on until the isolate ends")
    stop = new_parser(enclave, "stop", summary="end isolates", run=stop_isolates)
    stop.add_argument("names", metavar="NAME", nargs="*")
    stop.add_argument("--all", action="store_true", help="every isolate of this user that runs")


def _add_run(enclave: Commands) -> None:
    parser = new_parser(enclave, "run", summary="start an isolate and relay participants to it", run=run_isolate)
    parser.add_argument("image", metavar="IMAGE.eif", type=Path, nargs="?", help="the image (`process` needs none)")
    parser.add_argument("--policy", metavar="FILE", type=Path, required=True, help="the one policy of its life")
    parser.add_argument("--isolate", choices=("qemu", "process"), default="qemu", help="default: qemu")
    parser.add_argument(
        "--listen", metavar="ENDPOINT", default="127.0.0.1:0",
        help="ADDRESS:PORT or unix:PATH for participants (default 127.0.0.1:0, a free port)",
    )  # fmt: skip
    parser.add_argument("--name", metavar="NAME", help="default: isolate, isolate-2, ...")
    parser.add_argument("--memory", metavar="MIB", type=int, default=512, help="default: 512")
    parser.add_argument("--cpus", metavar="N", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="auto: KVM if it works, else TCG"
    )
    parser.add_argument("--detach", action="store_true", help="return when it serves; end it with `enclave stop`")
    parser.add_argument("--debug-mode", action="store_true", help="evidence with PCR0-2 zero, as Nitro's debug mode")
    parser.add_argument("--role", metavar="ARN", help="the parent's IAM role, for PCR3")
    parser.add_argument(
        "--egress", metavar="PORT=HOST:PORT", action="append", default=[],
        help="what the isolate may reach, by that port of its parent (repeat it; default: nothing)",
    )  # fmt: skip
    parser.add_argument(
        "--boot-limit", metavar="SECONDS", type=float, default=120.0, help="until it must serve (default 120)"
    )
    add_limits(parser, drain=0.0)


def run_isolate(args: argparse.Namespace) -> int:
    """Start an isolate; in the foreground, keep it until it ends."""
    from .report import Report

    _demand_range("--memory", args.memory, 64, 1 << 20, "MiB")
    _demand_range("--cpus", args.cpus, 1, 64, "processors")
    _demand_range("--boot-limit", args.boot_limit, 1, 86400, "seconds")
    check_limits(args, longest_drain=LONGEST_DRAIN)

    def serve(report: Report, tell: Callable[[Mapping[str, Any]], None]) -> signal.Signals | None:
        return _supervise(args, report, tell)

    if args.detach:
        from .detach import Tell, run_detached

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


def _demand_range(option: str, value: float, least: int, most: int, unit: str) -> None:
    if not least <= value <= most:
        raise UsageError(f"{option} is out of range", expected=f"{least} to {most} {unit}", actual=value)


def _supervise(
    args: argparse.Namespace, report: Any, serving: Callable[[Mapping[str, Any]], None]
) -> signal.Signals | None:
    from attestation.input_files import read_policy

    from .dev_pki import open_root
    from .egress.rules import parse_rules
    from .listen import parse_endpoint
    from .supervisor import Order, Supervisor

    listen = parse_endpoint(args.listen)
    egress = parse_rules(args.egress)
    if args.name is not None:
        Isolates().directory(args.name)
    policy = read_policy(args.policy)
    with contextlib.ExitStack() as stack:
        isolates, works = _choose_isolates(args, stack)
        _warn(report, policy, isolates)
        order = Order(
            isolates=isolates,
            policy=policy.raw,
            image=None if args.image is None or args.isolate == "process" else str(args.image.absolute()),
            listen=listen,
            name=args.name,
            role=args.role,
            boot_limit=args.boot_limit,
            egress=egress,
            limits=make_limits(args),
            works=works,
        )
        root = open_root(lambda: datetime.now(UTC))
        return Supervisor(order, root, report, lambda record: serving(_describe(record))).run(Isolates())


def _choose_isolates(
    args: argparse.Namespace, stack: contextlib.ExitStack
) -> tuple[Sequence[Any], Callable[[Any], None]]:
    """Return what to try, in order, and whom to tell what worked."""
    if args.isolate == "process":
        from .process import ProcessIsolate

        return [ProcessIsolate()], lambda isolate: None
    from enclave_image.eif import load_eif

    from .accel import Accel, KvmVerdict
    from .accel_probe import try_accelerator
    from .qemu import BootFiles, Machine, QemuIsolate, check_memory, choose_accelerators, find_qemu

    if args.image is None:
        raise UsageError("an image is needed", hint="veracruz image build --out FILE.eif")
    qemu = find_qemu()
    image = load_eif(args.image)
    machine = Machine(args.memory, args.cpus)
    check_memory(machine, image.size)
    files = stack.enter_context(BootFiles(image))
    verdict = KvmVerdict(qemu.banner)
    accelerators = choose_accelerators(args.accel, verdict, lambda: try_accelerator(qemu, Accel.KVM) is None)
    isolates = [
        QemuIsolate(qemu, files, machine, accel, tentative=tentative, debug_mode=args.debug_mode)
        for accel, tentative in accelerators
    ]
    tried = any(isolate.tentative for isolate in isolates)
    return isolates, lambda isolate: verdict.write(isolate.accel == "kvm") if tried else None


def _warn(report: Any, policy: Any, isolates: Sequence[Any]) -> None:
    """Say what participants will refuse. The host may run it all the same: it is not whom they trust."""
    measurements = isolates[0].measurements
    if measurements is not None and measurements not in policy.images:
        report.note("the policy does not accept this image: its participants will refuse it")


def _describe(record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "endpoint": record.endpoint,
        "isolate": record.isolate,
        "accel": record.accel,
        "pid": record.supervisor.pid if record.supervisor else None,
        "policy": record.policy,
        "root": record.root,
        "image": record.image,
        "started": record.started,
        "stage": record.stage.value,
        "reason": record.reason,
        "Measurements": record.measurements,
    }


def list_isolates(args: argparse.Namespace) -> int:
    """Print this user's isolates."""
    records = [record for record in Isolates().all() if args.all or record.stage.live]
    rows = [("NAME", "STAGE", "ISOLATE", "ACCEL", "ENDPOINT", "STARTED")]
    rows += [(r.name, r.stage.value, r.isolate, r.accel or "-", r.endpoint, r.started) for r in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    emit(args, {"isolates": [_describe(record) for record in records]}, "\n".join(lines))
    return EXIT_OK


def show_console(args: argparse.Namespace) -> int:
    """Print an isolate's console, escaped."""
    from .console_log import printable_bytes, read_console

    if args.json and args.follow:
        raise UsageError("--json prints one object, and --follow has no end")
    isolates = Isolates()
    record = isolates.find(args.name)
    path = isolates.directory(args.name) / "console.log"
    if args.json:
        text = printable_bytes(b"".join(read_console(path, follow=False)))
        emit(args, {"name": record.name, "lines": text.splitlines()}, "")
        return EXIT_OK
    for data in _until_ended(isolates, args.name, read_console(path, follow=args.follow)):
        write_out(printable_bytes(data), end="")
    return EXIT_OK


def _until_ended(isolates: Isolates, name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass pieces on; end at the first pause after the isolate has ended."""
    ended = False
    for piece in pieces:
        yield piece
        if not piece:
            if ended:
                return
            ended = not isolates.find(name).stage.live


def stop_isolates(args: argparse.Namespace) -> int:
    """End isolates; one that has ended already is no error."""
    isolates = Isolates()
    if bool(args.names) == args.all:
        raise UsageError("which isolate is to be stopped?", expected="NAME ... or --all")
    names = args.names or [record.name for record in isolates.all() if record.stage.live]
    found = [isolates.find(name) for name in dict.fromkeys(names)]  # all of them, before one is stopped
    records = [stop_isolate(isolates, record) for record in found]
    emit(
        args,
        {"isolates": [_describe(record) for record in records]},
        "\n".join(f"{record.name} {record.stage.value}: {record.reason}" for record in records),
    )
    return EXIT_OK


def stop_isolate(isolates: Isolates, record: Record) -> Record:
    """Ask the supervisor to end its isolate, kill it if it does not; return what is recorded then."""
    supervisor = record.supervisor
    if not record.stage.live or supervisor is None:
        return record
    deadline = time.monotonic() + STOP_TIMEOUT
    supervisor.signal(signal.SIGTERM)
    while supervisor.alive and time.monotonic() < deadline:
        time.sleep(STOP_PAUSE)
    if supervisor.signal(signal.SIGKILL):
        while supervisor.alive:
            time.sleep(STOP_PAUSE)
    found = isolates.find(record.name)  # cleans up after one that was killed
    return found if found.stage is not Stage.BOOTING else record
