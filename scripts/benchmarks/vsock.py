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


class Bench:
    """Both backends, each with a guest of its own that is replaced when it has stalled."""

    def __init__(self, commands: dict[str, Command], guest: Eif, accel: Accel) -> None:
        self._commands, self._guest, self._accel = commands, guest, accel
        self._rigs: dict[str, Rig] = {}
        self.stalls: dict[str, str] = {}

    def close(self) -> None:
        """Stop everything."""
        for rig in self._rigs.values():
            rig.close()
        self._rigs.clear()

    def run(self, direction: str, size: int, *, total: int, runs: int) -> dict[str, list[float] | None]:
        """Return the MB/s of each backend in runs that alternate between them; None where it stalls."""
        speeds: dict[str, list[float]] = {name: [] for name in self._commands}
        stalled = set()
        for _ in range(runs):
            for name in self._commands:
                if name in stalled:
                    continue
                try:
                    speeds[name].append(self._measure(name, direction, size, total))
                except Stalled as stall:
                    stalled.add(name)
                    self.stalls[f"{name} {direction} {size}"] = str(stall)
                    self._rigs.pop(name).close()
        return {name: None if name in stalled else values for name, values in speeds.items()}

    def _measure(self, name: str, direction: str, size: int, total: int) -> float:
        if name not in self._rigs:
            self._rigs[name] = Rig(self._commands[name], self._guest, self._accel)
        to_guest = DIRECTIONS[direction]
        seconds = self._rigs[name].measure(to_guest=to_guest, size=size, total=total, limit=LIMIT)
        return total / seconds / 1e6


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
    parser.add_argument("--runs", type=int, default=9, help="of each; medians are shown (default 9)")
    parser.add_argument("--mib", type=int, default=24, help="moved in each run (default 24)")
    parser.add_argument("--accel", choices=("kvm", "tcg"), default="tcg")
    args = parser.parse_args()
    costs = measure_costs(say)
    commands, missing = find_commands()
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as folder:
        image = read_eif(find_image(args.image, Path(folder)).read_bytes())
    guest = make_guest(image, build_guest_program("bench-guest", Path(__file__).parent / "vsock_parts/guest.c"))
    bench = Bench(commands, guest, Accel(args.accel))
    table: dict[str, dict[str, dict[str, list[float] | None]]] = {direction: {} for direction in DIRECTIONS}
    try:
        for direction in DIRECTIONS:
            for size in SIZES:
                speeds = bench.run(direction, size, total=args.mib * MIB, runs=args.runs)
                table[direction][str(size)] = speeds
                say(f"{direction} at {size // 1024} KiB a write: {medians(speeds)} MB/s")
    finally:
        bench.close()
    ratios: dict[str, Any] = {
        f"{direction}_vs_vhost_device_vsock": {size: compare(speeds) for size, speeds in rows.items()}
        for direction, rows in table.items()
    }
    ratios["backend_us_per_64k"] = costs
    context = {
        "mb_s": {way: {size: medians(speeds) for size, speeds in rows.items()} for way, rows in table.items()},
        "peer": None if missing else f"{PACKAGE.name} {PACKAGE.version}", "missing": missing,
        "stalled": bench.stalls, "accel": args.accel, "runs": args.runs, "mib": args.mib,
        "host_cpus": os.cpu_count(), "qemu": find_qemu().banner, "load": [round(one, 1) for one in os.getloadavg()],
    }  # fmt: skip
    if args.json:
        print(json.dumps({"bench": "vsock", "ratios": ratios, "context": context}, indent=2))
    else:
        show(ratios, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
