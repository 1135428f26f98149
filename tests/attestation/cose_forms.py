# SPDX-License-Identifier: MIT
"""Forms of a COSE_Sign1, each soundly signed where it can be, and what each implementation makes of it.

    python -m tests.attestation.cose_forms

writes the table of docs/cose-forms.md anew; a test holds it against what the implementations do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import VeracruzError
from attestation.expectations import Expectations, UnsafeAcceptAnyImage
from attestation.verifier import verify

from .documents import ES384_HEADER, MADE_AT, Pki, make_envelope, make_fields, make_payload, make_pki, malleate, sign
from .second_opinion import pycose_accepts, we_accept

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cose-forms.md"
BEGIN, END = "<!-- begin of the table -->", "<!-- end of the table -->"
HEAD = (
    "| form | our COSE layer | our verify() | pycose |",
    "| --- | --- | --- | --- |",
)
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Form:
    """One form: its bytes, and the key that signed it."""

    name: str
    raw: bytes
    key: ec.EllipticCurvePublicKey


def make_forms(pki: Pki) -> list[Form]:
    """Return every form of the table over the payload of a sound document."""
    leaf, payload = pki.keys["leaf"], make_payload(make_fields(pki))
    sound, signature = make_envelope(payload, leaf), sign(payload, leaf)
    p256 = ec.generate_private_key(ec.SECP256R1())

    def headed(protected: bytes, **changes: Any) -> bytes:
        return make_envelope(payload, leaf, protected=protected, **changes)

    def parts(*values: Any) -> bytes:
        return cbor2.dumps(list(values))

    def raw(*encoded: bytes, head: bytes = b"\x84", tail: bytes = b"") -> bytes:
        return head + b"".join(encoded) + tail

    protected, body, signed = (cbor2.dumps(part) for part in (ES384_HEADER, payload, signature))
    chunks = b"\x5f" + cbor2.dumps(payload[:100]) + cbor2.dumps(payload[100:]) + b"\xff"
    long = b"\x5a" + len(payload).to_bytes(4, "big") + payload
    forms: dict[str, bytes] = {
        "untagged, as every document of AWS": sound,
        "tag 18": b"\xd2" + sound,
        "the larger or the smaller s": headed(ES384_HEADER, signature=malleate(signature)),
        "payload an indefinite map": make_envelope(make_payload(make_fields(pki), indefinite=True), leaf),
        "tag 18 in a longer form": b"\xd8\x12" + sound,
        "tag 18 twice": b"\xd2\xd2" + sound,
        "tag 17 (COSE_Mac0)": b"\xd1" + sound,
        "tag 98 (COSE_Sign)": b"\xd8\x62" + sound,
        "tag 55799 (self-described CBOR)": b"\xd9\xd9\xf7" + sound,
        "a byte after it": sound + b"\0",
        "a second document after it": sound + sound,
        "array of indefinite length": raw(protected, b"\xa0", body, signed, head=b"\x9f", tail=b"\xff"),
        "array of five": raw(protected, b"\xa0", body, signed, signed, head=b"\x85"),
        "array of three": parts(ES384_HEADER, {}, payload),
        "payload in chunks": raw(protected, b"\xa0", chunks, signed),
        "payload's length in a longer form": raw(protected, b"\xa0", long, signed),
        "payload null (detached)": parts(ES384_HEADER, {}, None, signature),
        "payload of text": parts(ES384_HEADER, {}, "text", signature),
        "payload empty": make_envelope(b"", leaf),
        "signature of 95 bytes": headed(ES384_HEADER, signature=signature[:-1]),
        "signature of 97 bytes": headed(ES384_HEADER, signature=signature + b"\0"),
        "signature in DER": headed(ES384_HEADER, signature=leaf.sign(b"", ec.ECDSA(hashes.SHA384()))),
        "signature of zeros": headed(ES384_HEADER, signature=bytes(96)),
        "protected header a map, not in a byte string": parts({1: -35}, {}, payload, signature),
        "protected header of no bytes": parts(b"", {}, payload, sign(payload, leaf, protected=b"")),
        "protected header an empty map": headed(b"\xa0"),
        "protected header of indefinite length": headed(bytes.fromhex("bf013822ff")),
        "protected header with a byte after it": headed(ES384_HEADER + b"\0"),
        "algorithm in a longer form": headed(bytes.fromhex("a1013900 22")),
        "algorithm twice": headed(bytes.fromhex("a2013822013822")),
        "algorithm of text": headed(cbor2.dumps({1: "ES384"})),
        "algorithm a float": headed(cbor2.dumps({1: -35.0})),
        "algorithm in the unprotected header alone": headed(b"", unprotected={1: -35}),
        "algorithm in the unprotected header too, another": headed(ES384_HEADER, unprotected={1: -7}),
        "algorithm ES256, key on P-384": headed(cbor2.dumps({1: -7}), signature=signature[:64]),
        "algorithm unknown (-999)": headed(cbor2.dumps({1: -999})),
        "algorithm -1, unsigned as QEMU's": parts(bytes.fromhex("a10120"), {}, payload, bytes(64)),
        "protected header with a key id": headed(cbor2.dumps({1: -35, 4: b"key"})),
        "protected header with an unknown label": headed(cbor2.dumps({1: -35, 99: 0})),
        "critical label that nobody knows": headed(cbor2.dumps({1: -35, 2: [99], 99: 0})),
        "unprotected header with a key id": headed(ES384_HEADER, unprotected={4: b"key"}),
        "unprotected header an array": parts(ES384_HEADER, [], payload, signature),
    }
    found = [Form(name, document, leaf.public_key()) for name, document in forms.items()]
    es256 = make_envelope(payload, p256, protected=cbor2.dumps({1: -7}))
    return [*found, Form("algorithm ES256, key on P-256", es256, p256.public_key())]


def judge(form: Form, pki: Pki) -> tuple[str, str, str]:
    """Return the verdicts: of our COSE layer, of the whole verifier, of pycose on the decoded array."""
    expected = Expectations.of(UnsafeAcceptAnyImage())

    def whole() -> bool:
        verify(form.raw, expected=expected, at=MADE_AT, roots=[pki.root])
        return True

    return (
        _verdict(lambda: we_accept(form.raw, form.key)),
        _verdict(whole),
        _verdict(lambda: pycose_accepts(form.raw, form.key)),
    )


def _verdict(run: Callable[[], bool]) -> str:
    try:
        return ACCEPTED if run() else "bad signature"
    except VeracruzError as error:
        return error.slug.replace("-", " ")
    except Exception as error:
        return f"`{type(error).__name__}`"


def verdicts() -> Mapping[str, tuple[str, str, str]]:
    """Return what every implementation makes of every form."""
    pki = make_pki()
    return {form.name: judge(form, pki) for form in make_forms(pki)}


def table() -> str:
    """Return the table of the page."""
    rows = [f"| {name} | {' | '.join(found)} |" for name, found in verdicts().items()]
    return "\n".join([*HEAD, *rows])


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
