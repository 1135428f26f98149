# SPDX-License-Identifier: MIT
"""What the API refuses, each with its status and slug, and the halts that end the isolate.

Every answer is a constant of its class: forbidden and absent give the same bytes, and nothing of a file's content,
size or name enters an error.
"""

from __future__ import annotations

import json
from typing import ClassVar

from attestation.errors import VeracruzError

from .wire import Event


class Halt(Exception):
    """End the isolate with one event code; the reason beyond the code is not told to anybody."""

    def __init__(self, event: Event) -> None:
        super().__init__(event.name)
        self.event = event


class Hangup(Exception):
    """The peer went away, was too slow, or broke the framing: close the connection without an answer."""


class ApiError(VeracruzError):
    """The base of what the API answers instead of what was asked for."""

    status: ClassVar[int] = 400
    message: ClassVar[str] = "refused"

    def __init__(self) -> None:
        super().__init__(self.message)

    @classmethod
    def body(cls) -> bytes:
        """Return the JSON form, the same bytes for the same class."""
        return json.dumps({"error": {"slug": cls.slug, "message": cls.message}}).encode()


class MalformedRequest(ApiError):
    slug = "malformed-request"
    message = "the request is not of the API's form"


class BrokenHttp(MalformedRequest):
    """The same to its sender, but the connection cannot go on: where the next request begins is unknown."""


class CertificateNeeded(ApiError):
    status = 401
    slug = "certificate-needed"
    message = "without a certificate of the policy only GET /v1/attestation?nonce= is answered"


class NotAvailable(ApiError):
    status = 404
    slug = "not-available"
    message = "there is no such thing, or you have no right to it"


class PinMismatch(ApiError):
    status = 409
    slug = "pin-mismatch"
    message = "the policy pins other content for this path"


class Frozen(ApiError):
    status = 409
    slug = "frozen"
    message = "the path was written once and is frozen"


class JoinIncomplete(ApiError):
    status = 409
    slug = "join-incomplete"
    message = "not everybody on the policy's join list has connected to this isolate"


class InputMismatch(ApiError):
    status = 409
    slug = "input-mismatch"
    message = "an input is not the one that the job expects"


class DigestMismatch(ApiError):
    status = 409
    slug = "digest-mismatch"
    message = "the body is not the one that X-Content-SHA256 names"


class RunsSpent(ApiError):
    status = 409
    slug = "runs-spent"
    message = "the policy allows no further run of this program"


class TooLarge(ApiError):
    status = 413
    slug = "too-large"
    message = "the policy's limit on a file or on your storage would be passed"


class Busy(ApiError):
    status = 429
    slug = "busy"
    message = "too many requests or jobs of this kind; try again later"


class Expired(ApiError):
    status = 503
    slug = "expired"
    message = "the policy's time is over, or the isolate has no trusted time"
