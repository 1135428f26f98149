# SPDX-License-Identifier: MIT
"""The single demands that a relying party can make of evidence: each is a small value that passes or raises."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from .binding import HASH_SIZE, Binding, Purpose, policy_pcr
from .document import Document
from .errors import (
    AttestationError,
    EmptyExpectations,
    FieldMismatch,
    KeyMismatch,
    MalformedInput,
    MeasurementMismatch,
    NonceMismatch,
    PolicyMismatch,
    StaleEvidence,
    UntrustedChain,
)
from .limits import PCR_COUNT, PCR_SIZE, POLICY_PCR
from .measurements import ZERO_PCR, Measurements, instance_pcr, role_pcr
from .terms import Demand, Evidence, require_field, require_text, require_type, shown


@dataclass(frozen=True, slots=True)
class RootIs(Demand):
    """The chain ends at the root with this SHA-256; narrows the choice of roots, never widens it."""

    fingerprint: bytes
    point: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_type(self.fingerprint, bytes, "root's fingerprint")
        if len(self.fingerprint) != HASH_SIZE:
            raise MalformedInput(
                "root's fingerprint: no SHA-256", expected=f"{HASH_SIZE} bytes", actual=self.fingerprint
            )  # fmt: skip

    def check(self, evidence: Evidence) -> None:
        actual = evidence.chain.root.fingerprint if evidence.chain else None
        if actual != self.fingerprint:
            raise UntrustedChain("the policy demands another root", expected=self.fingerprint, actual=actual or "none")

    def __str__(self) -> str:
        return f"root {self.fingerprint.hex()}"


@dataclass(frozen=True, slots=True)
class NonceIs(Demand):
    """The document answers this nonce. An empty nonce binds nothing and cannot be demanded."""

    nonce: bytes
    point: ClassVar[int] = 4

    def __post_init__(self) -> None:
        require_field(self.nonce, "nonce")

    def check(self, evidence: Evidence) -> None:
        actual = evidence.document.nonce
        if actual is None or not hmac.compare_digest(actual, self.nonce):
            raise NonceMismatch("the document answers another nonce", expected=self.nonce, actual=shown(actual))

    def __str__(self) -> str:
        return f"nonce {self.nonce.hex()}"


@dataclass(frozen=True, slots=True)
class ImageIs(Demand):
    """PCR0, PCR1 and PCR2 together are those of one of these images.

    In debug mode there is nothing to compare: whoever accepts that accepts any image.
    """

    images: tuple[Measurements, ...]
    point: ClassVar[int] = 5

    @classmethod
    def any_of(cls, images: Iterable[Measurements]) -> ImageIs:
        """Return the demand for one of these images."""
        require_type(images, Iterable, "images")
        return cls(tuple(images))

    def __post_init__(self) -> None:
        require_type(self.images, tuple, "images")
        if not self.images:
            raise EmptyExpectations("the list of accepted images is empty", expected="one at least", actual="none")
        for image in self.images:
            require_type(image, Measurements, "image")
            if image.debug:
                raise MalformedInput(
                    "a zero register is debug mode and no image's measurement", expected="an image's PCR0, PCR1, PCR2",
                    actual=", ".join(value.hex()[:8] + "..." for value in image.registers),
                )  # fmt: skip

    def check(self, evidence: Evidence) -> None:
        actual = evidence.document.measurements
        if actual in self.images or in_debug_mode(evidence.document):
            return
        image = min(self.images, key=lambda accepted: len(_differing(accepted, actual)))
        index = _differing(image, actual)[0]
        raise MeasurementMismatch(
            f"the isolate runs another image: PCR{index} differs"
            + (f" from the nearest of {len(self.images)} accepted ones" if len(self.images) > 1 else ""),
            expected=image.registers[index],
            actual=actual.registers[index],
            hint="rebuild the image from its lock, or get a measurements file from somebody you trust",
        )

    def __str__(self) -> str:
        return f"image is one of {len(self.images)}" if len(self.images) > 1 else "image is the one accepted"


@dataclass(frozen=True, slots=True)
class RegisterIs(Demand):
    """One register has this value, and is locked (a document lists no others)."""

    index: int
    value: bytes
    point: ClassVar[int] = 5

    def __post_init__(self) -> None:
        require_type(self.index, int, "register")
        require_type(self.value, bytes, f"PCR{self.index}")
        if not 0 <= self.index < PCR_COUNT:
            raise MalformedInput("no such register", expected=f"0..{PCR_COUNT - 1}", actual=self.index)
        if len(self.value) != PCR_SIZE:
            raise MalformedInput(f"PCR{self.index}: wrong size", expected=f"{PCR_SIZE} bytes", actual=len(self.value))

    def check(self, evidence: Evidence) -> None:
        actual = evidence.document.pcrs.get(self.index)
        if actual != self.value:
            raise MeasurementMismatch(
                f"PCR{self.index} differs" if actual else f"PCR{self.index} is not locked: no value",
                expected=self.value, actual=shown(actual),
            )  # fmt: skip

    def __str__(self) -> str:
        return f"PCR{self.index} is {self.value.hex()}"


@dataclass(frozen=True, slots=True)
class SignerIs(Demand):
    """PCR8: the image is signed, by the holder of this certificate (measurements.signer_pcr)."""

    pcr8: bytes
    point: ClassVar[int] = 5

    def __post_init__(self) -> None:
        require_type(self.pcr8, bytes, "signer")
        if len(self.pcr8) != PCR_SIZE or self.pcr8 == ZERO_PCR:
            raise MalformedInput("signer: no value of PCR8", expected=f"{PCR_SIZE} bytes, not zero", actual=self.pcr8)

    def check(self, evidence: Evidence) -> None:
        actual = evidence.document.pcrs.get(8)
        if actual != self.pcr8:
            raise FieldMismatch(
                "PCR8: the image has another signer" if actual and any(actual) else "PCR8: the image is not signed",
                expected=self.pcr8, actual=shown(actual),
            )  # fmt: skip

    def __str__(self) -> str:
        return "image is signed by the certificate of PCR8"


@dataclass(frozen=True, slots=True)
class PolicyIs(Demand):
    """PCR16 and user_data bind this policy, for exactly this purpose, and the other fields fit that purpose."""

    policy_hash: bytes
    purpose: Purpose = Purpose.SESSION
    body_hash: bytes | None = None
    point: ClassVar[int] = 6

    def __post_init__(self) -> None:
        require_type(self.policy_hash, bytes, "policy hash")
        require_type(self.purpose, Purpose, "purpose")
        if self.body_hash is not None:
            require_type(self.body_hash, bytes, "body hash")
        if len(self.policy_hash) != HASH_SIZE:
            raise MalformedInput("policy hash: no SHA-256", expected=f"{HASH_SIZE} bytes", actual=self.policy_hash)

    def check(self, evidence: Evidence) -> None:
        document = evidence.document
        register = document.pcrs.get(POLICY_PCR)  # listed only when locked
        if register != policy_pcr(self.policy_hash):
            raise PolicyMismatch(
                f"PCR{POLICY_PCR} binds another policy" if register else f"PCR{POLICY_PCR} is not locked: no policy",
                expected=policy_pcr(self.policy_hash),
                actual=shown(register),
            )
        if document.user_data is None:
            raise PolicyMismatch(
                "user_data is absent: the document has no purpose", expected=self.purpose, actual="none"
            )
        actual = Binding.decode(document.user_data)
        if actual.purpose is not self.purpose:
            raise PolicyMismatch("the document has another purpose", expected=self.purpose, actual=actual.purpose)
        if actual.policy_hash != self.policy_hash:
            raise PolicyMismatch("user_data binds another policy", expected=self.policy_hash, actual=actual.policy_hash)
        if actual.body_hash != self.body_hash:
            raise PolicyMismatch(
                "user_data binds another body", expected=shown(self.body_hash), actual=shown(actual.body_hash)
            )
        _check_presence(document.nonce, "nonce", demanded=self.purpose is Purpose.SESSION)
        if self.purpose is not Purpose.RECEIPT:
            _check_presence(document.public_key, "public key", demanded=True)

    def __str__(self) -> str:
        return f"PCR{POLICY_PCR} and user_data bind policy {self.policy_hash.hex()} ({self.purpose})"


@dataclass(frozen=True, slots=True)
class PublicKeyIs(Demand):
    """The document names this public key: in a session the one that signed the connection's handshake."""

    public_key: bytes
    point: ClassVar[int] = 7

    def __post_init__(self) -> None:
        require_field(self.public_key, "public key")

    def check(self, evidence: Evidence) -> None:
        actual = evidence.document.public_key
        if actual is None or not hmac.compare_digest(actual, self.public_key):
            raise KeyMismatch("the evidence names another public key", expected=self.public_key, actual=shown(actual))

    def __str__(self) -> str:
        return "public key is the one given"


@dataclass(frozen=True, slots=True)
class UserDataIs(Demand):
    """The document carries this user data, as it is."""

    user_data: bytes

    def __post_init__(self) -> None:
        require_field(self.user_data, "user data")

    def check(self, evidence: Evidence) -> None:
        actual = evidence.document.user_data
        if actual is None or not hmac.compare_digest(actual, self.user_data):
            raise FieldMismatch("the document has other user data", expected=self.user_data, actual=shown(actual))

    def __str__(self) -> str:
        return "user data is the one given"


@dataclass(frozen=True, slots=True)
class ModuleIs(Demand):
    """The document comes from this NSM (`i-...-enc...`): one enclave in one boot."""

    module_id: str

    def __post_init__(self) -> None:
        require_text(self.module_id, "module id")

    def check(self, evidence: Evidence) -> None:
        if evidence.document.module_id != self.module_id:
            raise FieldMismatch("another module", expected=self.module_id, actual=evidence.document.module_id)

    def __str__(self) -> str:
        return f"module is {self.module_id}"


@dataclass(frozen=True, slots=True)
class InstanceIs(Demand):
    """PCR4: the parent is this EC2 instance."""

    instance_id: str

    def __post_init__(self) -> None:
        require_text(self.instance_id, "instance id")

    def check(self, evidence: Evidence) -> None:
        expected, actual = instance_pcr(self.instance_id), evidence.document.pcrs.get(4)
        if actual != expected:
            raise FieldMismatch("PCR4: the parent is another instance", expected=expected, actual=shown(actual))

    def __str__(self) -> str:
        return f"parent instance is {self.instance_id}"


@dataclass(frozen=True, slots=True)
class ParentRoleIs(Demand):
    """PCR3: the parent instance has this IAM role (`arn:aws:iam::ACCOUNT:role/NAME`)."""

    arn: str

    def __post_init__(self) -> None:
        require_text(self.arn, "role")
        if ":instance-profile/" in self.arn or ":assumed-role/" in self.arn:
            raise MalformedInput(
                "role: the ARN is not a role's own", expected="arn:aws:iam::ACCOUNT:role/NAME", actual=self.arn
            )

    def check(self, evidence: Evidence) -> None:
        expected, actual = role_pcr(self.arn), evidence.document.pcrs.get(3)
        if actual != expected:
            raise FieldMismatch(
                "PCR3: the parent has another role" if actual and any(actual) else "PCR3: the parent has no role",
                expected=expected, actual=shown(actual),
            )  # fmt: skip

    def __str__(self) -> str:
        return f"parent role is {self.arn}"


@dataclass(frozen=True, slots=True)
class MaxAge(Demand):
    """The document was made at most this long before the time of verification."""

    age: timedelta

    def __post_init__(self) -> None:
        require_type(self.age, timedelta, "maximum age")
        if self.age < timedelta(0):
            raise MalformedInput("maximum age is negative", expected="0 or more", actual=self.age)

    def check(self, evidence: Evidence) -> None:
        made_at = evidence.document.timestamp
        if made_at is None:
            raise StaleEvidence("the document tells no time", expected=f"one at most {self.age} ago", actual="none")
        age = evidence.at - made_at
        if age > self.age:
            raise StaleEvidence("the document is too old", expected=f"at most {self.age}", actual=age)

    def __str__(self) -> str:
        return f"made at most {self.age} ago"


def in_debug_mode(document: Document) -> bool:
    """Return whether all of PCR0-2 are zero, as debug mode leaves them; a single zero is no form of Nitro's."""
    return set(document.measurements.registers) == {ZERO_PCR}


def _differing(one: Measurements, other: Measurements) -> list[int]:
    return [index for index in range(3) if one.registers[index] != other.registers[index]]


def _check_presence(value: bytes | None, name: str, *, demanded: bool) -> None:
    if bool(value) is not demanded:
        error: type[AttestationError] = NonceMismatch if name == "nonce" else KeyMismatch
        raise error(
            f"the document's purpose and its {name} do not go together",
            expected="one" if demanded else "none",
            actual=shown(value),
        )
