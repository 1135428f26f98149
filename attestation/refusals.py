# SPDX-License-Identifier: MIT
"""From the API's one form of an error, `{"error": {"slug", "message"}}`, to our own classes."""

from __future__ import annotations

from . import errors
from .errors import ApiRefusal, MalformedAnswer, escape
from .strict_json import read_json

MAX_REFUSAL = 16 * 1024  # bytes

_CLASSES: dict[str, type[ApiRefusal]] = {
    kind.slug: kind
    for kind in (
        errors.MalformedRequest, errors.CertificateNeeded, errors.NotAvailable, errors.PinMismatch, errors.Frozen,
        errors.JoinIncomplete, errors.InputMismatch, errors.DigestMismatch, errors.RunsSpent, errors.TooLarge,
        errors.Busy, errors.Expired,
    )
}  # fmt: skip


def parse_refusal(status: int, body: bytes) -> ApiRefusal:
    """Return the error that an answer tells; raise MalformedAnswer where it is not of the form."""
    try:
        top = read_json(body, limit=MAX_REFUSAL, what="the isolate's error", refusal=MalformedAnswer)
        error = top.object("error", optional=())["error"].object("slug", "message")
        slug = error["slug"].text(least=1, most=64)
        message = escape(error["message"].text(most=1024))
    except MalformedAnswer as problem:
        raise MalformedAnswer(f"the isolate answered {status} in no form of the API", actual=body) from problem
    kind = _CLASSES.get(slug)
    if kind is None:
        return ApiRefusal(f"the isolate refused ({escape(slug)}): {message}")
    return kind(f"the isolate refused: {message}", hint=kind.cure)
