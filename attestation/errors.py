# SPDX-License-Identifier: MIT
"""The one form of every error that a user can meet: a slug, what was expected, what came, what to do next."""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_REFUSED = 1  # evidence, policy or rights say no
EXIT_USAGE = 2  # the command or its input is malformed
EXIT_ENVIRONMENT = 3  # the machine lacks something
EXIT_BUILD = 4
EXIT_ISOLATE = 5  # the isolate died
EXIT_JOB = 6  # the job ended non-zero or at a limit

MAX_SHOWN = 200  # characters of an untrusted value that an error repeats


def escape(value: object) -> str:
    """Return untrusted text or bytes as bounded printable ASCII, safe for a terminal and a log."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        text = bytes(value[: MAX_SHOWN // 2 + 1]).hex()
    else:
        text = str(value)[: MAX_SHOWN + 1]
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


class VeracruzError(Exception):
    """The base of all our errors.

    `slug` is stable and documented; `expected` and `actual` are escaped when shown; `hint` names the next command.
    """

    slug: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_REFUSED

    def __init__(self, what: str, *, expected: object = None, actual: object = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.expected = None if expected is None else escape(expected)
        self.actual = None if actual is None else escape(actual)
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.actual is not None:
            parts[-1] += f", got {self.actual}" if self.expected is not None else f": got {self.actual}"
        return "; ".join(parts)


class UsageError(VeracruzError):
    """The command line, or a file named on it, is not of the form that is needed."""

    slug = "usage"
    exit_code = EXIT_USAGE


class EnvironmentLacks(VeracruzError):
    """Something is missing on this machine: a program, space, a port, a permission."""

    slug = "environment"
    exit_code = EXIT_ENVIRONMENT


class AttestationError(VeracruzError):
    """The base of everything that a verifier refuses."""

    slug = "evidence-refused"


class MalformedEvidence(AttestationError):
    """The bytes are not a COSE_Sign1 with exactly the form of an attestation document (point 1)."""

    slug = "malformed-evidence"


class UntrustedChain(AttestationError):
    """The leaf certificate does not chain to the chosen root at the given time (point 2)."""

    slug = "untrusted-chain"


class ClockOutOfStep(UntrustedChain):
    """The chain is sound but for the time given: the caller's clock is likely wrong, or the evidence is old."""

    slug = "clock-out-of-step"


class BadSignature(AttestationError):
    """The signature over the payload is not the leaf's (point 3)."""

    slug = "bad-signature"


class UnsignedEvidence(BadSignature):
    """The document says of itself that nobody signed it, as QEMU's nitro-enclave machine writes it (point 3)."""

    slug = "unsigned-evidence"


class NonceMismatch(AttestationError):
    """The document answers another nonce, or none (point 4)."""

    slug = "nonce-mismatch"


class MeasurementMismatch(AttestationError):
    """The registers are not those of an image that is accepted (point 5)."""

    slug = "measurement-mismatch"


class DebugEvidence(MeasurementMismatch):
    """PCR0, PCR1 or PCR2 is zero: the isolate runs in debug mode and protects nothing (point 5)."""

    slug = "debug-evidence"


class PolicyMismatch(AttestationError):
    """PCR16 or the user data binds another policy, or another purpose (points 6 and 8)."""

    slug = "policy-mismatch"


class KeyMismatch(AttestationError):
    """The evidence names another public key than the connection's (point 7)."""

    slug = "key-mismatch"


class StaleEvidence(AttestationError):
    """The document is older than the caller allows."""

    slug = "stale-evidence"


class EmptyExpectations(AttestationError):
    """Nothing was demanded of the evidence; an empty list of demands does not pass."""

    slug = "empty-expectations"
    exit_code = EXIT_USAGE


class FieldMismatch(AttestationError):
    """A field that the caller pinned (user data, module id, signer ...) has another value."""

    slug = "field-mismatch"


class MalformedInput(UsageError):
    """A policy, measurements file, certificate or other input of the caller's is malformed; the place is named."""

    slug = "malformed-input"


class MalformedPolicy(MalformedInput):
    """A policy does not have the form of veracruz.policy/1; the place is named."""

    slug = "malformed-policy"


class MalformedNsm(VeracruzError):
    """A request to or an answer from the NSM is not of its wire form."""

    slug = "malformed-nsm"


class NsmRefused(VeracruzError):
    """The NSM answered a request with an error of its own."""

    slug = "nsm-refused"


class Unreachable(VeracruzError):
    """Nothing answers at the isolate's address, not in time, or the connection was cut on its way."""

    slug = "unreachable"
    exit_code = EXIT_ISOLATE


class MalformedAnswer(VeracruzError):
    """An answer is not of the API's form, or is larger than it may be."""

    slug = "malformed-answer"


class CertificateRefused(VeracruzError):
    """The isolate ended the connection before its first answer: the certificate is not one of its policy's."""

    slug = "certificate-refused"


class IsolateChanged(VeracruzError):
    """Another isolate answers than the one that this machine pinned under the policy."""

    slug = "isolate-changed"


class ContentMismatch(VeracruzError):
    """A file has other content than its digest says, here or there; nothing of it was kept."""

    slug = "content-mismatch"


class ApiRefusal(VeracruzError):
    """The isolate refused a request; each slug of the API has a class below, an unknown one this."""

    slug = "refused"


class MalformedRequest(ApiRefusal):
    """The isolate did not understand the request: client and image are of different versions, likely."""

    slug = "malformed-request"


class CertificateNeeded(ApiRefusal):
    """Without a certificate of the policy an isolate gives evidence only."""

    slug = "certificate-needed"


class NotAvailable(ApiRefusal):
    """There is no such thing, or no right to it: the isolate answers both with the same bytes."""

    slug = "not-available"


class PinMismatch(ApiRefusal):
    """The policy pins other content for this path."""

    slug = "pin-mismatch"


class Frozen(ApiRefusal):
    """The policy lets this path be written once, and it was."""

    slug = "frozen"


class JoinIncomplete(ApiRefusal):
    """Not everybody on the policy's join list has connected to this isolate yet."""

    slug = "join-incomplete"


class InputMismatch(ApiRefusal):
    """An input is not the one that the job expects."""

    slug = "input-mismatch"


class DigestMismatch(ApiRefusal):
    """What arrived at the isolate is not what the digest named; nothing of it was stored."""

    slug = "digest-mismatch"


class RunsSpent(ApiRefusal):
    """The policy allows no further run of this program on this isolate."""

    slug = "runs-spent"


class TooLarge(ApiRefusal):
    """The file, or all files together, would pass the policy's limits."""

    slug = "too-large"


class Busy(ApiRefusal):
    """Too many requests or jobs at once; the same later may be taken."""

    slug = "busy"


class Expired(ApiRefusal):
    """The policy's last moment has passed, or the isolate has no trusted time."""

    slug = "expired"
