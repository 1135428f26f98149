# SPDX-License-Identifier: MIT
"""One stream between a port of the guest and a Unix socket of the host, with the credit of both sides."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from enum import Enum, auto

from .inbox import MAX_BURST, Inbox
from .packet import (
    CREDIT_UPDATE,
    REQUEST,
    RESPONSE,
    SHUTDOWN,
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    Address,
    split,
)
from .virtqueue import MAX_CHAIN


class State(Enum):
    """How far a connection has come."""

    DIALLING = auto()  # the guest waits: the host's listener has a full backlog
    REQUESTED = auto()  # the host waits for the guest's answer
    OPEN = auto()
    DRAINING = auto()  # the guest is done with it; what it sent still goes to the host
    CLOSED = auto()


class Outcome(Enum):
    """What `deliver` leaves to do."""

    IDLE = auto()  # nothing until the host or the guest moves
    MORE = auto()  # the host has more, and the guest has credit
    STARVED = auto()  # the guest offers no buffer
    OVER = auto()  # both sides know that it has ended
    BROKEN = auto()  # the host's end was reset


class Connection:
    """The state of one stream; it never blocks, and holds at most `window` bytes.

    Bytes from the guest go to the socket at once, and only what the socket does not take is kept in `backlog`, within
    the credit that the guest was given. Bytes from the host stay in the socket until the guest has credit for them.
    """

    __slots__ = (
        "_burst", "_ending", "_eof", "_gathered", "_gathered_size", "_guest_shut", "_hangup", "_host_deaf",
        "_owes_credit", "_owes_opening", "_peer_forwarded", "_peer_window", "_sent", "_shut", "_shut_told", "_told",
        "accepted", "address", "backlog", "forwarded", "readable", "socket", "state", "waits_for_room",
        "window",
    )  # fmt: skip

    def __init__(self, address: Address, host: socket.socket, *, window: int, accepted: bool) -> None:
        self.address = address
        self.socket = host
        self.window = window  # bytes that the guest may have on the way to the host
        self.accepted = accepted  # the host opened it, not the guest
        self.state = State.REQUESTED if accepted else State.DIALLING
        self.backlog = bytearray()
        self._gathered: list[memoryview] = []  # the guest's bytes of this round, still in its memory
        self._gathered_size = 0
        self.forwarded = 0  # bytes that the host's socket took, or that nobody wants any more
        self._told = 0  # `forwarded` as the guest knows it
        self._sent = 0  # bytes given to the guest
        self._peer_window = 0
        self._peer_forwarded = 0
        self.readable = False  # the host's socket may hold bytes (edge-triggered)
        self._hangup = False  # both halves of the host's socket are shut
        self.waits_for_room = False  # we hear when the host's socket takes bytes again
        self._ending = False  # the host's end of file is somewhere behind its bytes
        self._eof = False  # the host sends no more
        self._host_deaf = False  # the host reads no more
        self._guest_shut = 0  # flags of the guest's SHUTDOWN packets
        self._shut = 0  # flags that the guest is to know of the host
        self._shut_told = 0
        self._owes_opening = REQUEST if accepted else 0
        self._owes_credit = False
        self._burst = 1  # buffers to ask for: twice what the host filled last

    # From the guest

    def opened(self) -> None:
        """Both sides are there: bytes may flow."""
        self.state = State.OPEN
        self.readable = True  # an edge may have passed while nobody could use it

    def answer(self) -> None:
        """Tell the guest that its connection stands."""
        self.opened()
        self._owes_opening = RESPONSE

    def learn_credit(self, window: int, forwarded: int) -> None:
        """Every packet of the guest carries its credit (virtio 1.2, 5.10.6.3)."""
        self._peer_window = window
        self._peer_forwarded = forwarded

    def owe_credit(self) -> None:
        """Answer the guest's CREDIT_REQUEST."""
        self._owes_credit = True

    def take(self, payload: list[memoryview], length: int) -> bool:
        """Gather the guest's bytes for `pass_on`; return False if they exceed its credit."""
        size = self._gathered_size + length
        if len(self.backlog) + size > self.window or self._guest_shut & SHUTDOWN_SEND:
            return False
        if len(self._gathered) + len(payload) > MAX_CHAIN:
            self.pass_on()
            size = length
        self._gathered += payload
        self._gathered_size = size
        return True

    def pass_on(self) -> None:
        """Send what was gathered to the host in one call, and keep what its socket does not take."""
        gathered, size = self._gathered, self._gathered_size
        self._gathered, self._gathered_size = [], 0
        sent = 0
        if not self.backlog:
            sent = self._send(gathered, size)
        if sent < size:
            for view in split(gathered, sent)[1] if sent else gathered:
                self.backlog += view

    def flush(self) -> None:
        """Send what was kept, as far as the host takes it now."""
        while self.backlog:
            sent = self._send([self.backlog], len(self.backlog))
            if not sent:
                return
            del self.backlog[:sent]
        if self._guest_shut & SHUTDOWN_SEND:
            self._shut_down_host(socket.SHUT_WR)

    def _send(self, payload: Sequence[memoryview | bytearray], length: int) -> int:
        sent = length
        if not self._host_deaf:
            try:
                sent = self.socket.sendmsg(payload)
            except BlockingIOError:
                return 0
            except OSError:  # the host reads no more: what comes is counted and dropped
                self._host_deaf = True
                self._shut |= SHUTDOWN_RECEIVE
        self.forwarded += sent
        # A quarter of the window: the guest never stalls, and few packets carry credit alone.
        if self.forwarded - self._told >= self.window >> 2:
            self._owes_credit = True
        return sent

    def shut_by_guest(self, flags: int) -> bool:
        """Note the guest's SHUTDOWN; return whether it has now shut both halves."""
        self._guest_shut |= flags & SHUTDOWN_BOTH
        if self._guest_shut == SHUTDOWN_BOTH:
            return True
        if flags & SHUTDOWN_SEND and not self.backlog:
            self._shut_down_host(socket.SHUT_WR)
        if flags & SHUTDOWN_RECEIVE:
            self._shut_down_host(socket.SHUT_RD)
            self._end_if_over()
        return False

    def drain(self) -> None:
        """The guest is done with it: only what is kept for the host still goes there; what it writes reaches nobody."""
        self.state = State.DRAINING
        self._shut_down_host(socket.SHUT_RD)  # a host that writes before it reads hears of the end

    def _shut_down_host(self, half: int) -> None:
        try:
            self.socket.shutdown(half)
        except OSError:
            self._hangup = True  # the host has gone already

    @property
    def announced(self) -> bool:
        """Whether the guest has heard of it."""
        return not self._owes_opening

    @property
    def owes(self) -> bool:
        """Whether the guest is to be told something, or the host has bytes that may have credit now."""
        return self._owes_credit or self.readable or self._shut != self._shut_told

    # From the host

    def notice(self, events: int) -> None:
        """Note what epoll says of the host's socket."""
        if events & ~select.EPOLLOUT:
            self.readable = True
        if events & (select.EPOLLRDHUP | select.EPOLLHUP):
            self._ending = True
        if events & select.EPOLLHUP:
            self._hangup = True
            self._end_if_over()

    def _end_if_over(self) -> None:
        # The host has closed, and nothing is left to read for the guest.
        if self._hangup and (self._eof or self._guest_shut & SHUTDOWN_RECEIVE):
            self._shut = SHUTDOWN_BOTH

    # To the guest

    @property
    def credit(self) -> int:
        """Bytes that the guest can take now; never negative, whatever it claims."""
        return max(0, self._peer_window - ((self._sent - self._peer_forwarded) & 0xFFFFFFFF))

    def deliver(self, inbox: Inbox) -> Outcome:
        """Give the guest what it is owed, then one burst of the host's bytes."""
        if not self._deliver_owed(inbox):
            return Outcome.STARVED
        if self._shut_told == SHUTDOWN_BOTH:
            return Outcome.OVER
        if self.state is not State.OPEN or not self.readable or self._eof or self._guest_shut & SHUTDOWN_RECEIVE:
            return Outcome.IDLE
        limit = self.credit
        if not limit:
            return Outcome.IDLE
        if not inbox.reserve(self._burst):
            return Outcome.STARVED
        try:
            count, buffers, more = inbox.fill(
                self.socket, self.address,
                limit=limit, burst=self._burst, window=self.window, forwarded=self.forwarded,
            )  # fmt: skip
        except BlockingIOError:
            self.readable = False
            return Outcome.IDLE
        except OSError:
            return Outcome.BROKEN
        if not count:
            self._eof = True
            self._shut |= SHUTDOWN_SEND
            self._end_if_over()
            return Outcome.MORE
        self._sent += count
        self._told, self._owes_credit = self.forwarded, False
        # An end of file that came along with these bytes gives no second edge.
        self.readable = more or self._ending
        self._burst = min(2 * buffers, MAX_BURST)
        return Outcome.MORE if self.readable else Outcome.IDLE

    def _deliver_owed(self, inbox: Inbox) -> bool:
        if self._owes_opening:
            if not self._tell(inbox, self._owes_opening, 0):
                return False
            self._owes_opening = 0
        if self._shut != self._shut_told and self.state is State.OPEN:
            shut = self._shut
            if not self._tell(inbox, SHUTDOWN, shut):
                return False
            self._shut_told = shut
        return not self._owes_credit or self._tell(inbox, CREDIT_UPDATE, 0)

    def _tell(self, inbox: Inbox, op: int, flags: int) -> bool:
        if not inbox.send(self.address, op, flags=flags, window=self.window, forwarded=self.forwarded):
            return False
        self._told, self._owes_credit = self.forwarded, False
        return True
