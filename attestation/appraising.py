# SPDX-License-Identifier: MIT
"""Fresh evidence of an isolate, fetched and verified: what comes before anything is sent to it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from .chain import Root
from .channel import Evidence, fetch_evidence
from .endpoint import Endpoint
from .errors import DebugEvidence, UsageError
from .expectations import Expectations, UnsafeAcceptDebug
from .limits import NONCE_SIZE
from .measurements import Measurements
from .policy import Policy
from .verifier import Appraisal, Verdict, verify


@dataclass(frozen=True, slots=True)
class Trust:
    """What a participant takes for true of their own accord: a root, and the images of their own measurements.

    `images` is empty only where a debug isolate is expected, which has none; `allow_debug` never goes with AWS's root.
    """

    root: Root
    images: tuple[Measurements, ...]
    allow_debug: bool = False

    def __post_init__(self) -> None:
        if self.allow_debug and not self.root.development:
            raise UsageError("--allow-debug goes with a development root only", hint="name it: --root FILE")
        if not self.images and not self.allow_debug:
            raise UsageError(
                "no image is trusted", expected="PCR0, PCR1 and PCR2 of your own", hint="--measurements FILE"
            )


def appraise(
    endpoint: Endpoint, policy: Policy, trust: Trust, *, clock: Callable[[], datetime]
) -> tuple[Evidence, Appraisal]:
    """Fetch evidence with a fresh nonce and verify all eight points; raise what does not hold.

    `clock` is asked once the evidence is here: the way may have been long, and an isolate still have been starting.
    """
    evidence = fetch_evidence(endpoint, secrets.token_bytes(NONCE_SIZE))
    return evidence, verify_session(evidence, policy, trust, at=clock())


def verify_session(evidence: Evidence, policy: Policy, trust: Trust, *, at: datetime) -> Appraisal:
    """Verify evidence that came over a connection of ours; raise what does not hold."""
    images: Sequence[Measurements] = trust.images or policy.images
    expected = Expectations.for_session(policy, images, evidence.nonce, evidence.public_key)
    if trust.allow_debug:
        expected &= UnsafeAcceptDebug()
    appraisal = verify(evidence.document, expected=expected, at=at, roots=[trust.root])
    if appraisal.verdict is not Verdict.DEBUG and not trust.images:
        raise DebugEvidence(
            "the isolate is not in debug mode, so it has an image, and you trust none",
            expected="an image that you trust",
            actual="none",
            hint="--measurements FILE, of your own rebuild or from somebody you trust",
        )
    return appraisal
