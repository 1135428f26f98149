# SPDX-License-Identifier: MIT
"""A bounded memory of chains that were found sound, so that their certificates' signatures need not be checked again.

What is remembered is a head: certificates from the root downwards, byte for byte, and the length of the whole chain in
which they were found sound. RFC 5280 6.1 passes four things from such a head down to what hangs below it: the last
one's name and key, which are in its bytes; the depth, which the length of the chain fixes; and constraints on names
and policies, with which no chain is sound here; nor is a head remembered that has extensions of a further kind. The one
thing that changes is time: whoever uses a head compares the validity of all its certificates with the time given, each
time. So a chain passes with the memory if and only if it passes without; and no refusal is remembered or made out of
it: what is not found sound is checked whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from .chain_certificate import ChainCertificate
from .errors import MalformedInput

DEFAULT_ENTRIES = 1024  # certificates remembered; a chain of Nitro's shape takes 4, the next leaf of its instance 1
MAX_ENTRIES = 1024 * 1024

_Key = tuple[int, tuple[bytes, ...]]  # certificates in the whole chain; the head's DER, root first


class ChainCache:
    """Heads of sound chains, the least recently used dropped first. Safe to share between threads.

    Give one object to many calls of `verify`. It holds at most `entries` heads. Each keeps one certificate of its own
    (1,024 bytes of DER at most) and shares those above it; docs/verifier-speed.md has the memory as measured.
    """

    __slots__ = ("_entries", "_lock", "_sound")

    def __init__(self, *, entries: int = DEFAULT_ENTRIES) -> None:
        if not 1 <= entries <= MAX_ENTRIES:
            raise MalformedInput("chain cache: wrong size", expected=f"1..{MAX_ENTRIES} entries", actual=entries)
        self._entries = entries
        self._lock = threading.Lock()
        self._sound: OrderedDict[_Key, tuple[ChainCertificate, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sound)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._sound.clear()

    def find(self, path: tuple[bytes, ...]) -> tuple[ChainCertificate, ...]:
        """Return the longest head of a chain (DER, root first) that was found sound in one as long; empty if none is.

        Sound at some time: the caller has to compare each certificate's validity with the time that matters.
        """
        with self._lock:
            for size in range(len(path), 1, -1):
                key = (len(path), path[:size])
                head = self._sound.get(key)
                if head is not None:
                    self._sound.move_to_end(key)
                    return head
        return ()

    def add(self, certificates: Sequence[ChainCertificate]) -> None:
        """Remember a whole chain, root first, that was just found sound, and its heads."""
        chain = tuple(certificates)
        ders = tuple(certificate.der for certificate in chain)
        with self._lock:
            for size in range(len(chain), 1, -1):  # what more chains share is used last, so it is kept longest
                if size < len(chain) and not all(one.speaks_of_itself for one in chain[:size]):
                    continue
                key = (len(chain), ders[:size])
                self._sound[key] = chain[:size]
                self._sound.move_to_end(key)
            while len(self._sound) > self._entries:
                self._sound.popitem(last=False)
