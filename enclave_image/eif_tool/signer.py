# SPDX-License-Identifier: MIT
"""Let another program sign: what it may write, say and take of time is bounded, whatever program it is."""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import shlex
import subprocess
import sys
import time

from attestation.console import printable, say
from attestation.errors import UsageError, escape

from ..errors import SignerFailed

MAX_SIGNATURE_FILE = 1024  # bytes; P-521 in DER has 139
MAX_TALK = 64 * 1024  # bytes of the signer's messages that are passed on
SIGNER_TIMEOUT = 300  # seconds: a person may have to touch a token
_PIECE = 4096  # bytes
_FAREWELL = 1.0  # seconds to end in, once asked to
_PAUSE = 0.1  # seconds between two looks at whether it has ended


def run_signer(command: str, data: bytes) -> bytes:
    """Return what a signing command writes for `data` on its standard input; raise UsageError, SignerFailed.

    It runs in the user's own environment and at the user's terminal, unlike what a build runs: it may need an agent's
    socket, and ask for a PIN. What it says is passed on at once, escaped. It is killed when it writes more than a
    signature or takes too long; what it started itself is not, and finds its pipes closed.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--signer: {error}") from error
    if not words:
        raise UsageError("--signer: no command")
    name = escape(words[0])
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SignerFailed(f"the signer cannot be started: {name}", actual=reason) from error
    with process:
        try:
            written = _converse(process, data, words[0])
        except KeyboardInterrupt:  # which it has too: it may have a terminal to put right
            _let_end(process)
            raise
        except SignerFailed:
            process.terminate()
            _let_end(process)
            raise
        finally:
            process.kill()  # nothing where it has ended
    if process.returncode != 0:
        raise SignerFailed("the signer failed", expected="exit code 0", actual=process.returncode)
    return written


def _let_end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_FAREWELL)


def _converse(process: subprocess.Popen[bytes], data: bytes, name: str) -> bytes:
    """Return what a process has written when it ends; an agent that it leaves behind may hold its pipes open."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError):  # it may not want it; what it writes is verified anyway
        process.stdin.write(data)  # a few hundred bytes: a pipe takes them at once
        process.stdin.close()
    deadline, written, talk = time.monotonic() + SIGNER_TIMEOUT, b"", _Talk()
    last = time.monotonic() + _FAREWELL  # for what it left behind to write, where it wrote nothing itself
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            ready = selector.select(0 if ended and written else _PAUSE)
            if not ended:
                last = time.monotonic() + _FAREWELL
            elif not ready and (written or not selector.get_map() or time.monotonic() > last):
                return written
            if time.monotonic() > deadline:
                raise SignerFailed("the signer did not end", expected=f"within {SIGNER_TIMEOUT} s", actual=name)
            for key, _ in ready:
                piece = os.read(key.fd, _PIECE)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    talk.pass_on(piece)
                else:
                    written += piece
            if len(written) > MAX_SIGNATURE_FILE:
                raise SignerFailed(
                    "what the signer writes is no signature", expected=f"at most {MAX_SIGNATURE_FILE} bytes",
                    actual="more",
                )  # fmt: skip


class _Talk:
    """A program's messages on their way to a terminal: no control characters, not without end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._left = MAX_TALK

    def pass_on(self, piece: bytes) -> None:
        if self._left <= 0:
            return
        with contextlib.suppress(OSError):  # talk that nobody can hear ends no verb
            sys.stderr.write(printable(self._decoder.decode(piece[: self._left])))
            sys.stderr.flush()
        self._left -= len(piece)
        if self._left <= 0:
            say(f"\nthe signer says more than {MAX_TALK} bytes: the rest is left out")
