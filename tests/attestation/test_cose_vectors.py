# SPDX-License-Identifier: MIT
"""The COSE layer reads and judges test vectors in the form of the COSE working group's examples, as pycose does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.cose import Algorithm, parse_sign1
from attestation.errors import AttestationError, BadSignature, MalformedEvidence

from .cose_vectors import FOLDER, dump, make_vectors
from .second_opinion import pycose_accepts

PATHS = sorted(FOLDER.glob("*.json"))
CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
BAD_SIGNATURE = ("-payload", "-signature", "-curve", "-key")  # the other failing vectors are not of our form
PYCOSE_TAKES = "-unprotected-alg"  # docs/cose-forms.md

each_vector = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def _read(path: Path) -> tuple[dict[str, Any], bytes, ec.EllipticCurvePublicKey]:
    vector = json.loads(path.read_text())
    key = vector["input"]["sign0"]["key"]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(key[name] + "==="), "big") for name in ("x", "y"))
    public = ec.EllipticCurvePublicNumbers(x, y, CURVES[key["crv"]]).public_key()
    return vector, bytes.fromhex(vector["output"]["cbor"]), public


@each_vector
def test_a_vector_is_judged_right(path: Path) -> None:
    vector, raw, key = _read(path)
    if not vector.get("fail"):
        parsed = parse_sign1(raw)
        assert parsed.algorithm is Algorithm[vector["input"]["sign0"]["alg"]]
        assert parsed.to_be_signed == bytes.fromhex(vector["intermediates"]["ToBeSign_hex"])
        assert parsed.payload == vector["input"]["plaintext"].encode()
        parsed.verify(key)
        return
    named = path.stem.endswith(BAD_SIGNATURE) and not path.stem.endswith("short-signature")
    with pytest.raises(AttestationError) as refusal:
        parse_sign1(raw).verify(key)
    assert type(refusal.value) is (BadSignature if named else MalformedEvidence)


@each_vector
def test_pycose_reaches_the_same_verdict(path: Path) -> None:
    vector, raw, key = _read(path)
    try:
        verdict = pycose_accepts(raw, key)
    except Exception:  # whatever it raises on what it cannot read
        verdict = False
    assert verdict is (not vector.get("fail") or path.stem.endswith(PYCOSE_TAKES))


def test_there_are_vectors_of_each_algorithm_and_they_are_always_the_same() -> None:
    made = {name: dump(vector) for name, vector in make_vectors().items()}
    assert {path.name: path.read_text() for path in PATHS} == made, "run python -m tests.attestation.cose_vectors"
    for name in ("es256", "es384", "es512"):
        assert sum(f"-{name}-pass-" in path.name for path in PATHS) == 2
        assert sum(f"-{name}-fail-" in path.name for path in PATHS) == 13
