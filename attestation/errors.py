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
    Of each class that is raised, the docstring is the cause and `cure` what to do: docs/errors.md is made of them.
    """

    slug: ClassVar[str] = "error"
    cure: ClassVar[str] = ""
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
    cure = "Read the message: it names the option or the file. The command with --help lists what it takes."


class EnvironmentLacks(VeracruzError):
    """Something is missing on this machine: a program, space, a port, a permission."""

    slug = "environment"
    exit_code = EXIT_ENVIRONMENT
    cure = "Read the message: it names what this machine lacks; provide that and repeat the command."


class AttestationError(VeracruzError):
    """The base of everything that a verifier refuses."""

    slug = "evidence-refused"


class MalformedEvidence(AttestationError):
    """The bytes are not a COSE_Sign1 with exactly the form of an attestation document (point 1)."""

    slug = "malformed-evidence"
    cure = "Fetch the document again and keep it whole, byte for byte; a verifier repairs nothing."


class UntrustedChain(AttestationError):
    """The leaf certificate does not chain to the chosen root at the given time (point 2)."""

    slug = "untrusted-chain"
    cure = "Check --root: AWS's is the default, any other is a file. If it is right, the evidence is no good."


class ClockOutOfStep(UntrustedChain):
    """Chain or document is sound but for the time given: the caller's clock is likely wrong, or the evidence is old."""

    slug = "clock-out-of-step"
    cure = "Set this machine's clock. Archived evidence: --at TIME, when it was received, or --at document."


class BadSignature(AttestationError):
    """The signature over the payload is not the leaf's (point 3)."""

    slug = "bad-signature"
    cure = "Believe nothing in the document: it was changed, or another key signed it. Fetch it anew."


class UnsignedEvidence(BadSignature):
    """The document says of itself that nobody signed it, as QEMU's nitro-enclave machine writes it (point 3)."""

    slug = "unsigned-evidence"
    cure = "Boot where evidence is signed: on Nitro, or as an isolate under a development root."


class NonceMismatch(AttestationError):
    """The document answers another nonce, or none (point 4)."""

    slug = "nonce-mismatch"
    cure = "Ask for evidence with a fresh nonce and compare with that very one; this may be a replay."


class MeasurementMismatch(AttestationError):
    """The registers are not those of an image that is accepted (point 5)."""

    slug = "measurement-mismatch"
    cure = "Rebuild the image from its lock and compare the registers, or ask the host what was booted."


class DebugEvidence(MeasurementMismatch):
    """PCR0, PCR1 or PCR2 is zero: the isolate runs in debug mode and protects nothing (point 5)."""

    slug = "debug-evidence"
    cure = "Boot without debug mode. --allow-debug is for looking at documents only; it protects nothing."


class PolicyMismatch(AttestationError):
    """PCR16 or the user data binds another policy, or another purpose (points 6 and 8)."""

    slug = "policy-mismatch"
    cure = "Compare hashes (veracruz policy hash FILE): the isolate must enforce exactly the file that you read."


class KeyMismatch(AttestationError):
    """The evidence names another public key than the connection's (point 7)."""

    slug = "key-mismatch"
    cure = "Send nothing: another machine may answer in the isolate's place. Connect and attest again."


class StaleEvidence(AttestationError):
    """The document is older than the caller allows."""

    slug = "stale-evidence"
    cure = "Fetch fresh evidence, or allow a greater age (--max-age) if that is safe for your purpose."


class EmptyExpectations(AttestationError):
    """Nothing was demanded of the evidence; an empty list of demands does not pass.

    Of one document alone (only debug mode was accepted, and it is not in it): refused, exit code 1.
    """

    slug = "empty-expectations"
    exit_code = EXIT_USAGE
    cure = "Say which image may run: --measurements FILE, --pcr for PCR0, PCR1 and PCR2, or --signer."


class FieldMismatch(AttestationError):
    """A field that the caller pinned (user data, module id, signer ...) has another value."""

    slug = "field-mismatch"
    cure = "Compare the value that you pinned with the one shown; if yours is right, refuse the isolate."


class MalformedInput(UsageError):
    """A policy, measurements file, certificate or other input of the caller's is malformed; the place is named."""

    slug = "malformed-input"
    cure = "Correct the file or value at the place that the message names."


class MalformedPolicy(MalformedInput):
    """A policy does not have the form of veracruz.policy/1; the place is named."""

    slug = "malformed-policy"
    cure = "Correct the policy at the place named; veracruz policy check FILE reads it again."


class MalformedNsm(VeracruzError):
    """A request to or an answer from the NSM is not of its wire form."""

    slug = "malformed-nsm"
    cure = "Update host and image to the same version: they disagree on the security module's wire form."


class NsmRefused(VeracruzError):
    """The NSM answered a request with an error of its own."""

    slug = "nsm-refused"
    cure = "Look up the NSM's code in the message; a register may be locked, or a field too long."


class Unreachable(VeracruzError):
    """Nothing answers at the isolate's address, not in time, or the connection was cut on its way."""

    slug = "unreachable"
    exit_code = EXIT_ISOLATE
    cure = "Check the address, that the isolate runs (veracruz enclave list) and that no firewall is between."


class MalformedAnswer(VeracruzError):
    """An answer is not of the API's form, or is larger than it may be."""

    slug = "malformed-answer"
    cure = "Check that the address is an isolate's, and that client and image are of the same version."


class CertificateRefused(VeracruzError):
    """The isolate ended the connection before its first answer: the certificate is not one of its policy's."""

    slug = "certificate-refused"
    cure = "Use the identity whose certificate the policy lists: veracruz policy explain FILE."


class IsolateChanged(VeracruzError):
    """Another isolate answers than the one that this machine pinned under the policy."""

    slug = "isolate-changed"
    cure = "Ask the host why. Only if a new isolate is meant: --new-isolate, and send your files again."


class ContentMismatch(VeracruzError):
    """A file has other content than its digest says, here or there; nothing of it was kept."""

    slug = "content-mismatch"
    cure = "Repeat the transfer. If it stays, the file changed while it was read, or the isolate is faulty."


class ApiRefusal(VeracruzError):
    """The isolate refused a request, with a slug that this client does not know."""

    slug = "refused"
    cure = "Update the client: the isolate answers with a slug that this version does not know."


class MalformedRequest(ApiRefusal):
    """The isolate did not understand the request: client and image are of different versions, likely."""

    slug = "malformed-request"
    cure = "Update client and image to the same version."


class CertificateNeeded(ApiRefusal):
    """Without a certificate of the policy an isolate gives evidence only."""

    slug = "certificate-needed"
    cure = "Name your identity (--identity DIR): without one an isolate gives evidence only."


class NotAvailable(ApiRefusal):
    """There is no such thing, or no right to it: the isolate answers both with the same bytes."""

    slug = "not-available"
    cure = "Wait until it is there, or look up your rights: veracruz policy explain FILE."


class PinMismatch(ApiRefusal):
    """The policy pins other content for this path."""

    slug = "pin-mismatch"
    cure = "Send exactly the file whose hash the policy names: veracruz policy explain FILE."


class Frozen(ApiRefusal):
    """The policy lets this path be written once, and it was."""

    slug = "frozen"
    cure = "Write to another path; what this one holds stays for the isolate's life."


class JoinIncomplete(ApiRefusal):
    """Not everybody on the policy's join list has connected to this isolate yet."""

    slug = "join-incomplete"
    cure = "Let everybody on the join list connect once, with any verb (veracruz ls ...), then run again."


class InputMismatch(ApiRefusal):
    """An input is not the one that the job expects."""

    slug = "input-mismatch"
    cure = "Compare the input's hash with --input: its owner sent another file than you expect."


class DigestMismatch(ApiRefusal):
    """What arrived at the isolate is not what the digest named; nothing of it was stored."""

    slug = "digest-mismatch"
    cure = "Send the file again; it was changed on its way or while it was read."


class RunsSpent(ApiRefusal):
    """The policy allows no further run of this program on this isolate."""

    slug = "runs-spent"
    cure = "Agree on a new isolate: it counts anew, and is another isolate for everybody."


class TooLarge(ApiRefusal):
    """The file, or all files together, would pass the policy's limits."""

    slug = "too-large"
    cure = "Send less, or agree on a policy with greater limits: veracruz policy explain FILE tells them."


class Busy(ApiRefusal):
    """Too many requests or jobs at once; the same later may be taken."""

    slug = "busy"
    cure = "Try again in a moment."


class Expired(ApiRefusal):
    """The policy's last moment has passed, or the isolate has no trusted time."""

    slug = "expired"
    cure = "Agree on a policy with a later last moment, and start a new isolate under it."
