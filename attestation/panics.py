# SPDX-License-Identifier: MIT
"""Failures of libraries written in Rust: a panic arrives as a BaseException, which `except Exception` lets through.

cryptography and cbor2 are such libraries. PyO3 (src/panic.rs) makes its PanicException a BaseException so that nobody
catches it by accident, and each extension module has a class of its own that cannot be imported: its name tells.
Where such a library reads others' bytes, its panic is one more way to fail on them, and the answer is a refusal.
"""

from __future__ import annotations

_MODULE, _NAME = "pyo3_runtime", "PanicException"


def reraise_interrupt(error: BaseException) -> None:
    """Raise `error` again unless it is a failure: an Exception or a panic.

    KeyboardInterrupt and its like are none, nor is MemoryError: it says something of this machine, and nothing of what
    was read.
    """
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        return
    if (type(error).__module__, type(error).__name__) != (_MODULE, _NAME):
        raise error
