# SPDX-License-Identifier: MIT
"""Test vectors for COSE_Sign1 in the form of the COSE working group's examples, made by pycose.

    python -m tests.attestation.cose_vectors

writes them anew; keys come from a seed and pycose signs deterministically (RFC 6979), so they are always the same.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from pycose.headers import KID, Algorithm
from pycose.keys import EC2Key
from pycose.messages import Sign1Message

from .documents import make_key

FOLDER = Path(__file__).parent / "vectors"
PLAINTEXT = b"This is the content."
KID_VALUE = b"11"
CURVES: Mapping[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
NUMBERS = {"ES256": -7, "ES384": -35, "ES512": -36}  # RFC 9053 2.1
NAMES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
NEXT = {"ES256": "ES384", "ES384": "ES512", "ES512": "ES256"}
Parts = list[Any]  # protected, unprotected, payload, signature


def make_vectors() -> dict[str, dict[str, Any]]:
    """Return every vector by the name of its file."""
    vectors = {}
    for number, name in enumerate(CURVES, start=1):
        for kind, vector in _of(name).items():
            vectors[f"ecdsa-{number:02}-{name.lower()}-{kind}.json"] = vector
    return vectors


def _of(name: str) -> dict[str, dict[str, Any]]:
    key = make_key(CURVES[name], seed=f"vectors {name}")
    sound = _signed(name, key, {Algorithm: name})
    protected, unprotected, _, signature = sound
    other = make_key(CURVES[NEXT[name]], seed=f"vectors {NEXT[name]}")
    unsigned_header = _signed(name, key, {}, {Algorithm: name, KID: KID_VALUE})

    def vector(
        title: str, parts: Parts, *, tag: bytes = b"\xd2", failure: Mapping[str, Any] | None = None,
        shown: ec.EllipticCurvePrivateKey = key,
    ) -> dict[str, Any]:  # fmt: skip
        document: dict[str, Any] = {"title": f"{name}: {title}"}
        if failure is not None:
            document["fail"] = True
        signer = {
            "key": _json_key(shown),
            "protected": {"alg": name} if parts is not unsigned_header else {},
            "unprotected": {"kid": KID_VALUE.decode()} if parts is not unsigned_header else {"alg": name, "kid": "11"},
            "alg": name,
        }
        document["input"] = {"plaintext": PLAINTEXT.decode(), "sign0": signer}
        if failure is not None:
            document["input"]["failures"] = dict(failure)
        document["intermediates"] = {"ToBeSign_hex": _structure(parts is unsigned_header, sound, parts).hex().upper()}
        document["output"] = {"cbor": (tag + cbor2.dumps(parts)).hex().upper()}
        return document

    changed = cbor2.dumps({1: NUMBERS[NEXT[name]]})
    return {
        "pass-tagged": vector("sound, tagged", sound),
        "pass-untagged": vector("sound, untagged", sound, tag=b""),
        "fail-tag": vector("another tag", sound, tag=b"\xd9\x03\xe6", failure={"ChangeTag": 998}),
        "fail-mac0-tag": vector("the tag of COSE_Mac0", sound, tag=b"\xd1", failure={"ChangeTag": 17}),
        "fail-payload": vector(
            "the payload changed", [protected, unprotected, PLAINTEXT[:-1] + b"!", signature],
            failure={"ChangePayload": "This is the content!"},
        ),
        "fail-signature": vector(
            "the signature's last bit changed", [*sound[:3], signature[:-1] + bytes([signature[-1] ^ 1])],
            failure={"ChangeSignature": True},
        ),
        "fail-short-signature": vector(
            "the signature a byte short", [*sound[:3], signature[:-1]], failure={"ChangeSignature": True}
        ),
        "fail-unknown-alg": vector(
            "an unknown algorithm", [cbor2.dumps({1: -999}), *sound[1:]], failure={"ChangeAttr": {"alg": -999}}
        ),
        "fail-changed-alg": vector(
            "the algorithm of another curve", [changed, *sound[1:]], failure={"ChangeAttr": {"alg": NEXT[name]}}
        ),
        "fail-added-protected": vector(
            "a protected attribute added", [cbor2.dumps({1: NUMBERS[name], 3: 0}), *sound[1:]],
            failure={"AddProtected": {"ctyp": 0}},
        ),
        "fail-removed-protected": vector(
            "the protected attribute removed", [b"", *sound[1:]], failure={"RemoveProtected": {"alg": ""}}
        ),
        "fail-unprotected-alg": vector(
            "the algorithm in the unprotected header alone, and signed so", unsigned_header,
            failure={"UnprotectedAlgorithm": name},
        ),
        "fail-curve": vector("a key on another curve", sound, shown=other, failure={"ChangeKey": NEXT[name]}),
        "fail-key": vector(
            "another key on the same curve", sound, shown=make_key(CURVES[name], seed=f"other {name}"),
            failure={"ChangeKey": name},
        ),
        "fail-detached": vector(
            "the payload detached", [protected, unprotected, None, signature], failure={"ChangePayload": None}
        ),
    }  # fmt: skip


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, protected: dict[Any, Any], unprotected: dict[Any, Any] | None = None
) -> Parts:
    message = Sign1Message(phdr=protected, uhdr=unprotected or {KID: KID_VALUE}, payload=PLAINTEXT)
    message.key = _pycose_key(key)
    return list(cbor2.loads(message.encode(tag=False)))


def _structure(without_header: bool, sound: Parts, parts: Parts) -> bytes:
    """Return what the signer signed (RFC 9052 4.4), before anything was changed."""
    protected = parts[0] if without_header else sound[0]
    return cbor2.dumps(["Signature1", protected, b"", PLAINTEXT])


def _coordinates(key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes, bytes]:
    numbers, size = key.private_numbers(), (key.curve.key_size + 7) // 8
    point = numbers.public_numbers
    x, y, d = (number.to_bytes(size, "big") for number in (point.x, point.y, numbers.private_value))
    return x, y, d


def _pycose_key(key: ec.EllipticCurvePrivateKey) -> EC2Key:
    x, y, d = _coordinates(key)
    return EC2Key(crv=NAMES[key.curve.name].replace("-", "_"), x=x, y=y, d=d)


def _json_key(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the public part as a JSON Web Key (RFC 7518 6.2)."""
    x, y, _ = (base64.urlsafe_b64encode(value).rstrip(b"=").decode() for value in _coordinates(key))
    return {"kty": "EC", "kid": KID_VALUE.decode(), "crv": NAMES[key.curve.name], "x": x, "y": y}


def dump(vector: Mapping[str, Any]) -> str:
    """Return a vector's text."""
    return json.dumps(vector, indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, vector in make_vectors().items():
        (FOLDER / file).write_text(dump(vector))
