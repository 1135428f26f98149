# SPDX-License-Identifier: MIT
"""Size and time to a bare /init of each kernel configuration, and of the default without its hardening."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from boot import time_bare_init  # beside this file

from attestation.console import run_command, say
from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.eif import Eif, load_eif
from enclave_image.kernel_config import BASE
from enclave_image.lock import load_lock
from enclave_image.recipe import build_image
from host_shim.accel import Accel
from host_shim.qemu import Machine, find_qemu

PLAIN = "default_without_hardening"
NAMES = ("default", "minimal", PLAIN)


def make_plain(folder: Path) -> Path:
    """Return a copy of the configuration in which the fragment ends before its hardening."""
    target = folder / PLAIN
    shutil.copytree(DEFAULT_DIR, target)
    fragment = (target / BASE).read_text()
    head, found, _ = fragment.partition("# --- hardening ---\n")
    if not found:
        raise SystemExit(f"{BASE} has no group hardening")
    (target / BASE).write_text(head)
    return target


def build(name: str, folder: Path) -> Eif:
    """Build the image with one configuration, or take its kernel from the cache."""
    plain = name == PLAIN
    config = load_config(make_plain(folder) if plain else DEFAULT_DIR, kernel_config="default" if plain else name)
    out = folder / f"{name}.eif"
    build_image(config, load_lock(DEFAULT_DIR / "enclave.lock"), out=out)
    return load_eif(out)


def measure(images: dict[str, Eif], accel: Accel, runs: int) -> dict[str, list[float]]:
    """Return the seconds to /init of each, in turns, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in images}
    for number in range(runs):
        for name, image in images.items():
            times[name].append(time_bare_init(image, accel, Machine(512, 1)))
        say(f"run {number + 1}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items()))
    return times


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; what is not in the cache is compiled first, five minutes each on two cores."""
    parser = argparse.ArgumentParser(prog="scripts/bench kernel", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--runs", type=int, default=5, help="of each; medians are shown (default 5)")
    parser.add_argument("--accel", choices=("kvm", "tcg"), default="tcg")
    parser.add_argument("--only", action="append", choices=NAMES, help="instead of all (repeatable)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as scratch:
        images = {name: build(name, Path(scratch)) for name in args.only or NAMES}
        times = measure(images, Accel(args.accel), args.runs)
        figures = {}
        for name, image in images.items():
            figures[f"{name}_mib"] = round(len(image.kernel) / 2**20, 2)
            figures[f"{name}_init_s"] = round(statistics.median(times[name]), 2)
    context = {
        "accel": args.accel, "runs": args.runs, "qemu": find_qemu().banner, "host_cpus": os.cpu_count(),
        "all_s": {name: [round(one, 2) for one in values] for name, values in times.items()},
        "load": [round(one, 1) for one in os.getloadavg()],
    }  # fmt: skip
    if args.json:
        print(json.dumps({"bench": "kernel", "ratios": figures, "context": context}, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:36} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
