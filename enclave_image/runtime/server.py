# SPDX-License-Identifier: MIT
"""Accept connections, find out who it is, answer: one thread a connection, few of them, all with deadlines.

Strangers have places of their own, so that they cannot keep participants out once these are known; before the handshake
everybody is a stranger.
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
from .tls import identify, shake_hands
from .wire import Event

MAX_STRANGERS = 24  # connections before or without a certificate
MAX_CONNECTIONS = 64  # of participants, in equal parts; nobody's connections are in another's way
LEAST_CONNECTIONS = 2  # of one participant, however many there are
STRANGERS_IDLE = 10.0  # seconds; participants keep their connections for longer
ACCEPT_PAUSE = 0.05  # seconds; after a failed accept (no descriptors left)
CLOSE_TIMEOUT = 1.0  # seconds for the peer's close_notify
MAX_DRAINED = 64 << 20  # bytes of a refused body that are read, so that its sender gets to the answer
STRANGER = ""


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
            if self._enter(STRANGER, MAX_STRANGERS):
                threading.Thread(target=self._guard, args=(sock,), daemon=True).start()
            else:
                sock.close()

    def _enter(self, name: str, most: int) -> bool:
        with self._lock:
            if self._open[name] >= most:
                return False
            self._open[name] += 1
            return True

    def _leave(self, name: str) -> None:
        with self._lock:
            self._open[name] -= 1

    def _guard(self, sock: socket.socket) -> None:
        """Run one connection; whatever goes wrong in it ends it, and nothing else."""
        name = STRANGER
        try:
            with shake_hands(sock, self._context) as tls:
                party = identify(tls, self._policy)
                if party is not None:
                    if not self._enter(party.name, self._most):
                        raise Hangup
                    self._leave(STRANGER)
                    name = party.name
                    self._lifecycle.join(party)
                connection = Connection(tls, idle=STRANGERS_IDLE if party is None else IDLE_TIMEOUT)
                self._converse(connection, party)
                self._say_goodbye(tls)
        except (Hangup, OSError):
            pass
        except AttestorGone:
            self._lifecycle.stop(Event.HALT_NSM)
        except BaseException:
            self._lifecycle.stop(Event.HALT_INTERNAL)
            raise
        finally:
            self._leave(name)
            with contextlib.suppress(OSError):
                sock.close()

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
