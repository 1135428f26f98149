# SPDX-License-Identifier: MIT
"""Bring locked inputs into the cache: by content, in parallel, resumed, never half-written."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from attestation.console import Progress, say
from attestation.files import NO_ROOM

from .config import cache_dir, demand_mirror
from .errors import InputMismatch, InputUnavailable, NoSpace
from .lock import Archive, LockedInput, LockedPackage, LockedWheel

TIMEOUT = 60.0  # seconds without a byte
PARALLEL = 4  # connections
CHUNK = 1 << 18  # bytes
ATTEMPTS = 3  # a mirror; each goes on where the one before it broke off
PYTHON_VERSION = "3.13"  # of the image
WHEEL_PLATFORMS = (
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux1_x86_64",
    "any",
)


def input_path(entry: LockedInput) -> Path:
    """Return where the cache keeps an input."""
    return cache_dir() / "inputs" / entry.sha256[:16] / entry.filename


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Counter:
    """Bytes brought by all workers together, for the progress line."""

    def __init__(self, total: int) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._progress = Progress("download", total=total)

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress.update(self._done)

    def close(self) -> None:
        self._progress.close()


def _download(url: str, part: Path, *, size: int, counter: _Counter) -> None:
    """Append what is missing of `url` to `part`; never more than `size` bytes."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if have and answer.status != 206:
            have = 0
        with part.open("r+b" if have else "wb") as out:
            out.seek(have)
            while chunk := answer.read(CHUNK):
                have += len(chunk)
                if have > size:
                    raise InputMismatch(f"{url} is longer than the lock says", expected=f"{size} bytes")
                out.write(chunk)
                counter.add(len(chunk))
            out.flush()
            os.fsync(out.fileno())


def _finish(part: Path, entry: LockedInput, origin: str) -> None:
    """Move a complete download into its place, or refuse it."""
    size, actual = part.stat().st_size, hash_file(part)
    if size != entry.size:
        raise InputUnavailable(f"{origin}: truncated", expected=f"{entry.size} bytes", actual=size)
    if actual != entry.sha256:
        part.unlink()
        raise InputMismatch(f"{origin}: SHA-256 of {entry.filename}", expected=entry.sha256, actual=actual)
    part.rename(input_path(entry))


def _fetch_package(entry: LockedPackage, mirrors: Sequence[str], counter: _Counter) -> None:
    part = _part(entry)
    part.parent.mkdir(parents=True, exist_ok=True)
    faults = []
    try:
        for mirror in mirrors:
            url = f"{mirror}/{entry.path}"
            for _ in range(ATTEMPTS):
                try:
                    _download(url, part, size=entry.size, counter=counter)
                    _finish(part, entry, url)
                    return
                except urllib.error.HTTPError as error:
                    faults.append(f"{url}: {error.code}")
                    break
                except (OSError, InputUnavailable) as error:  # cut connections; go on where it broke off
                    if isinstance(error, OSError) and error.errno in NO_ROOM:
                        raise NoSpace(
                            f"cannot write {part}: {error.strerror}", hint="free some, or set XDG_CACHE_HOME"
                        ) from error
                    faults.append(f"{url}: {error}")
    finally:
        part.unlink(missing_ok=True)
    raise InputUnavailable(
        f"cannot bring {entry.name} {entry.version}; tried " + "; ".join(faults),
        hint="the mirror may have moved on: `veracruz image lock` takes today's versions (other PCRs)",
    )


def _fetch_packages(
    packages: Sequence[LockedPackage], mirrors: Mapping[Archive, Sequence[str]], counter: _Counter
) -> None:
    """Fetch all, some at a time. The threads are daemons: Ctrl-C does not wait for a mirror that says nothing."""
    waiting: SimpleQueue[LockedPackage] = SimpleQueue()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                entry = waiting.get_nowait()
            except Empty:
                return
            try:
                _fetch_package(entry, mirrors[entry.archive], counter)
                ended.put(None)
            except BaseException as error:
                ended.put(error)

    for entry in sorted(packages, key=lambda entry: -entry.size):
        waiting.put(entry)
    for _ in range(min(PARALLEL, len(packages))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in packages:
            if (error := ended.get()) is not None:
                raise error
    except BaseException:
        for entry in packages:
            _part(entry).unlink(missing_ok=True)
        raise


def _part(entry: LockedInput) -> Path:
    target = input_path(entry)
    return target.with_name(f"{target.name}.{os.getpid()}.part")


def pip_download(target: Path, *words: str) -> None:
    """Download wheels for the image's Python into `target` by pip, told by `words` which; raise InputUnavailable."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
        "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON_VERSION,
        *(word for platform in WHEEL_PLATFORMS for word in ("--platform", platform)), "--dest", str(target), *words,
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputUnavailable("pip could not bring the wheels", actual=" ".join(done.stderr.split())[-400:])


def _fetch_wheels(wheels: Sequence[LockedWheel]) -> None:
    """Let pip bring the wheels: it knows the machine's own index, proxy and certificates."""
    with tempfile.TemporaryDirectory(prefix="veracruz-wheels-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels))
        pip_download(Path(scratch), "--require-hashes", "--requirement", str(requirements))
        for wheel in wheels:
            found = Path(scratch) / wheel.filename
            if not found.exists():
                raise InputUnavailable(f"the index has no {wheel.filename}")
            part = _part(wheel)
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(found.read_bytes())
            _finish(part, wheel, wheel.filename)


def fetch_inputs(
    entries: Sequence[LockedInput], mirrors: Mapping[Archive, tuple[str, ...]], *, offline: bool = False
) -> dict[str, Path]:
    """Return each input's path by name, bringing what the cache lacks; every one is checked by hash on arrival.

    Raises InputUnavailable or InputMismatch naming the input and the mirrors tried.
    """
    missing = [entry for entry in entries if not _is_cached(entry)]
    if missing and offline:
        raise InputUnavailable(
            f"{len(missing)} inputs are not in the cache: {', '.join(entry.name for entry in missing)}",
            hint="run once without --offline",
        )
    packages = [entry for entry in missing if isinstance(entry, LockedPackage)]
    wheels = [entry for entry in missing if isinstance(entry, LockedWheel)]
    if missing:
        total = sum(entry.size for entry in missing)
        say(f"fetching {len(missing)} locked inputs, {total / 1e6:.0f} MB")
    if packages:
        counter = _Counter(sum(entry.size for entry in packages))
        try:
            _fetch_packages(packages, {e.archive: demand_mirror(dict(mirrors), e.archive) for e in packages}, counter)
        finally:
            counter.close()
    if wheels:
        _fetch_wheels(wheels)
    return {entry.name: input_path(entry) for entry in entries}


def _is_cached(entry: LockedInput) -> bool:
    path = input_path(entry)
    if not path.exists() or path.stat().st_size != entry.size:
        return False
    if hash_file(path) != entry.sha256:  # a cache that rotted must not reach an image
        path.unlink()
        return False
    return True
