# SPDX-License-Identifier: MIT
"""From the policy's bytes to the open port: what `main` does once attestor and zygote are on their way."""

from __future__ import annotations

import contextlib
import socket
import time

from attestation.errors import MalformedPolicy
from attestation.limits import MAX_POLICY
from attestation.measurements import Measurements
from attestation.policy import AWS_ROOT, Policy, parse_policy

from . import cgroup
from .api import Api
from .attestor_client import AttestorClient
from .clock import Clock, set_system_clock
from .errors import Halt
from .events import Events
from .frames import recv_frame
from .identity import make_identity, mix_entropy
from .jobs import Jobs
from .lifecycle import Lifecycle
from .runner import Place, Runner
from .server import Server
from .store import Store
from .surroundings import Surroundings
from .tls import make_context
from .transport import Transport
from .wire import PORT_API, PORT_POLICY, Event
from .zygote import Zygote

POLICY_TIMEOUT = 120.0  # seconds; a host that gives no policy gets no isolate
DIAL_TRIES = 40  # the supervisor may still be starting
DIAL_PAUSE = 0.25  # seconds


def open_policy_channel(transport: Transport) -> socket.socket:
    """Dial the host for its policy; halt where nobody has one."""
    for _ in range(DIAL_TRIES):
        try:
            channel = transport.dial(PORT_POLICY)
        except OSError:
            time.sleep(DIAL_PAUSE)
            continue
        channel.settimeout(POLICY_TIMEOUT)
        return channel
    raise Halt(Event.HALT_POLICY)


def answer_policy(channel: socket.socket, event: Event) -> None:
    """Tell the host by one byte what became of its policy."""
    with contextlib.suppress(OSError):
        channel.sendall(bytes([event]))


def take_policy(channel: socket.socket, nsm: AttestorClient, clock: Clock, surroundings: Surroundings) -> Policy:
    """Read the one policy and bind this isolate to it for good: parsed, in time, in PCR16."""
    try:
        policy = parse_policy(recv_frame(channel, MAX_POLICY))
    except (OSError, MalformedPolicy) as error:
        raise Halt(Event.HALT_POLICY) from error
    now = clock.now()
    if surroundings.is_image:
        set_system_clock(now)
    if clock.passed(policy.lifecycle.not_after):
        raise Halt(Event.EXPIRED)
    if nsm.take_policy(policy.raw) != policy.hash:
        raise Halt(Event.HALT_POLICY_PCR)
    return policy


def check_root(policy: Policy, *, emulated: bool) -> None:
    """Halt where the policy demands AWS's root and this NSM is the emulator's."""
    if emulated and policy.root == AWS_ROOT:
        raise Halt(Event.HALT_ROOT)


def check_image(policy: Policy, nsm: AttestorClient) -> None:
    """Halt unless the policy accepts an image with this isolate's own measurements; debug mode shows none."""
    measurements = Measurements(*nsm.measurements())
    is_debug = not any(any(register) for register in measurements.registers)
    if not is_debug and measurements not in policy.images:
        raise Halt(Event.HALT_IMAGE)


def serve(
    surroundings: Surroundings,
    policy: Policy,
    nsm: AttestorClient,
    clock: Clock,
    events: Events,
    control: socket.socket,
) -> Lifecycle:
    """Make the key, name it to the attestor, open the port; return what tells when it is over."""
    mix_entropy(nsm.random())
    identity = make_identity()
    nsm.set_key(identity.public_key)
    if surroundings.is_image:
        cgroup.prepare()
    lifecycle = Lifecycle(policy, clock, events)
    store = Store(policy, surroundings.directory / "store")
    place = Place(surroundings.directory / "stage", is_root=surroundings.is_root, strict=surroundings.is_image)
    jobs = Jobs(policy, store, lifecycle, Runner(policy, store, Zygote(control), lifecycle, place))
    api = Api(policy, nsm, store, jobs, lifecycle)
    listener = surroundings.transport.listen(PORT_API)
    jobs.start()
    Server(listener, make_context(identity, policy), policy, api, lifecycle).start()
    return lifecycle
