# SPDX-License-Identifier: MIT
"""Compile recommender.c to recommender.wasm with the pinned compiler; the same source gives the same bytes.

    python examples/recommender/build.py [--check] [--out FILE]

Needs the wheel in requirements-build.txt, installed with `pip install --require-hashes`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "recommender.c"
WASM = HERE / "recommender.wasm"
COMPILER = "0.17.1"  # requirements-build.txt pins the same version by hash
FLAGS = (
    "-target", "wasm32-wasi", "-std=c11", "-Oz", "-Wall", "-Wextra", "-Werror", "-s",
    "-ffp-contract=off",  # wasm has no fused multiply-add; say so, so that nobody's default changes a result
    "-Wl,-z,stack-size=65536",  # the default of 16 MiB makes every instance claim 257 pages
    "-Wl,--max-memory=8388608",
)  # fmt: skip


class BuildFailed(Exception):
    """The compiler is missing, is another version, or failed."""


def compile_wasm(scratch: Path) -> bytes:
    """Return the compiled program; `scratch` takes the compiler's caches and the file."""
    try:
        version = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        raise BuildFailed(f"the compiler is not installed; expected ziglang {COMPILER}") from None
    if version != COMPILER:
        raise BuildFailed(f"the compiler is another version; expected ziglang {COMPILER}, got {version}")
    out = scratch / "recommender.wasm"
    cache = str(scratch / "cache")
    environment = {
        "PATH": os.defpath,
        "HOME": str(scratch),
        "ZIG_GLOBAL_CACHE_DIR": os.environ.get("ZIG_GLOBAL_CACHE_DIR", cache),
        "ZIG_LOCAL_CACHE_DIR": cache,
    }
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", str(out), SOURCE.name]
    done = subprocess.run(
        command, cwd=HERE, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0 or not out.is_file():
        raise BuildFailed(f"the compiler ended with {done.returncode}:\n{done.stderr}")
    return out.read_bytes()


def main() -> int:
    """Write the program, or with --check compare it with the committed one."""
    parser = argparse.ArgumentParser(description="Compile recommender.c to WebAssembly.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 unless the bytes are the committed")
    parser.add_argument("--out", type=Path, default=WASM)
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="recommender-build-") as scratch:
            wasm = compile_wasm(Path(scratch))
    except BuildFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    if args.check:
        same = wasm == WASM.read_bytes()
        print("the committed bytes" if same else "other bytes than the committed ones")
        return 0 if same else 1
    args.out.write_bytes(wasm)
    print(f"{args.out}: {len(wasm)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
