# SPDX-License-Identifier: MIT
"""Run by the image's own interpreter during the build: compile its bytecode, compress with its own libzstd, try it out.

Products must not depend on what is installed on the building machine, so the tools are the ones that the lock pins.
Called as `python3.13 -I -S -B guest_tool.py compile ROOT | compress LIBRARY IN OUT LEVEL | smoke PATH MODULE...`.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import py_compile
import sys


def compile_tree(root: str) -> None:
    """Replace every .py below `root` by a .pyc in its place, whose file names are those inside the image."""
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                source = os.path.join(directory, name)  # noqa: PTH118
                py_compile.compile(
                    source, cfile=source + "c", dfile=source[len(root.rstrip("/")) :], doraise=True,
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                )  # fmt: skip
                os.unlink(source)  # noqa: PTH108


def compress(library: str, source: str, target: str, level: int) -> None:
    """Compress a file by ZSTD_compress: one thread, one frame, so one result for one library."""
    zstd = ctypes.CDLL(library)
    for name in ("ZSTD_compressBound", "ZSTD_compress", "ZSTD_isError"):
        getattr(zstd, name).restype = ctypes.c_size_t
    with open(source, "rb") as stream:  # noqa: PTH123
        data = stream.read()
    bound = zstd.ZSTD_compressBound(ctypes.c_size_t(len(data)))
    buffer = ctypes.create_string_buffer(bound)
    size = zstd.ZSTD_compress(buffer, ctypes.c_size_t(bound), data, ctypes.c_size_t(len(data)), ctypes.c_int(level))
    if zstd.ZSTD_isError(ctypes.c_size_t(size)):
        raise SystemExit("ZSTD_compress failed")
    with open(target, "wb") as stream:  # noqa: PTH123
        stream.write(memoryview(buffer)[:size])


def smoke(path: list[str], modules: list[str]) -> None:
    """Import what the isolate will import, so that a trim that goes too far fails here and not at boot."""
    sys.path.extend(path)
    for name in modules:
        importlib.import_module(name)


def main(argv: list[str]) -> None:
    """Do one of the three."""
    match argv:
        case ["compile", root]:
            compile_tree(root)
        case ["compress", library, source, target, level]:
            compress(library, source, target, int(level))
        case ["smoke", path, *modules]:
            smoke(path.split(":"), modules)
        case _:
            raise SystemExit("usage: compile ROOT | compress LIBRARY IN OUT LEVEL | smoke PATH MODULE...")


if __name__ == "__main__":
    main(sys.argv[1:])
