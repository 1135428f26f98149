# SPDX-License-Identifier: MIT
"""What a relying party expects of evidence: demands and permissions, composed into one conjunction.

`Expectations.of(ImageIs.any_of(images), NonceIs(nonce))`, or `Expectations.for_session(...)`. Nothing is demanded by
default but that the isolate is not in debug mode; whatever accepts more has a name that begins with `Unsafe`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .binding import Purpose
from .demands import (
    ImageIs,
    InstanceIs,
    MaxAge,
    ModuleIs,
    NonceIs,
    ParentRoleIs,
    PolicyIs,
    PublicKeyIs,
    RegisterIs,
    RootIs,
    SignerIs,
    UserDataIs,
)
from .document import NITRO_ENCLAVE, Profile
from .errors import DebugEvidence, EmptyExpectations, MalformedInput, MeasurementMismatch
from .limits import NONCE_SIZE
from .measurements import Measurements
from .terms import Demand, Evidence, Term, require_type

if TYPE_CHECKING:
    from .policy import Policy

__all__ = [
    "Demand",
    "Evidence",
    "Expectations",
    "ImageIs",
    "InstanceIs",
    "MaxAge",
    "ModuleIs",
    "NonceIs",
    "ParentRoleIs",
    "Permission",
    "PolicyIs",
    "ProfileIs",
    "PublicKeyIs",
    "RegisterIs",
    "RootIs",
    "SignerIs",
    "Term",
    "UnsafeAcceptAnyImage",
    "UnsafeAcceptDebug",
    "UnsafeAcceptUnsigned",
    "UserDataIs",
    "accepted_images",
]


# Demands and permissions that know what a Nitro enclave's registers and fields mean.
PROFILE_PARTS = ("name", "algorithm", "image", "zero_is_debug")
ENCLAVE_TERMS = (ImageIs, SignerIs, PolicyIs, InstanceIs, ParentRoleIs)


@dataclass(frozen=True, slots=True)
class ProfileIs(Term):
    """The document is another product's: its payload has this profile, and a Nitro enclave's is refused.

    What runs is then said by RegisterIs, for each register of `profile.image`; demands that give a Nitro enclave's
    registers a meaning (ImageIs, SignerIs, PolicyIs, ...) do not go with it.
    """

    profile: Profile

    def __post_init__(self) -> None:
        require_type(self.profile, Profile, "profile")
        if missing := [name for name in PROFILE_PARTS if not hasattr(self.profile, name)]:
            raise MalformedInput(
                "profile: not whole", expected=", ".join(PROFILE_PARTS), actual=f"without {', '.join(missing)}"
            )
        if not self.profile.image:  # whoever demands all of none demands nothing
            raise MalformedInput(
                f"profile {self.profile.name}: no register says what runs", expected="one at least", actual="none"
            )


class Permission(Term):
    """Something unsafe that the relying party accepts."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class UnsafeAcceptAnyImage(Permission):
    """Accept evidence of any code whatever: it then only shows that some isolate made the document."""


@dataclass(frozen=True, slots=True)
class UnsafeAcceptDebug(Permission):
    """Accept an isolate in debug mode, whose console and memory its host reads: no image can be checked then.

    Participants take it under a development root only; `development_only=False` is for looking at documents.
    """

    development_only: bool = True


@dataclass(frozen=True, slots=True)
class UnsafeAcceptUnsigned(Permission):
    """Accept QEMU's unsigned documents, which anybody can write: neither chain nor signature is checked then."""


def accepted_images(policy: Policy, measurements: Sequence[Measurements]) -> ImageIs:
    """Return the demand for an image that the policy and the participant's own measurements both name.

    Raises MeasurementMismatch if there is none.
    """
    images = [image for image in policy.images if image in measurements]
    if not images:
        raise MeasurementMismatch(
            "the policy accepts no image that your measurements name",
            expected=" or ".join(image.pcr0.hex()[:16] + "..." for image in policy.images),
            actual=" or ".join(image.pcr0.hex()[:16] + "..." for image in measurements) or "none",
            hint="compare the policy's images with the measurements of your own rebuild",
        )
    return ImageIs.any_of(images)


@dataclass(frozen=True)
class Expectations:
    """A conjunction of demands, and the unsafe things that are accepted. One without content never passes.

    What follows from its terms is worked out once, when it is first asked for.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Refuse what is neither a demand nor a permission: passed over, it would be a check that nobody makes."""
        require_type(self.terms, tuple, "expectations")
        for term in self.terms:
            if not isinstance(term, (Demand, Permission, ProfileIs)):
                raise MalformedInput(
                    "expectations: not a term", expected="a demand or a permission, such as NonceIs(nonce)",
                    actual=f"{term!r:.80}", hint="two Expectations are combined by &, a class is called with its value",
                )  # fmt: skip

    @classmethod
    def of(cls, *terms: Term) -> Expectations:
        """Return the conjunction of these terms; raise MalformedInput for what is none."""
        return cls(terms)

    @classmethod
    def for_session(
        cls, policy: Policy, measurements: Sequence[Measurements], nonce: bytes, public_key: bytes
    ) -> Expectations:
        """Return what a participant demands before a connection is trusted: points 4 to 8 of the trust argument.

        `policy` is the participant's own file, parsed; `measurements` their own rebuild's or from a signer they trust;
        `nonce` 32 fresh random bytes; `public_key` the DER SPKI that signed this connection's handshake. An image that
        only one of policy and measurements names is not accepted; raises MeasurementMismatch if none is in both.
        """
        require_type(nonce, bytes, "nonce")
        if len(nonce) != NONCE_SIZE:
            raise MalformedInput("nonce: wrong size", expected=f"{NONCE_SIZE} bytes", actual=len(nonce))
        terms: list[Term] = [
            NonceIs(nonce),  # (4)
            accepted_images(policy, measurements),  # (5)
            PolicyIs(policy.hash, Purpose.SESSION),  # (6), and (8): the hash is of the caller's own file
            PublicKeyIs(public_key),  # (7)
        ]
        if policy.root is not None:
            terms.append(RootIs(policy.root))  # (2)
        return cls(tuple(terms))

    def __and__(self, other: Expectations | Term) -> Expectations:
        """Return the conjunction of both."""
        return Expectations(self.terms + (other.terms if isinstance(other, Expectations) else (other,)))

    @cached_property
    def demands(self) -> tuple[Demand, ...]:
        """All demands, in the order of the trust argument."""
        found = (term for term in self.terms if isinstance(term, Demand))
        return tuple(sorted(found, key=lambda demand: demand.point))

    @cached_property
    def profile(self) -> Profile:
        """The profile that the payload must have: a Nitro enclave's, unless ProfileIs says another."""
        profiles = [term.profile for term in self.terms if isinstance(term, ProfileIs)] or [NITRO_ENCLAVE]
        profile = profiles[0]
        if any(other != profile for other in profiles):
            raise MalformedInput(
                "two profiles are demanded", expected="one", actual=", ".join(sorted({p.name for p in profiles}))
            )
        if profile != NITRO_ENCLAVE and any(
            isinstance(term, (*ENCLAVE_TERMS, UnsafeAcceptDebug)) for term in self.terms
        ):
            raise MalformedInput(
                "a demand on a Nitro enclave does not go with another profile", expected=NITRO_ENCLAVE.name,
                actual=profile.name,
            )  # fmt: skip
        return profile

    @cached_property
    def names_image(self) -> bool:
        """Whether it is said what code may run: some images, PCR0-2 together, a signer, or aloud any."""
        return self.demands_image or any(isinstance(term, UnsafeAcceptAnyImage) for term in self.terms)

    @cached_property
    def demands_image(self) -> bool:
        """Whether some code is demanded: some images, PCR0-2 together, or a signer."""
        if any(isinstance(term, (ImageIs, SignerIs)) for term in self.terms):
            return True
        return set(self.profile.image) <= {term.index for term in self.terms if isinstance(term, RegisterIs)}

    @cached_property
    def accepts_any_image(self) -> bool:
        """Whether any code is accepted: UnsafeAcceptAnyImage was given, and nothing beside it demands some."""
        return self.names_image and not self.demands_image

    @cached_property
    def accepts_unsigned(self) -> bool:
        """Whether UnsafeAcceptUnsigned was given."""
        return any(isinstance(term, UnsafeAcceptUnsigned) for term in self.terms)

    def require_content(self, *, debug: bool | None = None) -> None:
        """Raise EmptyExpectations if nothing says what code may run; `debug` is None before the document is read."""
        if self.names_image:
            return
        if debug is not False and any(isinstance(term, UnsafeAcceptDebug) for term in self.terms):
            return
        raise EmptyExpectations(
            "nothing says which image may run" if self.terms else "nothing is demanded of the evidence",
            expected="PCR0, PCR1 and PCR2 of an image",
            actual=", ".join(type(term).__name__ for term in self.terms) or "nothing",
            hint="give measurements (PCR0, PCR1 and PCR2 together), or accept any image aloud",
        )

    def check_debug(self, evidence: Evidence) -> bool:
        """Return whether the isolate is in debug mode; raise DebugEvidence unless that is accepted (point 5)."""
        registers = {index: evidence.document.pcrs.get(index, b"") for index in self.profile.image}
        zeros = [f"PCR{index}" for index, value in registers.items() if not any(value)]
        if not self.profile.zero_is_debug or not zeros:
            return False
        refusal = DebugEvidence(
            f"{_listed(registers)} is zero: the isolate runs in debug mode and protects nothing",
            expected="an image's measurements",
            actual=f"zero in {', '.join(zeros)}",
            hint="boot without debug mode",
        )
        permissions = [term for term in self.terms if isinstance(term, UnsafeAcceptDebug)]
        if not permissions:
            raise refusal
        development = evidence.chain is None or evidence.chain.root.development
        if not development and all(permission.development_only for permission in permissions):
            raise refusal
        return True


def _listed(registers: Iterable[int]) -> str:
    *first, last = [f"PCR{index}" for index in registers]
    return f"{', '.join(first)} or {last}" if first else last
