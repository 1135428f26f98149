# SPDX-License-Identifier: MIT
"""The second implementation of COSE_Sign1: pycose's verdict on a document, to hold against ours."""

from __future__ import annotations

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from pycose.keys import EC2Key
from pycose.messages import Sign1Message

from attestation.cose import TAG_SIGN1, parse_sign1
from attestation.errors import BadSignature, UnsignedEvidence

CURVES = {256: "P_256", 384: "P_384", 521: "P_521"}  # by size of the key, pycose's names


def pycose_key(key: ec.EllipticCurvePublicKey) -> EC2Key:
    """Return a key in pycose's form."""
    numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
    x, y = (number.to_bytes(size, "big") for number in (numbers.x, numbers.y))
    return EC2Key(crv=CURVES[key.curve.key_size], x=x, y=y)


def pycose_accepts(raw: bytes, key: ec.EllipticCurvePublicKey) -> bool:
    """Return pycose's verdict on the signature; it raises many types on what it cannot read.

    Its `decode` takes no untagged message, and under cbor2 6 no tagged one, whose parts are then immutable: the tag is
    taken off and the array decoded for it.
    """
    value = cbor2.loads(raw.removeprefix(TAG_SIGN1))
    message = Sign1Message.from_cose_obj(list(value), allow_unknown_attributes=True)  # empties the list
    message.key = pycose_key(key)
    return bool(message.verify_signature())


def we_accept(raw: bytes, key: ec.EllipticCurvePublicKey) -> bool:
    """Return our verdict on the signature; raise MalformedEvidence on what is not of our form."""
    try:
        parse_sign1(raw).verify(key)
    except (BadSignature, UnsignedEvidence):
        return False
    return True
