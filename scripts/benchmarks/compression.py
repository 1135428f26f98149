# SPDX-License-Identifier: MIT
"""Size and time of the platform ramdisk by compressor and level; zstd is the one that the lock pins."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import zlib
from pathlib import Path

from attestation.console import say
from enclave_image.cache import using_cache
from enclave_image.config import load_config
from enclave_image.initramfs import only_executable, read_tree, write_cpio
from enclave_image.lock import load_lock
from enclave_image.recipe import make_image
from enclave_image.rootfs import guest_compress

ZSTD_LEVELS = (1, 3, 6, 9, 12, 15, 19)
GZIP_LEVELS = (1, 6, 9)


def measure(levels: list[str]) -> dict[str, dict[str, float]]:
    """Return bytes and seconds of processor time of the platform's ramdisk for each of `levels` (such as zstd-9)."""
    config = load_config()
    rows: dict[str, dict[str, float]] = {}
    with using_cache(), tempfile.TemporaryDirectory(prefix="veracruz-compression-") as scratch:
        made = make_image(config, load_lock(config.directory / "enclave.lock"))
        root = made.platform.root
        archive, packed = Path(scratch) / "cpio", Path(scratch) / "packed"
        raw = write_cpio(only_executable("init", read_tree(root)))
        archive.write_bytes(raw)
        rows["none"] = {"bytes": len(raw), "seconds": 0.0}
        for name in levels:
            kind, _, level = name.partition("-")
            start, children = time.process_time(), _children()
            if kind == "zstd":
                guest_compress(root, archive, packed, level=int(level))
                size = packed.stat().st_size
            else:
                machine = zlib.compressobj(int(level), wbits=31)
                size = len(machine.compress(raw)) + len(machine.flush())
            seconds = time.process_time() - start + _children() - children
            rows[name] = {"bytes": size, "seconds": round(seconds, 2)}
            say(f"{name:<8} {size:>11,} bytes  {seconds:6.2f} s")
    return rows


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    default = [*(f"zstd-{level}" for level in ZSTD_LEVELS), *(f"gzip-{level}" for level in GZIP_LEVELS)]
    parser.add_argument("levels", nargs="*", default=default, help="such as zstd-9 or gzip-6")
    args = parser.parse_args()
    rows = measure(args.levels)
    if args.json:
        ratios = {name.replace("-", "_"): row["bytes"] / rows["none"]["bytes"] for name, row in rows.items()}
        print(json.dumps({"bench": "compression", "ratios": ratios, "context": {"rows": rows}}, indent=2))


if __name__ == "__main__":
    main()
