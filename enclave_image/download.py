# SPDX-License-Identifier: MIT
"""Bring one file over HTTP: resumed where it broke off, never longer than stated, never waiting without an end."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from attestation.files import NO_ROOM, room_hint

from .errors import InputMismatch, NoSpace

CHUNK = 1 << 18  # bytes
MAX_REDIRECTS = 4
BUSY = (429, 500, 502, 503, 504)  # RFC 9110 15.6, RFC 6585 4: the same request later may be answered


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often one address is tried."""

    silence: float = 60.0  # seconds without a byte
    window: float = 60.0  # seconds in which `least` bytes must come
    least: int = 64 * 1024  # bytes
    attempts: int = 3  # connections; each goes on where the one before it broke off
    pause: float = 1.0  # seconds before the second; doubled for each further one
    longest: float = 60.0  # seconds that one pause may take, whatever the server asks for


@dataclass(slots=True)
class Turn:
    """Lets one request at a time through, and no two within `interval` seconds: a service that serves everybody."""

    interval: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: float = -1e9

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn and hold it in the body."""
        with self._lock:
            time.sleep(max(0.0, self._last + self.interval - time.monotonic()))
            try:
                yield
            finally:
                self._last = time.monotonic()


class AddressFailed(Exception):
    """An address did not give the file; the message says why, in words for the list of mirrors tried."""


class _Later(Exception):
    """The server is busy; `seconds` is what it asked for, if it did."""

    def __init__(self, words: str, seconds: float | None) -> None:
        super().__init__(words)
        self.seconds = seconds


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows few redirects, to HTTP alone, and none that gives up TLS."""

    max_redirections = MAX_REDIRECTS
    max_repeats = 1

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        was, now = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if now != "https" and now != was:
            raise AddressFailed(f"redirects from {was} to {now}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


@contextlib.contextmanager
def open_url(url: str, *, start: int = 0, silence: float = 60.0) -> Iterator[http.client.HTTPResponse]:
    """Give the answer to a GET from byte `start` on; raise OSError, AddressFailed, or `_Later` for a busy server."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with _OPENER.open(request, timeout=silence) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        with error:
            if error.code in BUSY:
                asked = error.headers.get("Retry-After", "")
                seconds = float(asked) if re.fullmatch(r"\d{1,9}", asked) else None
                raise _Later(f"{error.code} {error.reason}", seconds) from error
            if error.code in (301, 302, 303, 307, 308):
                raise AddressFailed(
                    f"redirects more than {MAX_REDIRECTS} times, in a circle, or to no HTTP address"
                ) from error
            raise AddressFailed(f"{error.code} {error.reason}") from error
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {type(error).__name__}") from error
    except ValueError as error:
        raise AddressFailed(f"no address: {error}") from error


def read_url(url: str, *, limit: int, patience: Patience = Patience()) -> bytes:
    """Return a small file's bytes, at most `limit` + 1; raise AddressFailed."""
    parts: list[bytes] = []

    def attempt() -> None:
        parts.clear()
        with open_url(url, silence=patience.silence) as answer:
            pace, have = _Pace(patience), 0
            while have <= limit and (chunk := answer.read1(min(CHUNK, limit + 1 - have))):
                parts.append(chunk)
                have += len(chunk)
                pace.add(len(chunk))

    _insist(attempt, patience)
    return b"".join(parts)


def bring(
    url: str, part: Path, *, size: int, patience: Patience, told: Callable[[int], None] = lambda have: None
) -> None:
    """Append what `part` lacks of the `size` bytes at `url`; `told` learns how many it has.

    Raises AddressFailed with the reason; InputMismatch for a file that is longer; NoSpace.
    """

    def attempt() -> None:
        have = part.stat().st_size if part.exists() else 0
        if have >= size:  # complete but not the file wanted, else it would not be a part any more
            part.unlink()
            have = 0
        with open_url(url, start=have, silence=patience.silence) as answer:
            if have and answer.status != 206:
                have = 0
            if have and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                part.unlink()
                raise OSError("answered another range than asked for")
            _append(answer, part, have=have, size=size, patience=patience, told=told, url=url)
        if (have := part.stat().st_size) != size:
            raise OSError(f"truncated: {have} of {size} bytes")

    _insist(attempt, patience)


def _append(
    answer: http.client.HTTPResponse, part: Path, *, have: int, size: int, patience: Patience,
    told: Callable[[int], None], url: str,
) -> None:  # fmt: skip
    pace = _Pace(patience)
    try:
        with part.open("r+b" if have else "wb") as out:
            out.seek(have)
            while chunk := answer.read1(CHUNK):
                have += len(chunk)
                if have > size:
                    raise InputMismatch(f"{url} is longer than the lock says", expected=f"{size} bytes")
                out.write(chunk)
                told(have)
                pace.add(len(chunk))
            out.truncate()
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        if error.errno in NO_ROOM:
            part.unlink(missing_ok=True)
            hint = room_hint(error, space="free some, or set XDG_CACHE_HOME")
            raise NoSpace(f"cannot write {part}: {error.strerror}", hint=hint) from error
        raise


class _Pace:
    """Raises for a server that trickles: it would keep a build waiting for hours without being silent."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since = time.monotonic()
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if now - self._since >= self._patience.window:
            if self._bytes < self._patience.least:
                raise AddressFailed(f"too slow: {self._bytes} bytes in {now - self._since:.0f} s")
            self._since, self._bytes = now, 0


def _insist(attempt: Callable[[], None], patience: Patience) -> None:
    """Try until it succeeds, a bounded number of times."""
    faults: list[str] = []
    for number in range(patience.attempts):
        wait = patience.pause * 2**number * random.uniform(0.5, 1.0)  # so that many builds do not come back at once
        try:
            return attempt()
        except _Later as error:
            faults.append(str(error))
            wait = max(wait, error.seconds or 0.0)
        except OSError as error:
            faults.append(str(error))
        if number + 1 < patience.attempts:
            time.sleep(min(wait, patience.longest))
    raise AddressFailed(", then ".join(dict.fromkeys(faults)))
