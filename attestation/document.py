# SPDX-License-Identifier: MIT
"""The attestation document: the payload of the COSE_Sign1, with exactly the form that a Nitro hypervisor gives it.

aws-nitro-enclaves-nsm-api docs/attestation_process.md; where its text and the documents that AWS signs differ, the
documents are followed: optional fields are null rather than left out, may be empty, and have up to 1,024 bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from . import cbor
from .chain import Chain, ChainCache, Root, verify_chain
from .cose import Algorithm
from .errors import MalformedEvidence, MalformedInput
from .limits import (
    MAX_CABUNDLE,
    MAX_CERTIFICATE,
    MAX_FIELD,
    MAX_MODULE_ID,
    MAX_TIMESTAMP_MS,
    PCR_COUNT,
    PCR_SIZE,
)
from .measurements import Measurements

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Profile(ABC):
    """One product's evidence: how its COSE_Sign1 is signed, its payload read, and the key found that signs it.

    What a verifier does with evidence is the same for all (`attestation.verifier.verify`); what differs is here.
    """

    __slots__ = ()

    name: str
    algorithm: Algorithm  # of the signature; another is malformed
    image: tuple[int, ...]  # the registers that together say what runs; each is in every document
    zero_is_debug: bool  # whether a zero in one of them tells of debug mode

    @abstractmethod
    def parse(self, payload: bytes) -> Document:
        """Return what a payload says, or raise MalformedEvidence, naming the field."""

    @abstractmethod
    def trace(
        self, document: Document, *, roots: Sequence[Root], at: datetime, links: ChainCache | None = None
    ) -> Chain:
        """Return the key that has to have signed a document, and what vouches for it among `roots` at a time.

        Raises UntrustedChain or ClockOutOfStep. `links` may make it faster and changes no result.
        """


@dataclass(frozen=True, slots=True)
class NitroProfile(Profile):
    """The family of a Nitro enclave's documents: a map with text keys in one order, certificates among them."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    registers: str  # the key that holds the registers
    digest: str
    register_size: int  # bytes
    register_count: int
    image: tuple[int, ...]
    zero_is_debug: bool
    algorithm: Algorithm = Algorithm.ES384

    def __post_init__(self) -> None:
        needed = {"module_id", "digest", "timestamp", "certificate", "cabundle", self.registers}
        if not all(0 <= index < self.register_count for index in self.image):
            raise MalformedInput(
                f"profile {self.name}: a register of the image is none", expected=f"0..{self.register_count - 1}",
                actual=self.image,
            )  # fmt: skip
        if missing := needed - set(self.required):
            raise MalformedInput(
                f"profile {self.name}: keys that are not required", expected=", ".join(sorted(needed)),
                actual=f"without {', '.join(sorted(missing))}",
            )  # fmt: skip

    def parse(self, payload: bytes) -> Document:
        """Return what a payload says; raise MalformedEvidence, naming the field."""
        return parse_document(payload, profile=self)

    def trace(
        self, document: Document, *, roots: Sequence[Root], at: datetime, links: ChainCache | None = None
    ) -> Chain:
        """Return the chain from the document's certificate through its cabundle to one of the roots."""
        made_at = at if document.timestamp is None else document.timestamp
        return verify_chain(document.certificate, document.cabundle, roots=roots, at=at, made_at=made_at, links=links)


NITRO_ENCLAVE = NitroProfile(
    name="nitro-enclave",
    required=("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"),
    optional=("public_key", "user_data", "nonce"),
    registers="pcrs",
    digest="SHA384",
    register_size=PCR_SIZE,
    register_count=PCR_COUNT,
    image=(0, 1, 2),  # locked from boot on, so always told
    zero_is_debug=True,
)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed attestation document. Nothing in it is to be believed before chain and signature are checked."""

    module_id: str
    digest: str
    timestamp: datetime | None  # None: evidence of a kind that tells none
    pcrs: Mapping[int, bytes]  # locked registers only
    certificate: bytes = field(repr=False)
    cabundle: tuple[bytes, ...] = field(repr=False)
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def measurements(self) -> Measurements:
        """PCR0, PCR1 and PCR2 of a Nitro enclave; another profile's registers are in `pcrs` alone."""
        return Measurements(self.pcrs[0], self.pcrs[1], self.pcrs[2])


def parse_document(payload: bytes, *, profile: NitroProfile = NITRO_ENCLAVE) -> Document:
    """Parse a payload; raise MalformedEvidence, naming the field."""
    fields = cbor.decode(payload, what="payload", open_map=True)
    if type(fields) is not dict:
        raise MalformedEvidence("payload: no map", expected="map", actual=cbor.describe(fields))
    _check_keys(fields, profile)
    public_key = _optional(fields, "public_key")
    if public_key == b"":
        raise MalformedEvidence("public_key: empty", expected=f"1..{MAX_FIELD} bytes, or null", actual="0 bytes")
    return Document(
        module_id=_module_id(fields["module_id"]),
        digest=_digest(fields["digest"], profile),
        timestamp=_timestamp(fields["timestamp"]),
        pcrs=_registers(fields[profile.registers], profile),
        certificate=_certificate(fields["certificate"], "certificate"),
        cabundle=_cabundle(fields["cabundle"]),
        public_key=public_key,
        user_data=_optional(fields, "user_data"),
        nonce=_optional(fields, "nonce"),
    )


def _check_keys(fields: Mapping[cbor.Value, cbor.Value], profile: NitroProfile) -> None:
    known = profile.required + profile.optional
    for key in fields:
        if key not in known:
            raise MalformedEvidence("payload: unknown key", expected=", ".join(known), actual=key)
    for key in profile.required:
        if key not in fields:
            raise MalformedEvidence(
                f"{key}: missing", expected=", ".join(profile.required), actual=", ".join(map(str, fields))
            )
    if list(fields) != [key for key in known if key in fields]:
        raise MalformedEvidence(
            "payload: keys out of order", expected=", ".join(known), actual=", ".join(map(str, fields))
        )


def _module_id(value: cbor.Value) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_MODULE_ID or not (value.isascii() and value.isprintable()):
        raise MalformedEvidence(
            "module_id: wrong form", expected=f"1..{MAX_MODULE_ID} printable characters", actual=_shown(value)
        )
    return value


def _digest(value: cbor.Value, profile: NitroProfile) -> str:
    if type(value) is not str or value != profile.digest:
        raise MalformedEvidence("digest: another algorithm", expected=profile.digest, actual=_shown(value))
    return value


def _timestamp(value: cbor.Value) -> datetime:
    if type(value) is not int or not 0 < value <= MAX_TIMESTAMP_MS:
        raise MalformedEvidence(
            "timestamp: no time in milliseconds", expected=f"1..{MAX_TIMESTAMP_MS}", actual=_shown(value)
        )
    return EPOCH + timedelta(milliseconds=value)


def _registers(value: cbor.Value, profile: NitroProfile) -> Mapping[int, bytes]:
    name, last = profile.registers, profile.register_count - 1
    if type(value) is not dict or not 0 < len(value) <= profile.register_count:
        raise MalformedEvidence(
            f"{name}: wrong form",
            expected=f"map of 1..{profile.register_count} registers",
            actual=cbor.describe(value),
        )
    registers: dict[int, bytes] = {}
    for index, register in value.items():
        if type(index) is not int or not 0 <= index <= last:
            raise MalformedEvidence(f"{name}: wrong index", expected=f"0..{last}", actual=index)
        if type(register) is not bytes or len(register) != profile.register_size:
            raise MalformedEvidence(
                f"{name}[{index}]: no register",
                expected=f"{profile.register_size} bytes",
                actual=cbor.describe(register),
            )
        registers[index] = register
    for index in profile.image:
        if index not in registers:
            raise MalformedEvidence(
                f"{name}[{index}]: missing",
                expected=f"{', '.join(map(str, profile.image))} at least",
                actual=", ".join(map(str, registers)),
            )
    return MappingProxyType(registers)


def _certificate(value: cbor.Value, place: str) -> bytes:
    if type(value) is not bytes or not 0 < len(value) <= MAX_CERTIFICATE:
        raise MalformedEvidence(
            f"{place}: no certificate", expected=f"1..{MAX_CERTIFICATE} bytes", actual=cbor.describe(value)
        )
    return value


def _cabundle(value: cbor.Value) -> tuple[bytes, ...]:
    if type(value) is not tuple or not 0 < len(value) <= MAX_CABUNDLE:
        raise MalformedEvidence(
            "cabundle: wrong form", expected=f"array of 1..{MAX_CABUNDLE} certificates", actual=cbor.describe(value)
        )
    return tuple(_certificate(entry, f"cabundle[{index}]") for index, entry in enumerate(value))


def _optional(fields: Mapping[cbor.Value, cbor.Value], name: str) -> bytes | None:
    value = fields.get(name)
    if value is not None and (type(value) is not bytes or len(value) > MAX_FIELD):
        raise MalformedEvidence(
            f"{name}: wrong form", expected=f"0..{MAX_FIELD} bytes, or null", actual=cbor.describe(value)
        )
    return value


def _shown(value: cbor.Value) -> str:
    return str(value) if isinstance(value, (int, str)) and value != "" else cbor.describe(value)
