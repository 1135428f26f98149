# SPDX-License-Identifier: MIT
"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .errors import NoSpace


def write_whole(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write `data` to a temporary file beside `path`, fsync, rename; nothing is left when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no room for {path}", expected=f"{len(data)} bytes", actual="a full file system") from error
        raise
    finally:
        Path(name).unlink(missing_ok=True)
