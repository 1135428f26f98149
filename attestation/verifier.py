# SPDX-License-Identifier: MIT
"""The verifier: evidence, expectations, a time and the chosen roots in; an appraisal or a refusal out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from .chain import CLOCK_LEEWAY, Chain, Link, Root
from .chain_cache import ChainCache
from .cose import Sign1, parse_sign1
from .document import NITRO_ENCLAVE, Document, Profile
from .errors import ClockOutOfStep, MalformedEvidence, MalformedInput, UnsignedEvidence, UntrustedChain
from .expectations import Expectations
from .measurements import Measurements
from .terms import Evidence


class Verdict(StrEnum):
    """What an appraisal amounts to; only the first lets a secret go to a machine that one does not trust."""

    VERIFIED = "verified"
    DEVELOPMENT = "verified-development"  # under a root that is not AWS's
    DEBUG = "verified-debug"  # debug mode, under whatever root
    UNSIGNED = "accepted-unsigned"  # nobody vouches for anything in it
    REFUSED = "refused"  # never in an Appraisal: refusals are raised


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was found to hold; `point` is its number in the trust argument."""

    point: int
    words: str | Callable[[], str] = field(repr=False)  # or what makes them, for who asks

    @property
    def what(self) -> str:
        """The same in words."""
        return self.words if isinstance(self.words, str) else self.words()


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What a verified document says."""

    verdict: Verdict
    module_id: str
    timestamp: datetime | None  # None: evidence of a kind that tells none
    digest: str
    pcrs: Mapping[int, bytes]  # locked registers only
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    root: Root | None  # None where an unsigned document was accepted
    chain: tuple[Link, ...]  # leaf first

    @property
    def made(self) -> str:
        """The time that the document tells of itself, in ISO 8601."""
        return "at a time that it does not tell" if self.timestamp is None else self.timestamp.isoformat()

    @property
    def measurements(self) -> Measurements:
        """PCR0, PCR1 and PCR2 of a Nitro enclave; another profile's registers are in `pcrs` alone."""
        return Measurements(self.pcrs[0], self.pcrs[1], self.pcrs[2])


def verify(
    document: bytes, *, expected: Expectations, at: datetime, roots: Sequence[Root], links: ChainCache | None = None
) -> Appraisal:
    """Verify an attestation document; return what it says, or raise an AttestationError.

    A participant is safe to send a secret when all of these hold (`Expectations.for_session` demands 4 to 8):

    1. The bytes are one COSE_Sign1 whose payload has exactly the form of a Nitro attestation document, within its
       size limits (of another product's only where `expected` demands its profile).
    2. The leaf certificate in it chains to the one root that the participant chose, valid at the time given; a root
       named in the policy can narrow that choice, never widen it.
    3. The signature over the payload is the leaf's; the document was made while the leaf was valid, and not after the
       time given.
    4. The document answers the participant's own fresh nonce (exactly 32 bytes).
    5. PCR0, PCR1 and PCR2 together are those of one image that the policy accepts and that the participant's own
       measurements name too; none is zero (a zeroed register means debug mode).
    6. PCR16 was extended once, with the hash of exactly this policy, and is locked; `user_data` names the same policy,
       with exactly the purpose `session` and the nonce and public key that go with it.
    7. `public_key` is the key that signed the handshake of the connection on which the document came.
    8. The policy is the one that the participant has read: its hash is computed from their own file.

    `at` is the time to verify at, timezone-aware: now, for evidence that comes over a connection; the document's own
    (`archived_time`) only for archived evidence. It may be off by `chain.CLOCK_LEEWAY`. The same arguments always have
    the same result: nothing is read but them. `links`, kept from call to call, saves the check of certificates that
    were found sound before; with it, without it and whatever is in it, the result is the same. Raises EmptyExpectations
    where `expected` does not say what may run, and MalformedInput for a naive `at` or an argument of another type.
    """
    steps = examine(document, expected=expected, at=at, roots=roots, links=links)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            appraisal: Appraisal = end.value
            return appraisal


def examine(
    document: bytes, *, expected: Expectations, at: datetime, roots: Sequence[Root], links: ChainCache | None = None
) -> Generator[Check, None, Appraisal]:
    """Do what `verify` does, yielding each check once it has passed; the appraisal is the generator's return value."""
    require_arguments(expected, at, roots)
    if links is not None and not isinstance(links, ChainCache):
        raise MalformedInput("no memory of chains", expected="ChainCache", actual=type(links).__name__)

    sign1 = parse_sign1(document)  # (1)
    _check_envelope(sign1, expected)
    claims = expected.profile.parse(sign1.payload)
    yield Check(1, lambda: f"attestation document of {claims.module_id}, made {_text(claims.timestamp)}")

    chain = None
    if sign1.algorithm is not None:
        verified = chain = expected.profile.trace(claims, roots=roots, at=at, links=links)  # (2)
        _check_anchor(chain, roots)
        yield Check(2, lambda: f"chain to {verified.root.name}, valid at {_text(at)}")
        sign1.verify(chain.key)  # (3)
    _check_time(claims, chain, at)  # of an unsigned document too: one from the future would stay fresh
    if chain is not None:
        yield Check(3, "signature of the leaf over the payload, made while it was valid")

    evidence = Evidence(claims, chain, at)
    debug = expected.check_debug(evidence)  # (5): before other demands, as it explains their failure
    expected.require_content(debug=debug)
    words = "debug mode, which was accepted: image not checked" if debug else "not in debug mode"
    yield Check(5, words + ("; any image was accepted" if expected.accepts_any_image and not debug else ""))
    for demand in expected.demands:  # (2) narrowed, (4) to (8), and what else was pinned
        demand.check(evidence)
        yield Check(demand.point, demand.__str__)

    return Appraisal(
        verdict=_verdict(evidence, debug=debug),
        module_id=claims.module_id,
        timestamp=claims.timestamp,
        digest=claims.digest,
        pcrs=claims.pcrs,
        public_key=claims.public_key,
        user_data=claims.user_data,
        nonce=claims.nonce,
        root=chain.root if chain else None,
        chain=chain.links if chain else (),
    )


def require_arguments(expected: Expectations, at: datetime, roots: Sequence[Root]) -> None:
    """Raise MalformedInput for arguments of `verify` of another type, EmptyExpectations where nothing is demanded."""
    if not isinstance(expected, Expectations):
        raise MalformedInput("no expectations", expected="Expectations.of(...)", actual=type(expected).__name__)
    if not isinstance(at, datetime):
        raise MalformedInput("no time to verify at", expected="a datetime", actual=type(at).__name__)
    if at.utcoffset() is None:
        raise MalformedInput(
            "the time to verify at has no time zone", expected="an aware datetime", actual=at.isoformat()
        )
    require_roots(roots)
    expected.require_content()


def require_roots(roots: object) -> None:
    """Raise MalformedInput for what is no sequence of roots."""
    if not isinstance(roots, Sequence) or not all(isinstance(root, Root) for root in roots):
        raise MalformedInput("no roots", expected="a sequence of Root, such as [aws_root()]", actual=f"{roots!r:.80}")


def archived_time(document: bytes, *, profile: Profile = NITRO_ENCLAVE) -> datetime:
    """Return the time that a document names itself, to verify archived evidence at; not verified, nor is anything.

    Evidence verified at its own time was good then. It says nothing about now: give no secret for it. Raises
    MalformedEvidence where there is none.
    """
    if not isinstance(profile, Profile):
        raise MalformedInput("profile: wrong type", expected="Profile", actual=type(profile).__name__)
    made_at = profile.parse(parse_sign1(document).payload).timestamp
    if made_at is None:
        raise MalformedEvidence("the document tells no time of its own", expected="one", actual="none")
    return made_at


def _check_envelope(sign1: Sign1, expected: Expectations) -> None:
    if sign1.unprotected:
        raise MalformedEvidence("COSE_Sign1: unprotected header", expected="none", actual=sign1.unprotected)
    if sign1.algorithm is None and not expected.accepts_unsigned:
        raise UnsignedEvidence(
            "the document is not signed", expected="ES384", actual="no signature",
            hint="QEMU's nitro-enclave machine writes such documents; anybody can",
        )  # fmt: skip
    wanted = expected.profile.algorithm
    if sign1.algorithm is not None and sign1.algorithm is not wanted:
        raise MalformedEvidence("protected header: wrong algorithm", expected=wanted.name, actual=sign1.algorithm.name)


def _check_anchor(chain: Chain, roots: Sequence[Root]) -> None:
    """Check that what a profile found hangs on what the caller chose, whatever profile it is (point 2)."""
    if not any(chain.root is root or chain.root == root for root in roots):
        raise UntrustedChain(
            "the evidence hangs on an anchor that was not chosen", expected=", ".join(root.name for root in roots),
            actual=chain.root.name,
        )  # fmt: skip


def _check_time(claims: Document, chain: Chain | None, at: datetime) -> None:
    """Check that a document was made before the time given, and by a leaf that was valid (point 3)."""
    made_at = claims.timestamp
    if made_at is None:
        return
    if made_at - at > CLOCK_LEEWAY:
        raise ClockOutOfStep(
            "the document was made after the time given", expected=f"at most {_text(at)}", actual=_text(made_at),
            hint="check this machine's clock",
        )  # fmt: skip
    for leaf in chain.links[:1] if chain else ():
        if leaf.not_before - made_at > CLOCK_LEEWAY or made_at - leaf.not_after > CLOCK_LEEWAY:
            raise UntrustedChain(
                "the document was made while its certificate was not valid",
                expected=f"{_text(leaf.not_before)} to {_text(leaf.not_after)}", actual=_text(made_at),
            )  # fmt: skip


def _verdict(evidence: Evidence, *, debug: bool) -> Verdict:
    if evidence.chain is None:
        return Verdict.UNSIGNED
    if debug:
        return Verdict.DEBUG
    return Verdict.DEVELOPMENT if evidence.chain.root.development else Verdict.VERIFIED


def _text(moment: datetime | None) -> str:
    return "at a time that it does not tell" if moment is None else moment.isoformat(timespec="seconds")
