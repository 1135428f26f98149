# SPDX-License-Identifier: MIT
"""What one QEMU says about its device: features, memory and rings, from its first message to its last."""

from __future__ import annotations

import os
import select
import socket
import struct
from dataclasses import dataclass

from . import protocol
from .device import Device
from .errors import FaultLog, FrontendFault, GuestFault
from .loop import Loop
from .memory import Memory, map_memory
from .protocol import Channel, Feature, Message, ProtocolFeature, Request
from .virtqueue import MAX_SIZE, Layout, Virtqueue

RECEIVE, TRANSMIT = 0, 1  # virtio 1.2, 5.10.2; the event queue stays with QEMU
POLL_S = 0.001  # how often rings without a kick descriptor are looked at
MAX_MESSAGES = 64  # of QEMU's in one round: it is not to keep us from hearing anybody else

_GUEST_CID = struct.Struct("<Q")  # virtio 1.2, 5.10.4: the whole configuration space


@dataclass(slots=True)
class _Ring:
    size: int = 0
    layout: Layout | None = None
    base: int = 0
    kick: int | None = None
    kicked: bool = False  # SET_VRING_KICK came, with a descriptor or without
    call: int | None = None
    enabled: bool = False
    queue: Virtqueue | None = None


class Session:
    """One connection of QEMU's; the device runs while both of its rings are complete and enabled."""

    def __init__(self, connection: socket.socket, device: Device, loop: Loop, log: FaultLog, *, guest_cid: int) -> None:
        self._channel = Channel(connection)
        self._device = device
        self._loop = loop
        self._log = log
        self._config = _GUEST_CID.pack(guest_cid)
        self._features = 0
        self._protocol_features = 0
        self._memory: Memory | None = None
        self._rings = (_Ring(), _Ring())

    @property
    def polls(self) -> bool:
        """Whether a running ring has no kick descriptor and must be looked at now and then."""
        receive, transmit = self._rings
        return (receive.kick is None or transmit.kick is None) and self._device.running

    def receive(self) -> bool:
        """Obey messages that have come, some at once; return whether there may be more.

        Raises EOFError when QEMU has gone, FrontendFault when it errs.
        """
        for _ in range(MAX_MESSAGES):
            message = self._channel.receive()
            if message is None:
                return False
            try:
                self._obey(message)
            finally:
                message.close()
        return True

    def close(self) -> None:
        """QEMU has gone: drop the guest, its memory and every descriptor."""
        self._stop()
        self._device.lose_guest()
        self._memory = None
        for ring in self._rings:
            self._replace_kick(ring, None)
            self._replace_call(ring, None)
        self._channel.close()

    def _obey(self, message: Message) -> None:
        try:
            request = Request(message.request)
        except ValueError:
            raise FrontendFault("unknown vhost-user request", actual=message.request) from None
        answer: bytes | None = None
        match request:
            case Request.GET_FEATURES:
                answer = protocol.U64.pack(Feature.ALL)
            case Request.GET_PROTOCOL_FEATURES:
                answer = protocol.U64.pack(ProtocolFeature.ALL)
            case Request.GET_CONFIG:
                answer = self._read_config(message)
            case Request.GET_VRING_BASE:
                answer = self._stop_ring(message)
            case Request.SET_FEATURES:
                self._features = _subset(message, Feature.ALL)
            case Request.SET_PROTOCOL_FEATURES:
                self._protocol_features = _subset(message, ProtocolFeature.ALL)
            case Request.SET_OWNER | Request.RESET_OWNER:
                pass
            case Request.SET_MEM_TABLE:
                self._set_memory(message)
            case Request.SET_VRING_ADDR:
                self._set_addresses(message)
            case Request.SET_VRING_NUM | Request.SET_VRING_BASE | Request.SET_VRING_ENABLE:
                self._set_state(request, message)
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                self._set_descriptor(request, message)
        if answer is not None:
            self._channel.reply(request, answer)
        elif message.flags & protocol.FLAG_NEED_REPLY and self._protocol_features & ProtocolFeature.REPLY_ACK:
            self._channel.reply(request, protocol.U64.pack(0))

    def _read_config(self, message: Message) -> bytes:
        form = protocol.CONFIG
        if len(message.payload) < form.size:
            raise FrontendFault("malformed vhost-user message")
        offset, size, _ = form.unpack_from(message.payload)
        if offset + size > len(self._config):
            raise FrontendFault("the configuration is read beyond its end")
        # As large as asked, whatever the request's own payload was.
        return form.pack(offset, size, 0) + self._config[offset : offset + size]

    def _ring(self, index: int) -> _Ring:
        if index >= len(self._rings):
            raise FrontendFault("there is no such ring", expected="0 or 1", actual=index)
        return self._rings[index]

    def _set_memory(self, message: Message) -> None:
        self._stop()
        self._memory = map_memory(message)
        self._start()

    def _set_addresses(self, message: Message) -> None:
        index, _, descriptors, used, available, _ = message.unpack(protocol.RING_ADDRESS)
        ring = self._ring(index)
        self._stop()
        ring.layout = Layout(ring.size, descriptors, available, used)
        self._start()

    def _set_state(self, request: Request, message: Message) -> None:
        index, value = message.unpack(protocol.RING_STATE)
        ring = self._ring(index)
        self._stop()
        match request:
            case Request.SET_VRING_NUM:
                fits = 1 <= value <= MAX_SIZE and not value & (value - 1)
                if not fits:  # the guest's own doing: QEMU passes on what it wrote
                    self._log.note("a ring's size is no power of two up to 32768: the device does not start")
                ring.size, ring.layout = value if fits else 0, None
            case Request.SET_VRING_BASE:
                ring.base = value & 0xFFFF
            case _:
                ring.enabled = bool(value)
        self._start()

    def _stop_ring(self, message: Message) -> bytes:
        """The ring stops until its next SET_VRING_KICK: the guest was reset, has ended, or QEMU was told to `stop`."""
        index, _ = message.unpack(protocol.RING_STATE)
        ring = self._ring(index)
        self._stop()
        self._device.lose_guest()
        self._log.new_boot()
        self._replace_kick(ring, None)
        ring.kicked = ring.enabled = False
        return protocol.RING_STATE.pack(index, ring.base)

    def _set_descriptor(self, request: Request, message: Message) -> None:
        (value,) = message.unpack(protocol.U64)
        ring = self._ring(value & protocol.RING_MASK)
        fd = None if value & protocol.NO_FD else message.take_fd()
        if request is Request.SET_VRING_KICK:
            self._stop()
            self._replace_kick(ring, fd)
            ring.kicked = True
            if not self._features & Feature.PROTOCOL:
                ring.enabled = True
            self._start()
        elif request is Request.SET_VRING_CALL:
            self._replace_call(ring, fd)
        elif fd is not None:
            os.close(fd)

    def _replace_kick(self, ring: _Ring, fd: int | None) -> None:
        if ring.kick is not None:
            self._loop.remove(ring.kick)
            os.close(ring.kick)
        ring.kick = fd
        if fd is not None:
            try:
                # Edge-triggered: each kick is an edge, so the counter is never read. The service looks at both rings.
                self._loop.add(fd, lambda events: None, select.EPOLLIN | select.EPOLLET)
            except OSError as error:
                raise FrontendFault("a kick descriptor cannot be waited for") from error

    def _replace_call(self, ring: _Ring, fd: int | None) -> None:
        if ring.call is not None:
            os.close(ring.call)
        ring.call = fd
        if fd is not None:
            try:
                os.set_blocking(fd, False)
            except OSError as error:
                raise FrontendFault("a call descriptor cannot be written to") from error
        if ring.queue is not None:
            ring.queue.call = fd

    def _start(self) -> None:
        """Start the device once everything that it needs is there."""
        receive, transmit = self._rings
        if self._memory is None or not all(r.layout and r.kicked and r.enabled for r in self._rings):
            return
        try:
            receive.queue = self._open_ring(self._memory, receive)
            transmit.queue = self._open_ring(self._memory, transmit)
        except GuestFault as fault:
            self._log.note(f"the device stops until the guest is reset: {fault.what}")
            receive.queue = transmit.queue = None
            return
        self._device.attach(receive.queue, transmit.queue)

    def _open_ring(self, memory: Memory, ring: _Ring) -> Virtqueue:
        if ring.layout is None or ring.layout.size == 0:
            raise GuestFault("a ring has no size")
        event_idx = bool(self._features & Feature.EVENT_IDX)
        return Virtqueue(memory, ring.layout, base=ring.base, event_idx=event_idx, call=ring.call)

    def _stop(self) -> None:
        """Stop serving; each ring's position is kept for the answer to GET_VRING_BASE or the next start."""
        self._device.detach()
        for ring in self._rings:
            if ring.queue is not None:
                ring.base = ring.queue.next
                ring.queue = None


def _subset(message: Message, offered: int) -> int:
    (features,) = message.unpack(protocol.U64)
    if features & ~offered:
        raise FrontendFault("a feature was chosen that was not offered", expected=hex(offered), actual=hex(features))
    return features
