# SPDX-License-Identifier: MIT
"""Size, time to pack and time to boot of the platform ramdisk by compressor and level; the lock pins zstd."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boot import time_evidence  # beside this file

from attestation.console import say
from enclave_image.cache import using_cache
from enclave_image.config import load_config
from enclave_image.eif import SectionType, read_eif, write_eif
from enclave_image.guest import Guest
from enclave_image.initramfs import only_executable, read_tree, write_cpio
from enclave_image.lock import load_lock
from enclave_image.recipe import make_image

ZSTD_LEVELS = (1, 3, 6, 9, 12, 15, 19)
GZIP_LEVELS = (1, 6, 9)


@dataclass(frozen=True)
class Packed:
    """The platform's ramdisk in one form, and the seconds of processor time that it took."""

    data: bytes
    seconds: float


def pack(levels: list[str], guest: Guest, raw: bytes, scratch: Path) -> dict[str, Packed]:
    """Return the archive `raw` as it is, and packed by each of `levels` (such as zstd-9)."""
    archive, target = scratch / "cpio", scratch / "packed"
    archive.write_bytes(raw)
    forms = {"none": Packed(raw, 0.0)}
    for name in levels:
        kind, _, level = name.partition("-")
        start, children = time.process_time(), _children()
        if kind == "zstd":
            guest.compress(archive, target, level=int(level))
            data = target.read_bytes()
        else:
            machine = zlib.compressobj(int(level), wbits=31)
            data = machine.compress(raw) + machine.flush()
        forms[name] = Packed(data, round(time.process_time() - start + _children() - children, 2))
        say(f"{name:<8} {len(data):>11,} bytes  {forms[name].seconds:6.2f} s")
    return forms


def boot(sections: list[tuple[SectionType, Any]], forms: Mapping[str, Packed], rounds: int, scratch: Path) -> Any:
    """Return the seconds from `enclave run` to verified evidence under TCG of each form, taken in turns."""
    platform = [kind for kind, _ in sections].index(SectionType.RAMDISK)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for name, form in forms.items():
        parts = [(kind, form.data if place == platform else data) for place, (kind, data) in enumerate(sections)]
        (scratch / f"{name}.eif").write_bytes(write_eif(parts))
    for number in range(rounds):
        for name in forms:
            path = scratch / f"{name}.eif"
            times[name].append(time_evidence(path, read_eif(path.read_bytes()), scratch, ["--accel", "tcg"])[0])
        say(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items()))
    return times


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    default = [*(f"zstd-{level}" for level in ZSTD_LEVELS), *(f"gzip-{level}" for level in GZIP_LEVELS)]
    parser.add_argument("levels", nargs="*", default=default, help="such as zstd-9 or gzip-6")
    parser.add_argument("--boot", type=int, default=0, metavar="ROUNDS", help="also boot each form so many times")
    args = parser.parse_args()
    config = load_config()
    with using_cache(), tempfile.TemporaryDirectory(prefix="veracruz-compression-") as folder:
        made = make_image(config, load_lock(config.directory / "enclave.lock"))
        guest = made.platform.guest
        raw = write_cpio(only_executable("init", read_tree(guest.root)))
        forms = pack(args.levels, guest, raw, Path(folder))
        times = boot(list(made.sections), forms, args.boot, Path(folder)) if args.boot else {}
    rows: dict[str, dict[str, Any]] = {
        name: {"bytes": len(form.data), "seconds": form.seconds} for name, form in forms.items()
    }
    for name, values in times.items():
        rows[name] |= {
            "evidence_s": round(statistics.median(values), 2),
            "evidence_all_s": [round(v, 2) for v in values],
        }
    if args.json:
        ratios = {name.replace("-", "_"): row["bytes"] / rows["none"]["bytes"] for name, row in rows.items()}
        print(json.dumps({"bench": "compression", "ratios": ratios, "context": {"rows": rows}}, indent=2))


if __name__ == "__main__":
    main()
