# SPDX-License-Identifier: MIT
"""Bring locked inputs into the cache: by content, in parallel, resumed, never half-written."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NoReturn

from attestation.console import Progress, say

from .architecture import BUILDER, Architecture
from .cache import lock_file
from .config import cache_dir, demand_mirror
from .download import AddressFailed, Patience, Turn, bring
from .errors import InputMismatch, InputUnavailable
from .lock import Archive, LockedInput, LockedPackage, LockedWheel

PARALLEL = 4  # connections
MIRROR_PATIENCE = Patience()
PIP_LIMIT = 1800  # seconds
PYTHON_VERSION = "3.13"  # of the image
WHEEL_PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1")


def input_path(entry: LockedInput) -> Path:
    """Return where the cache keeps an input."""
    return cache_dir() / "inputs" / entry.sha256[:16] / entry.filename


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A service that keeps every file that Debian ever had: asked last, one request at a time, and not often."""

    base: str  # its address, without a slash at the end
    patience: Patience = Patience(attempts=6, pause=2.0)  # noqa: RUF009 -- frozen
    turn: Turn = field(default_factory=lambda: Turn(1.0))

    @classmethod
    def named(cls, base: str) -> Snapshot | None:
        """Return the service at an address, None for an empty one."""
        return cls(base) if base else None


@dataclass(frozen=True, slots=True)
class _Address:
    url: str
    patience: Patience
    turn: Turn | None


class _Counter:
    """Bytes that all workers together have, for the progress line."""

    def __init__(self, total: int) -> None:
        self._lock = threading.Lock()
        self._have: dict[str, int] = {}
        self._progress = Progress("download", total=total)

    def told(self, name: str, have: int) -> None:
        with self._lock:
            self._have[name] = have
            self._progress.update(sum(self._have.values()))

    def close(self) -> None:
        self._progress.close()


def _finish(part: Path, entry: LockedInput, origin: str) -> None:
    """Move a complete download into its place, or refuse it."""
    size, actual = part.stat().st_size, hash_file(part)
    if size != entry.size:
        raise InputUnavailable(f"{origin}: truncated", expected=f"{entry.size} bytes", actual=size)
    if actual != entry.sha256:
        part.unlink()
        raise InputMismatch(f"{origin}: SHA-256 of {entry.filename}", expected=entry.sha256, actual=actual)
    part.rename(input_path(entry))


def _addresses(entry: LockedPackage, mirrors: Sequence[str], snapshot: Snapshot | None) -> Iterator[_Address]:
    for mirror in mirrors:
        yield _Address(f"{mirror}/{entry.path}", MIRROR_PATIENCE, None)
    if snapshot is not None and entry.sha1:  # it keeps every file that Debian ever had, by SHA-1
        yield _Address(f"{snapshot.base}/file/{entry.sha1}", snapshot.patience, snapshot.turn)


def _fetch_package(entry: LockedPackage, mirrors: Sequence[str], snapshot: Snapshot | None, counter: _Counter) -> None:
    """Bring one package; a part that an earlier run left is gone on with. Raises naming every address tried."""
    part = _part(entry)
    faults: list[str] = []
    mismatch: InputMismatch | None = None
    with lock_file(part.with_name(".lock")):  # another build that needs the same file waits for ours
        if _is_cached(entry):
            return
        for address in _addresses(entry, mirrors, snapshot):
            for resumed in (part.exists(), False):
                try:
                    with address.turn.taken() if address.turn else contextlib.nullcontext():
                        bring(
                            address.url, part, size=entry.size, patience=address.patience,
                            told=lambda have: counter.told(entry.name, have),
                        )  # fmt: skip
                    _finish(part, entry, address.url)
                    return
                except InputMismatch as error:
                    part.unlink(missing_ok=True)
                    if resumed:  # its beginning came from elsewhere: once more, from the start
                        continue
                    mismatch = error
                    faults.append(str(error))
                except AddressFailed as error:
                    faults.append(f"{address.url}: {error}")
                break
    _raise_faults(entry, faults, mismatch, snapshot)


def _raise_faults(
    entry: LockedPackage, faults: Sequence[str], mismatch: InputMismatch | None, snapshot: Snapshot | None
) -> NoReturn:
    if mismatch is not None:
        if len(faults) > 1:
            mismatch.what += " (tried " + "; ".join(faults) + ")"
        mismatch.hint = "a mirror serves other bytes than the lock names: a broken proxy, or somebody on the way"
        raise mismatch
    raise InputUnavailable(
        f"cannot bring {entry.name} {entry.version}; tried " + "; ".join(faults),
        hint="the mirror may have moved on: `veracruz image lock` takes today's versions (other PCRs)"
        if snapshot is not None
        else "the mirror may have moved on: name a snapshot service, which keeps old versions: "
        "VERACRUZ_SNAPSHOT=URL, --snapshot URL, or mirrors.snapshot in image.toml",
    )


def _fetch_packages(
    packages: Sequence[LockedPackage],
    mirrors: Mapping[Archive, Sequence[str]],
    snapshot: Snapshot | None,
    counter: _Counter,
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
                _fetch_package(entry, mirrors[entry.archive], snapshot, counter)
                ended.put(None)
            except BaseException as error:
                ended.put(error)

    for entry in sorted(packages, key=lambda entry: -entry.size):
        waiting.put(entry)
    for _ in range(min(PARALLEL, len(packages))):
        threading.Thread(target=work, daemon=True).start()
    for _ in packages:
        if (error := ended.get()) is not None:
            raise error


def _part(entry: LockedInput) -> Path:
    target = input_path(entry)
    return target.with_name(f"{target.name}.part")


def pip_download(target: Path, architecture: Architecture, *words: str) -> None:
    """Download wheels for the image's Python into `target` by pip, told by `words` which; raise InputUnavailable."""
    platforms = [*(f"{platform}_{architecture}" for platform in WHEEL_PLATFORMS), "any"]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
        "--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON_VERSION,
        *(word for platform in platforms for word in ("--platform", platform)), "--dest", str(target), *words,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PIP_LIMIT
        )
    except subprocess.TimeoutExpired as error:
        raise InputUnavailable("pip could not bring the wheels in time", expected=f"{PIP_LIMIT} s") from error
    said = " ".join(done.stderr.split())[-190:]
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise InputMismatch("the index serves other wheels than the lock names", actual=said)
    if done.returncode != 0:
        raise InputUnavailable("pip could not bring the wheels", actual=said)


def _fetch_wheels(wheels: Sequence[LockedWheel], architecture: Architecture) -> None:
    """Let pip bring the wheels: it knows the machine's own index, proxy and certificates."""
    with tempfile.TemporaryDirectory(prefix="veracruz-wheels-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels))
        pip_download(Path(scratch), architecture, "--require-hashes", "--requirement", str(requirements))
        for wheel in wheels:
            found = Path(scratch) / wheel.filename
            if not found.exists():
                raise InputUnavailable(f"the index has no {wheel.filename}")
            part = _part(wheel)
            with lock_file(part.with_name(".lock")):
                part.write_bytes(found.read_bytes())
                _finish(part, wheel, wheel.filename)


def fetch_inputs(
    entries: Sequence[LockedInput],
    mirrors: Mapping[Archive, tuple[str, ...]],
    *,
    snapshot: Snapshot | None = None,
    offline: bool = False,
    missing: Sequence[LockedInput] | None = None,
    architecture: Architecture = BUILDER,
) -> dict[str, Path]:
    """Return each input's path by name, bringing what the cache lacks; every one is checked by hash on arrival.

    Wheels are for an `architecture`. `missing` is what `find_missing` has just said, if it was asked: it hashes all
    that is there.
    Raises InputUnavailable or InputMismatch naming the input and the mirrors tried.
    """
    missing = find_missing(entries) if missing is None else missing
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
        asked = {
            archive: mirrors[archive] if snapshot else demand_mirror(dict(mirrors), archive)
            for archive in {entry.archive for entry in packages}
        }
        try:
            _fetch_packages(packages, asked, snapshot, counter)
        finally:
            counter.close()
    if wheels:
        _fetch_wheels(wheels, architecture)
    return {entry.name: input_path(entry) for entry in entries}


def find_missing(entries: Sequence[LockedInput]) -> list[LockedInput]:
    """Return the inputs that the cache lacks."""
    with ThreadPoolExecutor(thread_name_prefix="hash") as pool:  # hashlib lets other threads run meanwhile
        cached = list(pool.map(_is_cached, entries))
    return [entry for entry, whole in zip(entries, cached, strict=True) if not whole]


def _is_cached(entry: LockedInput) -> bool:
    path = input_path(entry)
    if not path.exists() or path.stat().st_size != entry.size:
        return False
    if hash_file(path) != entry.sha256:  # a cache that rotted must not reach an image
        path.unlink()
        return False
    return True
