# SPDX-License-Identifier: MIT
"""What the host remembers of its isolates: one directory each, one lock that lives as long as its supervisor.

    STATE/enclaves/NAME/    state.json, console.log, supervisor.log (and what came before: .1), lock, relay.counters,
                            module.counters
    RUN/veracruz-XXXXXXXX/  the isolate's sockets; a short path, since Unix socket paths end at 107 bytes

The lock (flock) tells a live supervisor from a dead one, whatever happened to it; what a dead one left is cleaned up by
whoever meets it first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from attestation.errors import EnvironmentLacks, UsageError, escape
from attestation.files import user_folder, write_whole

from .children import ProcessId
from .errors import NameTaken, NoSuchIsolate, UnsafeState
from .record import Record as Record
from .record import Stage as Stage

NAME_FORM = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
MAX_STATE = 64 * 1024  # bytes of a state.json
MAX_SOCKET_PATH = 107  # bytes; unix(7), sun_path without its NUL
LONGEST_PORT = len("_65535")
SOCKETS_PREFIX = "veracruz-"
RELAY_COUNTERS = "relay.counters"
MODULE_COUNTERS = "module.counters"
LEFT_FILES = (  # of the isolate that had the name before
    "state.json", "console.log", "console.log.1", "supervisor.log", "supervisor.log.1", RELAY_COUNTERS, MODULE_COUNTERS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Damaged:
    """An isolate whose state.json cannot be read; `problem` is escaped."""

    name: str
    problem: str
    supervisor: ProcessId | None  # if one is alive, which will write the file anew when it ends
    cure: str  # what mends it


def state_home() -> Path:
    """Return our directory for state."""
    return user_folder("XDG_STATE_HOME", ".local/state")


def make_private(path: Path) -> None:
    """Make a directory that is its owner's alone, or check that it is; raise UnsafeState."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        demand_private(path)
    except OSError as error:
        raise EnvironmentLacks(
            f"cannot make the directory {path}: {error.strerror}", hint="XDG_STATE_HOME names another place for state"
        ) from error


def demand_private(path: Path) -> None:
    """Raise UnsafeState unless a directory is this user's, and writable by nobody else."""
    found = path.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or found.st_mode & 0o022:
        raise UnsafeState(
            f"{path} is not this user's own directory",
            expected=f"a directory of user {os.geteuid()}, not writable by others",
            actual=f"owner {found.st_uid}, mode {stat.filemode(found.st_mode)}",
            hint=f"look at what is in it, then: chmod 700 {path}" if ours
            else f"ls -ld {path}; move it away, or name another place with XDG_STATE_HOME",
        )  # fmt: skip


class Isolates:
    """All isolates of this user on this host."""

    def __init__(self, home: Path | None = None) -> None:
        self._base = (home or state_home()) / "enclaves"

    def directory(self, name: str) -> Path:
        """Return an isolate's directory, there or not; raise UsageError for a name of another form."""
        if not NAME_FORM.fullmatch(name):
            raise UsageError("the isolate's name has another form", expected="up to 63 of a-z 0-9 . _ -", actual=name)
        return self._base / name

    def names(self) -> list[str]:
        """Return the names of all isolates that left a trace."""
        try:
            return sorted(path.name for path in self._base.iterdir() if NAME_FORM.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def find(self, name: str) -> Record:
        """Return an isolate's record, after cleaning up if its supervisor is dead; raise NoSuchIsolate."""
        record = self._read(self.directory(name))
        if record.stage.live and not (record.supervisor and record.supervisor.alive):
            with contextlib.suppress(NameTaken), self._locked(name):  # taken: somebody else cleans, or starts anew
                return self._clean_up(name)
        return record

    def all(self) -> list[Record]:
        """Return every isolate's record; `damaged` tells of those that cannot be read."""
        records = []
        for name in self.names():
            with contextlib.suppress(NoSuchIsolate, UnsafeState):
                records.append(self.find(name))
        return records

    def damaged(self) -> list[Damaged]:
        """Return the isolates whose state cannot be read."""
        found = []
        for name in self.names():
            try:
                self.find(name)
            except NoSuchIsolate:
                pass
            except UnsafeState as error:
                found.append(Damaged(name, escape(error), self.owner(name), error.hint or error.cure))
        return found

    def owner(self, name: str) -> ProcessId | None:
        """Return the live supervisor that holds a name, whatever state.json says; None if nobody of ours does."""
        try:
            self._demand_private(name)  # or whoever wrote the lock chooses which process is ended
            with os.fdopen(_open_plain(self.directory(name) / "lock", os.O_RDONLY), "rb") as file:
                pid, start = map(int, file.read(64).split())
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return ProcessId(pid, start)
        except (OSError, ValueError, UnsafeState):
            pass
        return None

    def _demand_private(self, name: str) -> None:
        demand_private(self._base)
        demand_private(self.directory(name))

    def write(self, record: Record) -> None:
        """Write an isolate's record while nobody supervises it; raise NameTaken if somebody does."""
        with self._locked(record.name):
            write_record(self.directory(record.name), record)

    def discard(self, name: str) -> Path:
        """Move a damaged state.json aside; return where it is now. Raise NameTaken while a supervisor holds it."""
        path = self.directory(name) / "state.json"
        with self._locked(name):
            return path.replace(path.with_name("state.json.damaged"))

    @contextlib.contextmanager
    def claim(self, name: str | None, *, adopt: bool = False) -> Iterator[Claim]:
        """Hold a name for the body; without one, the first free of isolate, isolate-2, ... Raise NameTaken.

        With `adopt` what was written under the name stays: its isolate is taken over.
        """
        make_private(self._base)
        with contextlib.ExitStack() as stack:
            if name is not None:
                stack.enter_context(self._locked(name))
            else:
                name = self._lock_any(stack)
            directory = self.directory(name)
            if adopt:
                yield Claim(name, directory)
                return
            self._demand_unused(name)
            for left in LEFT_FILES:
                (directory / left).unlink(missing_ok=True)
            yield Claim(name, directory)

    def _lock_any(self, stack: contextlib.ExitStack) -> str:
        number = 1
        while True:
            name = "isolate" if number == 1 else f"isolate-{number}"
            with contextlib.suppress(NameTaken), contextlib.ExitStack() as trial:
                trial.enter_context(self._locked(name))
                self._demand_unused(name)
                stack.push(trial.pop_all())
                return name
            number += 1

    def _demand_unused(self, name: str) -> None:
        """Under the lock: clean up what is left; raise NameTaken for an enclave that goes on by itself."""
        with contextlib.suppress(NoSuchIsolate, UnsafeState):
            record = self._clean_up(name)
            if record.stage is Stage.LOST and record.outside is not None:
                raise NameTaken(
                    "an enclave of this name runs on without its supervisor", actual=name,
                    hint=f"veracruz enclave adopt {name}, or: veracruz enclave stop {name}",
                )  # fmt: skip

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        directory = self.directory(name)
        make_private(directory)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise NameTaken(
                    "an isolate of this name runs already", actual=name, hint=f"veracruz enclave stop {name}"
                ) from error
            holder = ProcessId.of(os.getpid())
            with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's number
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{holder.pid} {holder.start}\n".encode() if holder else b"", 0)
            yield
        finally:
            os.close(descriptor)

    def _read(self, directory: Path) -> Record:
        path = directory / "state.json"
        try:
            self._demand_private(directory.name)  # what a record names is killed, removed and run
            with os.fdopen(_open_plain(path, os.O_RDONLY), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ValueError("it is no regular file")
                raw = file.read(MAX_STATE + 1)
            if len(raw) > MAX_STATE:
                raise ValueError(f"more than {MAX_STATE} bytes")
            record = Record.load(raw)
            if record.name != directory.name:
                raise ValueError(f"it is the record of {record.name}")
            return record
        except FileNotFoundError as error:
            raise NoSuchIsolate(
                "no isolate of this name", actual=directory.name, hint="veracruz enclave list --all"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            told = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            if isinstance(error, OSError):
                told = error.strerror or told  # the path is said already
            raise UnsafeState(
                f"{path} is damaged", actual=told, hint=f"veracruz enclave stop {directory.name}"
            ) from error

    def _clean_up(self, name: str) -> Record:
        """Under the lock: end and remove what a supervisor left that did not end by itself."""
        directory = self.directory(name)
        record = self._read(directory)
        if not record.stage.live:
            return record
        for child in record.children:  # they die with their parent; this is for the one that escaped
            child.signal(signal.SIGKILL)
        if record.sockets is not None:
            remove_sockets(Path(record.sockets))
        reason = "its supervisor was killed"
        if record.outside is not None:
            reason += "; its enclave runs on by itself, and nobody relays to it"
        record = replace(
            record, stage=Stage.LOST, supervisor=None, children=(), roles=(), sockets=None, reason=reason, ended=now()
        )
        with contextlib.suppress(EnvironmentLacks):  # a full disk: it is cleaned up, and will be found again
            write_record(directory, record)
        return record


def _open_plain(path: Path, flags: int) -> int:
    """Open what may be anything: no link is followed, and no pipe is waited for."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def write_record(directory: Path, record: Record) -> None:
    """Write state.json, whole or not at all; on a full disk over the one that is there, in the room that it has."""
    path = directory / "state.json"
    try:
        write_whole(path, record.dump(), mode=0o600)
    except EnvironmentLacks:
        if not _write_over(path, record):
            raise


def _write_over(path: Path, record: Record) -> bool:
    """Write a record in the blocks that its file has already; return whether that could be done.

    Not atomic, but an isolate's end is worth being known on the day on which a disk is full.
    """
    raw = record.dump()
    try:
        with os.fdopen(_open_plain(path, os.O_RDWR), "r+b", buffering=0) as file:
            found = os.fstat(file.fileno())
            room = min(found.st_blocks * 512, MAX_STATE)
            if len(raw) > room and record.reason is not None:
                raw = replace(record, reason=record.reason.partition("\n")[0]).dump()
            if not stat.S_ISREG(found.st_mode) or len(raw) > room:
                return False
            file.write(raw)
            file.truncate(len(raw))
    except OSError:
        return False
    return True


def now() -> str:
    """Return the time as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Claim:
    """A name that this process holds."""

    name: str
    directory: Path

    def write(self, record: Record) -> None:
        """Write state.json."""
        write_record(self.directory, record)

    @property
    def console(self) -> Path:
        """The file of what the guest wrote to its console."""
        return self.directory / "console.log"

    @property
    def log(self) -> Path:
        """The file of what the supervisor did."""
        return self.directory / "supervisor.log"

    @property
    def counters(self) -> Path:
        """The file in which this boot's relay publishes its counters (host_shim.relay.counters.Counters)."""
        return self.directory / RELAY_COUNTERS

    @property
    def module(self) -> Path:
        """The file in which this boot's NSM emulator publishes what it was asked (host_shim.nsm_emulator)."""
        return self.directory / MODULE_COUNTERS


def make_sockets() -> Path:
    """Make the private directory of an isolate's sockets, on a short path."""
    # XDG_RUNTIME_DIR comes last: it is removed when its user logs out, and an isolate goes on.
    for base in (os.environ.get("TMPDIR", ""), tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR", "")):
        if not base.startswith("/") or len(os.fsencode(base)) > MAX_SOCKET_PATH - 32:
            continue
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX, dir=base))
    raise EnvironmentLacks("no directory for the isolate's sockets", hint="set TMPDIR to a short, writable directory")


def remove_sockets(path: Path) -> None:
    """Remove a directory that `make_sockets` made; anything else is left alone."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if path.name.startswith(SOCKETS_PREFIX) and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
