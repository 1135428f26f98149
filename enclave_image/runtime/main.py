# SPDX-License-Identifier: MIT
"""The isolate's one life, in order; nothing is ever restarted.

1. attestor   forked first: it alone opens the NSM
2. zygote     forked before policy, TLS key and files exist
3. policy     one, from the host; well-formed, in time; PCR16 is bound to it, locked, read back
4. root       a policy that demands AWS's root is not for an emulated NSM
5. image      this isolate's own measurements are among the policy's, unless it runs in debug mode
6. key        made inside, named to the attestor
7. serve      only now is anything served

Steps 3 to 7 stand in `serving`, which is imported when the children are on their way: it loads most of the libraries.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import attestor, zygote
from .attestor_client import AttestorClient, AttestorGone, PolicyRefused
from .clock import Clock, ClockFailed
from .errors import Halt
from .events import Events
from .surroundings import Surroundings
from .syscalls import PR_SET_DUMPABLE, prctl
from .wire import Event

GRACE = 0.3  # seconds in which answers that are under way are still written


def main(surroundings: Surroundings) -> None:
    """Run the isolate to its end; return when it is over."""
    if not surroundings.trace:
        sys.excepthook = lambda *_: None
        threading.excepthook = lambda _: None
    os.umask(0o077)
    prctl(PR_SET_DUMPABLE, 0)
    if surroundings.is_image:
        with suppress(OSError):  # inherited by attestor and zygote: where memory runs out, workers go first
            Path("/proc/self/oom_score_adj").write_text("-1000")
    nsm = AttestorClient(attestor.start_attestor(surroundings.transport, surroundings.device))
    events = Events(surroundings.transport)
    try:
        event = live(surroundings, nsm, events)
    except Halt as halt:
        event = halt.event
    except BaseException:
        event = Event.HALT_INTERNAL
        with suppress(Exception):
            sys.excepthook(*sys.exc_info())
    events.tell(event)
    events.close()
    if not event.halts or (surroundings.trace and event is Event.HALT_INTERNAL):
        time.sleep(GRACE)


def live(surroundings: Surroundings, nsm: AttestorClient, events: Events) -> Event:
    """Go through the order above, then wait for the end; return the event that tells it."""
    with halting():
        emulated = nsm.wait_ready()  # (1) no other process starts before the NSM is held
        control = zygote.start_zygote()  # (2)
    events.tell(Event.ATTESTOR_READY)
    from . import serving

    gc.enable()  # `start` turned it off
    clock = Clock(nsm)
    with serving.open_policy_channel(surroundings.transport) as channel:
        try:
            with halting():
                policy = serving.take_policy(channel, nsm, clock, surroundings)  # (3)
                serving.check_root(policy, emulated=emulated)  # (4)
                serving.check_image(policy, nsm)  # (5)
        except Halt as halt:
            serving.answer_policy(channel, halt.event)
            raise
        serving.answer_policy(channel, Event.POLICY_TAKEN)
    events.tell(Event.POLICY_TAKEN)
    with halting():
        lifecycle = serving.serve(surroundings, policy, nsm, clock, events, control)  # (6) (7)
    events.tell(Event.SERVING)
    return lifecycle.wait_for_end()


@contextmanager
def halting() -> Iterator[None]:
    """Turn what cannot be survived into its event."""
    try:
        yield
    except PolicyRefused as error:
        raise Halt(Event.HALT_POLICY_PCR) from error
    except AttestorGone as error:
        raise Halt(Event.HALT_NSM) from error
    except ClockFailed as error:
        raise Halt(Event.HALT_CLOCK) from error
