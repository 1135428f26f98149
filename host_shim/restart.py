# SPDX-License-Identifier: MIT
"""Whether another isolate is started after one has died, and when.

Each is a new one: a new key and empty places, so that its participants attest it anew and send their data again.
"""

from __future__ import annotations

from dataclasses import dataclass

from attestation.errors import UsageError

from .errors import IsolateDied

FIRST_PAUSE = 1.0  # seconds; doubled with each death in a row
LONGEST_PAUSE = 60.0  # seconds
SETTLED = 300.0  # seconds of service, after which a death is the first of a new row
MOST = 1_000_000
FORM = "never, on-failure or on-failure:N"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How many deaths in a row are followed by a new start; None for any number."""

    most: int | None = 0

    @classmethod
    def parse(cls, text: str) -> RestartPolicy:
        """Parse what `--restart` was given; raise UsageError."""
        word, separator, number = text.partition(":")
        if text == "never":
            return cls(0)
        if word == "on-failure" and not separator:
            return cls(None)
        valid = number.isascii() and number.isdecimal() and len(number) <= len(str(MOST)) and 1 <= int(number) <= MOST
        if word != "on-failure" or not valid:
            raise UsageError("--restart has another form", expected=f"{FORM} (N from 1 to {MOST})", actual=text)
        return cls(int(number))

    def __str__(self) -> str:
        match self.most:
            case 0:
                return "never"
            case None:
                return "on-failure"
        return f"on-failure:{self.most}"


class Restarts:
    """The deaths of one run of `enclave run`."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._row = 0
        self.total = 0

    def next_pause(self, error: BaseException, *, served: float) -> float | None:
        """Return the seconds until the next start after an isolate that served `served` seconds; None for no start.

        Only what may pass is tried again: not what the image, the policy or the machine would bring about each time.
        """
        if not isinstance(error, IsolateDied) or error.repeats:
            return None
        if served >= SETTLED:
            self._row = 0
        if self._policy.most is not None and self._row >= self._policy.most:
            return None
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._row, 32))
        self._row += 1
        self.total += 1
        return pause
