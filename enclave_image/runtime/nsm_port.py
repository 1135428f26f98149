# SPDX-License-Identifier: MIT
"""The NSM as one function from request to answer: the device of a Nitro Enclave, or the emulator's connection."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Protocol

from attestation.errors import MalformedNsm
from attestation.limits import NSM_RESPONSE_MAX
from attestation.nsm import Request, Response, decode_response, demand, encode_request

from .frames import recv_frame, send_frame
from .transport import Transport
from .wire import PORT_NSM

DEVICE = "/dev/nsm"
NSM_IOCTL = 0xC0200A00  # _IOWR(0x0A, 0, 32 bytes): Linux include/uapi/linux/nsm.h, NSM_IOCTL_RAW
EMULATOR_TIMEOUT = 20.0  # seconds for one answer; without one there is no NSM
DIAL_TRIES = 20  # the supervisor may still be starting
DIAL_PAUSE = 0.25  # seconds


class Nsm(Protocol):
    """What the attestor needs of a security module."""

    emulated: bool

    def ask(self, request: Request) -> Response:
        """Return the answer; raise OSError, MalformedNsm or NsmRefused."""


class _Raw(ctypes.Structure):
    """struct nsm_raw: two iovecs."""

    _fields_ = (
        ("request", ctypes.c_void_p),
        ("request_length", ctypes.c_uint64),
        ("response", ctypes.c_void_p),
        ("response_length", ctypes.c_uint64),
    )


class NsmDevice:
    """The character device of the kernel's NSM driver (drivers/misc/nsm.c)."""

    emulated = False

    def __init__(self, path: str) -> None:
        Path(path).chmod(0o600)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ask(self, request: Request) -> Response:
        """Run one request through the driver."""
        message = encode_request(request)
        question = ctypes.create_string_buffer(message, len(message))
        answer = ctypes.create_string_buffer(NSM_RESPONSE_MAX)
        raw = _Raw(ctypes.addressof(question), len(message), ctypes.addressof(answer), NSM_RESPONSE_MAX)
        fcntl.ioctl(self._descriptor, NSM_IOCTL, raw)
        length = raw.response_length
        if length > NSM_RESPONSE_MAX:
            raise MalformedNsm("answer longer than its buffer", actual=length)
        return demand(decode_response(answer.raw[:length]))


class NsmConnection:
    """The emulator on the host. It gives one connection in a boot: whoever holds it is the only attestor."""

    emulated = True

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.settimeout(EMULATOR_TIMEOUT)

    def ask(self, request: Request) -> Response:
        """Run one request over the connection."""
        send_frame(self._sock, encode_request(request))
        return demand(decode_response(recv_frame(self._sock, NSM_RESPONSE_MAX)))


def open_nsm(transport: Transport, device: str | None) -> Nsm:
    """Choose once: the device where there is one, else the emulator. Raise OSError where neither answers."""
    if device is not None and Path(device).is_char_device():
        return NsmDevice(device)
    failure: OSError | None = None
    for _ in range(DIAL_TRIES):
        try:
            return NsmConnection(transport.dial(PORT_NSM))
        except OSError as error:
            failure = error
            time.sleep(DIAL_PAUSE)
    raise failure or OSError("no NSM")
