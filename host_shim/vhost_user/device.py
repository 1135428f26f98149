# SPDX-License-Identifier: MIT
"""The vsock device (virtio 1.2, 5.10): serves the guest's two queues and answers each of its packets."""

from __future__ import annotations

from collections import deque

from . import packet
from .connection import Connection, Outcome, State
from .connections import SMALL_WINDOW, Connections
from .errors import FaultLog, GuestFault
from .inbox import Inbox
from .packet import HEADER, HEADER_SIZE, MAX_PAYLOAD, PARENT_CIDS, Address, Header, split
from .virtqueue import Views, Virtqueue

TRANSMIT_BATCH = 64  # packets from the guest before the host's bytes have their turn
RECEIVE_BATCH = 16  # connections served before the guest's packets have theirs
# A guest that fills its queue slower than we empty it pays a kick and an interrupt for almost every packet. So once it
# has sent LINGER_AFTER bytes and heard none, and its queue held little, it is asked for no kick, and its queue is
# looked at by the clock until that finds nothing. Little is less than the smallest window of a stream and a quarter of
# the queue's places: a guest that waits for credit or for room has filled one of the two, and is served at once.
LINGER_AFTER = 64 * 1024  # bytes
LINGER_BELOW = SMALL_WINDOW  # bytes
LINGER_PART = 4
MAX_RESETS = 1024  # resets that wait for buffers before we read no more packets; Linux's vhost stops likewise
MAX_KEPT_RESETS = 4 * MAX_RESETS  # beyond, they are dropped: the guest finds out by a time limit or its next packet


def _own_fault(error: Exception) -> str:
    return f"a fault of this program's own: {type(error).__name__}"


class Device:
    """The guest's side of all connections, while the guest's driver runs (between `attach` and `detach`)."""

    def __init__(self, connections: Connections, log: FaultLog, *, guest_cid: int) -> None:
        self._connections = connections
        self._log = log
        self._guest_cid = guest_cid
        self._inbox: Inbox | None = None
        self._outbox: Virtqueue | None = None
        self._resets: deque[Address] = deque()
        self._gathering: Connection | None = None  # whose packets, one after another, become one send
        self._taken = 0  # bytes that the guest's queue held since it was empty
        self._chains = 0  # packets, likewise
        self._streak = 0  # bytes that the guest has sent since it was given any, or its queue was found empty
        self._heard = 0  # bytes that the guest had been given then
        self._lingers = False

    @property
    def running(self) -> bool:
        """Whether a guest is there."""
        return self._inbox is not None

    @property
    def lingers(self) -> bool:
        """Whether the guest sends so much that its queue is to be looked at by the clock: it kicks nobody."""
        return self._lingers and self.running

    def attach(self, receive: Virtqueue, transmit: Virtqueue) -> None:
        """Serve these queues from now on."""
        self._inbox = Inbox(receive, self._guest_cid)
        self._outbox = transmit
        self._taken = self._chains = self._streak = self._heard = 0
        self._lingers = False

    def detach(self) -> None:
        """Serve the queues no more, after a last look at what the guest sent: it may have been its last word."""
        if self._inbox is None or self._outbox is None:
            return
        try:
            left = self._outbox.offered()  # what a guest adds meanwhile is for the next start
            while left > 0:
                left -= max(self._take_packets(self._outbox, min(left, TRANSMIT_BATCH)), 1)
            self._outbox.publish()
            self._inbox.release()
        except GuestFault as fault:
            self._pass_on()
            self._log.note(fault.what)
        except Exception as error:
            self._log.note(_own_fault(error))
        self._inbox = self._outbox = None

    def lose_guest(self) -> None:
        """Drop every connection: the guest was reset, or has gone."""
        self._gathering = None
        self._connections.lose_all()
        self._resets.clear()

    def service(self) -> bool:
        """Do some of the work on both queues; return whether there is more to do at once."""
        if self._connections.any_waits:
            self._connections.expire(self._refuse)
        if self._inbox is None or self._outbox is None:
            return False
        try:
            more = self._receive(self._outbox, TRANSMIT_BATCH)
            paused = len(self._resets) >= MAX_RESETS
            if self._connections.ready or self._resets:
                more = self._deliver(self._inbox) or more
            # Side by side: QEMU wakes once, and raises one interrupt for both.
            self._outbox.publish()
            self._inbox.publish()
            return more or (paused and len(self._resets) < MAX_RESETS)
        except GuestFault as fault:
            return self._stop(fault.what)
        except Exception as error:  # a fault of ours, which a guest must not turn into the end of its backend
            return self._stop(_own_fault(error))

    def _stop(self, why: str) -> bool:
        self._log.note(f"the device stops until the guest is reset: {why}")
        self._inbox = self._outbox = None
        self._pass_on()  # what came before
        self.lose_guest()
        return False

    # From the guest

    def _receive(self, outbox: Virtqueue, batch: int) -> bool:
        wanted = min(batch, MAX_RESETS - len(self._resets))  # a packet costs one reset at most
        if wanted <= 0:
            self._lingers = False
            return False  # until the guest offers buffers for them
        taken = self._take_packets(outbox, wanted)
        return taken == wanted or outbox.more or self._rest(outbox)

    def _take_packets(self, outbox: Virtqueue, wanted: int) -> int:
        """Answer up to `wanted` packets; return how many there were."""
        chains = outbox.take(wanted)
        used: list[int] = []
        for head, readable, writable in chains:
            if writable:
                raise GuestFault("a transmit buffer is writable")
            self._take(readable)
            used += (head, 0)
        self._pass_on()
        outbox.push(used)
        self._chains += len(chains)
        return len(chains)

    def _rest(self, outbox: Virtqueue) -> bool:
        """The guest's queue is empty: linger, or ask for a kick; return whether there is more already."""
        taken, self._taken = self._taken, 0
        chains, self._chains = self._chains, 0
        given = self._inbox.given if self._inbox is not None else 0
        if not taken or given != self._heard:
            self._streak, self._heard = 0, given
        self._streak += taken
        little = taken < LINGER_BELOW and chains < outbox.size // LINGER_PART
        self._lingers = little and self._streak >= LINGER_AFTER
        return not self._lingers and outbox.arm()

    def _take(self, views: Views) -> None:
        """Answer one packet. By far the most carry bytes of an open stream: they go the shortest way."""
        size = len(views[0]) if views else 0
        if size < HEADER_SIZE:
            front, payload = split(views, HEADER_SIZE)
            raw = b"".join(front)
            if len(raw) != HEADER_SIZE:
                raise GuestFault("a packet is shorter than its header")
            fields = HEADER.unpack(raw)
        else:
            fields = HEADER.unpack_from(views[0])
            payload = views[1:] if size == HEADER_SIZE else [views[0][HEADER_SIZE:], *views[1:]]
        src_cid, dst_cid, src_port, dst_port, length, kind, op, _, window, forwarded = fields
        connection = self._connections.get((dst_cid, dst_port, src_port))
        if (
            connection is not None and connection.state is State.OPEN and op == packet.RW and kind == packet.STREAM
            and src_cid == self._guest_cid and 0 < length <= MAX_PAYLOAD and sum(map(len, payload)) == length
        ):  # fmt: skip
            self._taken += length
            if connection is not self._gathering:
                self._pass_on()
                self._gathering = connection
            connection.learn_credit(window, forwarded)
            if not connection.take(payload, length):
                self._pass_on()
                self._fault(connection.address, "a packet exceeds its credit")
        else:
            self._pass_on()
            self._answer(Header._make(fields), payload)

    def _pass_on(self) -> None:
        """Send the bytes gathered from one stream's packets to the host."""
        connection = self._gathering
        if connection is not None:
            self._gathering = None
            self._connections.pass_on(connection)

    def _answer(self, header: Header, payload: Views) -> None:
        """Answer any packet. One that breaks the rules costs the guest that connection."""
        if header.src_cid != self._guest_cid:
            self._log.note("a packet with a false source is dropped")
            return
        address = Address(header.dst_cid, header.dst_port, header.src_port)
        available = sum(map(len, payload))
        if header.length != available:
            if header.length > min(available, MAX_PAYLOAD):
                self._fault(address, "a packet is shorter than it says")
                return
            payload = split(payload, header.length)[0]
        if header.length > MAX_PAYLOAD or (header.length and header.op != packet.RW):
            self._fault(address, "a packet has a payload of the wrong length")
        elif header.type != packet.STREAM or header.dst_cid not in PARENT_CIDS:
            if header.op != packet.RST:
                self._refuse(address)
        elif header.op == packet.REQUEST:
            self._open(address, header)
        else:
            self._advance(address, header, payload)

    def _open(self, address: Address, header: Header) -> None:
        if self._connections.get(address) is not None:
            self._fault(address, "a connection is opened twice")
            return
        connection = self._connections.dial(address)
        if connection is None:
            self._refuse(address)
        else:
            connection.learn_credit(header.buf_alloc, header.fwd_cnt)

    def _advance(self, address: Address, header: Header, payload: Views) -> None:
        connection = self._connections.get(address)
        if connection is None:
            if header.op != packet.RST:
                self._refuse(address)
            return
        connection.learn_credit(header.buf_alloc, header.fwd_cnt)
        match header.op, connection.state:
            case packet.RW, State.OPEN:
                if not connection.take(payload, header.length):
                    self._fault(address, "a packet exceeds its credit")
                    return
                self._connections.pass_on(connection)
            case packet.CREDIT_UPDATE, State.OPEN:
                pass
            case packet.CREDIT_REQUEST, State.OPEN:
                connection.owe_credit()
            case packet.SHUTDOWN, State.OPEN:
                if connection.shut_by_guest(header.flags):
                    # Linux waits 8 s for this reset before it forgets the connection.
                    self._refuse(address)
                    self._connections.lose(connection)
                    return
            case packet.RESPONSE, State.REQUESTED:
                self._connections.answered(connection)
            case packet.RST, _:
                self._connections.lose(connection)
                return
            case packet.SHUTDOWN, State.DIALLING:
                self._refuse(address)
                self._connections.close(connection)
                return
            case _:
                self._fault(address, "a packet does not fit its connection")
                return
        self._connections.wake(connection)

    def _fault(self, address: Address, line: str) -> None:
        self._log.note(line)
        connection = self._connections.get(address)
        if connection is not None:
            self._connections.lose(connection)
        self._refuse(address)

    def _refuse(self, address: Address) -> None:
        if len(self._resets) < MAX_KEPT_RESETS:
            self._resets.append(address)

    # To the guest

    def _deliver(self, inbox: Inbox) -> bool:
        starved = False
        while self._resets and not starved:
            if inbox.send(self._resets[0], packet.RST):
                self._resets.popleft()
            else:
                starved = True
        ready = self._connections.ready
        for _ in range(min(len(ready), RECEIVE_BATCH)):
            if starved:
                break
            connection, _ = ready.popitem(last=False)
            match connection.deliver(inbox):
                case Outcome.IDLE:
                    pass
                case Outcome.MORE:
                    inbox.publish()  # the guest reads these bytes while we fetch the next
                    self._connections.wake(connection)
                case Outcome.STARVED:
                    self._connections.wake(connection)
                    ready.move_to_end(connection, last=False)
                    starved = True
                case Outcome.OVER:
                    self._connections.close(connection)
                case Outcome.BROKEN:
                    self._refuse(connection.address)
                    self._connections.close(connection)
        return inbox.arm() if starved else bool(ready or self._resets)
