# SPDX-License-Identifier: MIT
"""Bytes between a guest and its host through our vsock backend, beside vhost-device-vsock."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boot import find_image
from vsock_parts.cost import measure_cost
from vsock_parts.peer import PACKAGE, NoPeer, find_peer, peer_command
from vsock_parts.rig import Command, Rig, Stalled, make_guest

from attestation.console import say
from enclave_image.eif import Eif, read_eif
from enclave_image.program import build_guest_program
from host_shim.accel import Accel
from host_shim.qemu import GUEST_CID, find_qemu

SIZES = (4096, 16384, 65536, 1048576)  # bytes a write
LIMIT = 20.0  # seconds for one measurement; what takes longer has stalled
MIB = 1 << 20
DIRECTIONS = {"g2h": False, "h2g": True}
PACKETS, ROUNDS = 200, 40  # of 64 KiB each, for the backend's own cost


@dataclass(frozen=True)
class Load:
    """One way to move bytes."""

    direction: str
    size: int  # bytes a write
    total: int  # bytes in all


class Bench:
    """The backends in turns, each with guests of its own.

    Guests that differ in nothing differ in speed by a tenth, for as long as they live. So there are several of each,
    one after the other, and what is compared stands next to each other.
    """

    def __init__(self, commands: dict[str, Command], guest: Eif, accel: Accel) -> None:
        self._commands, self._guest, self._accel = commands, guest, accel
        self._rigs: dict[str, Rig] = {}
        self.speeds: dict[Load, dict[str, list[float]]] = {}  # MB/s of each backend
        self.stalls: dict[tuple[str, Load], str] = {}

    def close(self) -> None:
        """End the guests and what serves them; the next measurement starts others."""
        for rig in self._rigs.values():
            rig.close()
        self._rigs.clear()

    def run(self, load: Load, runs: int) -> None:
        """Measure each backend in runs that alternate between them; one that stalled is not asked again."""
        speeds = self.speeds.setdefault(load, {name: [] for name in self._commands})
        for _ in range(runs):
            for name in self._commands:
                if (name, load) in self.stalls:
                    continue
                try:
                    speeds[name].append(self._measure(name, load))
                except Stalled as stall:
                    self.stalls[name, load] = str(stall)
                    self._rigs.pop(name).close()

    def found(self, load: Load) -> dict[str, list[float] | None]:
        """Return the MB/s of each backend, run by run; None where it stalls."""
        return {name: None if (name, load) in self.stalls else one for name, one in self.speeds[load].items()}

    def _measure(self, name: str, load: Load) -> float:
        if name not in self._rigs:
            self._rigs[name] = Rig(self._commands[name], self._guest, self._accel)
        to_guest = DIRECTIONS[load.direction]
        seconds = self._rigs[name].measure(to_guest=to_guest, size=load.size, total=load.total, limit=LIMIT)
        return load.total / seconds / 1e6


def our_command(vhost: Path, base: Path) -> list[str]:
    """Return the command of our backend."""
    where = ["--socket", str(vhost), "--base", str(base), "--guest-cid", str(GUEST_CID)]
    return [sys.executable, "-m", "host_shim.vhost_user", *where]


def find_commands() -> tuple[dict[str, Command], str | None]:
    """Return the backends to measure, and why the other is missing if it is."""
    commands: dict[str, Command] = {"ours": our_command}
    try:
        program = find_peer()
    except NoPeer as reason:
        return commands, str(reason)
    commands["theirs"] = lambda vhost, base: peer_command(program, vhost, base, GUEST_CID)
    return commands, None


def compare(speeds: dict[str, list[float] | None]) -> float | None:
    """Return ours over theirs, the median over pairs of runs next to each other; None where either has no figure."""
    ours, theirs = speeds["ours"], speeds.get("theirs")
    if ours is None or theirs is None:
        return None
    return round(statistics.median(our / their for our, their in zip(ours, theirs, strict=True)), 2)


def medians(speeds: dict[str, list[float] | None]) -> dict[str, float | None]:
    """Return each backend's median in MB/s."""
    return {name: None if values is None else round(statistics.median(values), 1) for name, values in speeds.items()}


def measure_costs(tell: Callable[[str], None]) -> dict[str, float]:
    """Return the microseconds of 64 KiB each way."""
    costs = {}
    for direction, to_guest in DIRECTIONS.items():
        costs[direction] = round(measure_cost(to_guest=to_guest, packets=PACKETS, rounds=ROUNDS), 1)
        tell(f"{direction}: {costs[direction]} us of the backend's CPU for 64 KiB")
    return costs


def show(ratios: dict[str, Any], context: dict[str, Any]) -> None:
    """Print both tables for a person."""
    print("MB/s            " + "".join(f"{size // 1024:>9} KiB" for size in SIZES))
    for direction in DIRECTIONS:
        for name in ("ours", "theirs"):
            row: Sequence[float | None] = [context["mb_s"][direction][str(size)].get(name) for size in SIZES]
            print(f"{direction} {name:12}" + "".join(f"{'-' if one is None else one:>13}" for one in row))
    print(f"backend_us_per_64k {ratios['backend_us_per_64k']}")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="scripts/bench vsock", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--image", type=Path, metavar="FILE.eif", help="whose kernel to boot; default: this checkout's")
    parser.add_argument("--guests", type=int, default=8, help="of each backend, one after the other (default 8)")
    parser.add_argument("--runs", type=int, default=3, help="of each load in each guest; medians are shown (default 3)")
    parser.add_argument("--mib", type=int, default=24, help="moved in each run (default 24)")
    parser.add_argument("--accel", choices=("kvm", "tcg"), default="tcg")
    args = parser.parse_args()
    costs = measure_costs(say)
    commands, missing = find_commands()
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as folder:
        image = read_eif(find_image(args.image, Path(folder)).read_bytes())
    guest = make_guest(image, build_guest_program("bench-guest", Path(__file__).parent / "vsock_parts/guest.c"))
    bench = Bench(commands, guest, Accel(args.accel))
    loads = [Load(direction, size, args.mib * MIB) for direction in DIRECTIONS for size in SIZES]
    try:
        for number in range(args.guests):
            say(f"guest {number + 1} of {args.guests} of each backend")
            for load in loads:
                bench.run(load, args.runs)
            bench.close()
    finally:
        bench.close()
    table: dict[str, dict[str, dict[str, list[float] | None]]] = {direction: {} for direction in DIRECTIONS}
    for load in loads:
        table[load.direction][str(load.size)] = bench.found(load)
    ratios: dict[str, Any] = {
        f"{direction}_vs_vhost_device_vsock": {size: compare(speeds) for size, speeds in rows.items()}
        for direction, rows in table.items()
    }
    ratios["backend_us_per_64k"] = costs
    context = {
        "mb_s": {way: {size: medians(speeds) for size, speeds in rows.items()} for way, rows in table.items()},
        "peer": None if missing else f"{PACKAGE.name} {PACKAGE.version}", "missing": missing,
        "stalled": {f"{name} {load.direction} {load.size}": why for (name, load), why in bench.stalls.items()},
        "accel": args.accel, "guests": args.guests, "runs": args.runs, "mib": args.mib,
        "host_cpus": os.cpu_count(), "qemu": find_qemu().banner, "load": [round(one, 1) for one in os.getloadavg()],
    }  # fmt: skip
    if args.json:
        print(json.dumps({"bench": "vsock", "ratios": ratios, "context": context}, indent=2))
    else:
        show(ratios, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
