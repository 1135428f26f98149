# SPDX-License-Identifier: MIT
"""Size of the image, time of rebuilds, and what measuring and writing take beside one SHA-384 pass."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attestation.console import say
from attestation.measurements import load_measurements
from enclave_image.eif import Eif, read_eif
from enclave_image.eif_measuring import Sections, measure_sections
from enclave_image.eif_writer import stream_image

TOP = Path(__file__).resolve().parents[2]
PACKAGES = ("attestation", "enclave_image", "host_shim")
CHANGED = "enclave_image/runtime/start.py"  # of the copy
LIMIT = 2400  # seconds: a first build compiles the kernel
PASSES = 9  # of each figure in memory, taken in turns
# Between them: `python` cannot take the package from the checkout's own .venv, so it is told where the copy is.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.path.insert(0, '.'); from host_shim.cli import main; sys.exit(main())",
]


class Checkout:
    """A copy of this checkout's packages: what the benchmark changes is never the user's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "bench.eif"
        for package in PACKAGES:
            shutil.copytree(TOP / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))

    def build(self) -> tuple[float, dict[str, Any]]:
        """Build as a user does; return the seconds, start of the interpreter included, and what was told."""
        begin = time.monotonic()
        done = subprocess.run(
            [*COMMAND, "image", "build", "--out", str(self.out), "--json"],
            cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=LIMIT, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - begin
        if done.returncode:
            raise SystemExit(f"the image does not build:\n{done.stderr}")
        told: dict[str, Any] = json.loads(done.stdout)
        return seconds, told

    def change(self, number: int) -> None:
        """Change the runtime's code so that its bytecode is another each time, also from one run to the next."""
        path = self.folder / CHANGED
        path.write_text(f"{path.read_text()}\nBENCH_{number} = {time.time_ns()}\n")


def time_noop(checkout: Checkout, runs: int) -> list[float]:
    """Return the seconds of rebuilds in which nothing changed; exit if one of them wrote."""
    times = []
    for _ in range(runs):
        before, listing = checkout.out.stat(), sorted(os.listdir(checkout.folder))  # noqa: PTH208
        seconds, told = checkout.build()
        after = checkout.out.stat()
        same = (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_ino,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )
        if told["changed"] or not same or listing != sorted(os.listdir(checkout.folder)):  # noqa: PTH208
            raise SystemExit("a rebuild in which nothing changed has written")
        times.append(seconds)
    return times


def time_python_change(checkout: Checkout, runs: int) -> list[float]:
    """Return the seconds of rebuilds after changes to the runtime; exit unless PCR0 and PCR2 alone tell."""
    times = []
    _, before = checkout.build()
    for number in range(runs):
        checkout.change(number)
        seconds, after = checkout.build()
        differ = [
            name for name in ("PCR0", "PCR1", "PCR2") if before["Measurements"][name] != after["Measurements"][name]
        ]
        if differ != ["PCR0", "PCR2"]:
            raise SystemExit(f"a change to the runtime has changed {differ}")
        times.append(seconds)
        before = after
    return times


def hash_once(sections: Sections) -> None:
    """Hash all sections' bytes by one SHA-384: what the other two are held against."""
    digest = hashlib.sha384()
    for _, data in sections:
        digest.update(data)
    digest.digest()


def time_passes(image: Eif, folder: Path) -> dict[str, float]:
    """Return the least seconds of one SHA-384 pass, of measuring, of writing and measuring (no fsync), in turns."""
    sections: Sections = [(section.type, section.data) for section in image.sections]
    expected = image.measurements

    def write() -> None:
        with (folder / "pass.eif").open("wb") as file:
            if stream_image(sections, file) != expected:
                raise SystemExit("writing has measured something else")

    passes: dict[str, Callable[[], object]] = {
        "sha384_s": lambda: hash_once(sections),
        "measure_s": lambda: measure_sections(sections),
        "write_and_measure_s": write,
    }
    times: dict[str, list[float]] = {name: [] for name in passes}
    used = dict.fromkeys(passes, float("inf"))
    for _ in range(PASSES):
        for name, run in passes.items():
            begin, cpu = time.perf_counter(), time.process_time()
            run()
            used[name] = min(used[name], time.process_time() - cpu)
            times[name].append(time.perf_counter() - begin)
    cpu_times = {f"{name[:-2]}_cpu_s": least for name, least in used.items()}  # tells what a busy machine hides
    return {name: min(all_) for name, all_ in times.items()} | cpu_times


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="scripts/bench image", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--runs", type=int, default=5, help="rebuilds of each kind; medians are shown (default 5)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as folder:
        checkout = Checkout(Path(folder))
        say("warming the cache: a first build, which compiles what is not there")
        first, told = checkout.build()
        raw = checkout.out.read_bytes()
        image = read_eif(raw)
        if (image.measurements,) != load_measurements(json.dumps(told).encode()):
            raise SystemExit("the build has told other measurements than its file has")
        say(f"first build {first:.1f} s; now {args.runs} rebuilds of each kind")
        noop = time_noop(checkout, args.runs)
        change = time_python_change(checkout, args.runs)
        passes = time_passes(image, Path(folder))
    figures = {
        "eif_mib": round(len(raw) / 2**20, 1),
        "noop_s": round(statistics.median(noop), 2),
        "python_change_s": round(statistics.median(change), 2),
        "measure_vs_sha384": round(passes["measure_s"] / passes["sha384_s"], 2),
        "write_and_measure_vs_sha384": round(passes["write_and_measure_s"] / passes["sha384_s"], 2),
    }
    context = {
        "first_build_s": round(first, 1), "noop_all_s": [round(one, 2) for one in noop],
        "python_change_all_s": [round(one, 2) for one in change], "passes": PASSES,
        **{name: round(seconds, 4) for name, seconds in passes.items()},
        "host_cpus": os.cpu_count(), "load": [round(one, 1) for one in os.getloadavg()],
    }  # fmt: skip
    if args.json:
        print(json.dumps({"bench": "image", "ratios": figures, "context": context}, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
