# SPDX-License-Identifier: MIT
"""Compiled programs, by the SHA-256 of their source: compiled by a worker that sees no data, kept by the runtime alone.

They lie in sealed memory files that have no name, so no worker can reach another program's, or change its own.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable

from .blobs import Blob
from .task import Report

Compile = Callable[[int, int], Report]  # source and artifact, as memory files
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class CompileFailed(Exception):
    """A program cannot be compiled; the report says how that ended."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.trap)
        self.report = report


class Modules:
    """The cache; at most one entry for each program of the policy."""

    def __init__(self) -> None:
        self._compiling = threading.Lock()  # what is compiled already never waits for what is not
        self._compiled: dict[bytes, int] = {}

    def find(self, source: Blob, compile_with: Compile) -> int:
        """Return the compiled module's memory file, compiling it if it is not at hand; raise CompileFailed."""
        descriptor = self._compiled.get(source.sha256)
        if descriptor is not None:
            return descriptor
        with self._compiling:
            descriptor = self._compiled.get(source.sha256)
            if descriptor is None:
                descriptor = self._compile(source, compile_with)
                self._compiled[source.sha256] = descriptor
            return descriptor

    def _compile(self, source: Blob, compile_with: Compile) -> int:
        module = make_memory_file(source)
        artifact = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            report = compile_with(module, artifact)
            if report.exit_code != 0 or os.fstat(artifact).st_size == 0:
                raise CompileFailed(report)
            fcntl.fcntl(artifact, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(artifact)
            raise
        finally:
            os.close(module)
        return artifact


def make_memory_file(source: Blob) -> int:
    """Return a memory file with a content."""
    descriptor = os.memfd_create("module", os.MFD_CLOEXEC)
    try:
        source.copy_to(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
