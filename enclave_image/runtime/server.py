# SPDX-License-Identifier: MIT
"""Accept connections, find out who it is, answer: one thread a connection, few of them, all with deadlines.

Strangers have places of their own, so that they cannot keep participants out once these are known. Before the handshake
everybody is a stranger, so where all of these places are taken the oldest is given to who comes: whoever holds them all
keeps nobody out who is quicker than the next crowd.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import Counter

from attestation.policy import Participant, Policy

from .api import Api
from .attestor_client import AttestorGone
from .errors import ApiError, BrokenHttp, Expired, Hangup
from .http import IDLE_TIMEOUT, Connection, Response
from .lifecycle import Lifecycle
from .tls import identify, shake_hands, wrap
from .wire import Event

MAX_STRANGERS = 24  # connections before or without a certificate
MAX_CONNECTIONS = 64  # of participants, in equal parts; nobody's connections are in another's way
LEAST_CONNECTIONS = 2  # of one participant, however many there are
STRANGERS_IDLE = 10.0  # seconds; participants keep their connections for longer
ACCEPT_PAUSE = 0.05  # seconds; after a failed accept (no descriptors left)
CLOSE_TIMEOUT = 1.0  # seconds for the peer's close_notify
MAX_DRAINED = 64 << 20  # bytes of a refused body that are read, so that its sender gets to the answer


class Server:
    """The one listening socket."""

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext, policy: Policy, api: Api, lifecycle: Lifecycle
    ) -> None:
        self._listener = listener
        self._context = context
        self._policy = policy
        self._api = api
        self._lifecycle = lifecycle
        self._lock = threading.Lock()
        self._strangers: dict[ssl.SSLSocket, None] = {}  # the oldest first
        self._open: Counter[str] = Counter()
        self._most = max(MAX_CONNECTIONS // len(policy.participants), LEAST_CONNECTIONS)

    def start(self) -> None:
        """Serve in threads of their own until the process ends."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                time.sleep(ACCEPT_PAUSE)
                continue
            try:
                tls = wrap(sock, self._context)
            except (OSError, ValueError):
                sock.close()
                continue
            self._let_in(tls)
            try:
                threading.Thread(target=self._guard, args=(tls,), daemon=True).start()
            except RuntimeError:  # no thread can be had
                self._leave(tls, None)

    def _let_in(self, tls: ssl.SSLSocket) -> None:
        """Give a stranger a place, if need be that of the oldest, whose thread then meets the end of its stream."""
        with self._lock:
            if len(self._strangers) >= MAX_STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)  # not SSLSocket's, which drops the TLS state
            self._strangers[tls] = None

    def _recognise(self, tls: ssl.SSLSocket, party: Participant) -> None:
        """Move a stranger to a place of the participant that it is; raise Hangup where these are all taken."""
        with self._lock:
            if tls not in self._strangers or self._open[party.name] >= self._most:
                raise Hangup
            del self._strangers[tls]
            self._open[party.name] += 1

    def _leave(self, tls: ssl.SSLSocket, party: Participant | None) -> None:
        with self._lock:  # before it is closed, or its descriptor could be another's when `_let_in` shuts it down
            self._strangers.pop(tls, None)
            if party is not None:
                self._open[party.name] -= 1
        with contextlib.suppress(OSError):
            tls.close()

    def _guard(self, tls: ssl.SSLSocket) -> None:
        """Run one connection; whatever goes wrong in it ends it, and nothing else but for the NSM."""
        party: Participant | None = None
        try:
            shake_hands(tls)
            known = identify(tls, self._policy)
            if known is not None:
                self._recognise(tls, known)
                party = known
                self._lifecycle.join(party)
            connection = Connection(tls, idle=STRANGERS_IDLE if party is None else IDLE_TIMEOUT)
            self._converse(connection, party)
            self._say_goodbye(tls)
        except (Hangup, OSError):
            pass
        except AttestorGone:
            self._lifecycle.stop(Event.HALT_NSM)
        finally:
            self._leave(tls, party)

    def _converse(self, connection: Connection, party: Participant | None) -> None:
        while True:
            head_only = False
            try:
                request = connection.next_request()
                if request is None:
                    return
                head_only = request.method == "HEAD"
                response = self._api.answer_anonymous(request) if party is None else self._api.answer(request, party)
            except BrokenHttp as error:
                connection.answer(Response.refusal(error, close=True), head_only=head_only)
                return
            except ApiError as error:
                last = party is None or isinstance(error, Expired)
                response = Response.refusal(error, close=last)
            connection.answer(response, head_only=head_only)
            if not connection.finish(0 if party is None else MAX_DRAINED) or response.close:
                return

    @staticmethod
    def _say_goodbye(tls: ssl.SSLSocket) -> None:
        """Send close_notify, so that the end is not taken for a cut."""
        with contextlib.suppress(OSError, ValueError):
            tls.settimeout(CLOSE_TIMEOUT)
            tls.unwrap()
