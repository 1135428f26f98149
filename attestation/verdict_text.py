# SPDX-License-Identifier: MIT
"""A verdict as it is told: JSON under one schema, or lines for a person."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .console import error_fields
from .errors import AttestationError
from .measurements import dump_measurements
from .verifier import Appraisal, Check, Verdict

SCHEMA = "veracruz.appraisal/1"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of one document: an appraisal or a refusal, and the checks that it passed before."""

    file: str
    at: datetime | None  # None where the document's own time was asked for, and it tells none
    time: str  # whose that is: now, document, given
    checks: tuple[Check, ...]
    failed: Check | None  # the one that did not pass
    outcome: Appraisal | AttestationError

    @property
    def verdict(self) -> Verdict:
        """The verdict, refusals included."""
        return self.outcome.verdict if isinstance(self.outcome, Appraisal) else Verdict.REFUSED


def dump_judgement(judgement: Judgement) -> dict[str, Any]:
    """Return the JSON object of one document; of refused evidence nothing is repeated as a fact."""
    outcome = judgement.outcome
    appraisal = outcome if isinstance(outcome, Appraisal) else None
    told = error_fields(outcome) if isinstance(outcome, AttestationError) else dict.fromkeys(_ERROR_FIELDS)
    return {
        "schema": SCHEMA,
        "file": judgement.file,
        "verdict": judgement.verdict.value,
        **told,
        "verified_at": None if judgement.at is None else judgement.at.isoformat(),
        "time": judgement.time,
        **(_facts(appraisal) if appraisal else dict.fromkeys(_FACTS)),
        "checks": _checks(judgement),
    }


_ERROR_FIELDS = ("slug", "message", "expected", "actual", "hint")
_FACTS = (
    "module_id", "timestamp", "digest", "Measurements", "pcrs", "public_key", "user_data", "nonce", "root", "chain",
)  # fmt: skip


def _facts(appraisal: Appraisal) -> dict[str, Any]:
    root = appraisal.root
    return {
        "module_id": appraisal.module_id,
        "timestamp": appraisal.timestamp and appraisal.timestamp.isoformat(),
        "digest": appraisal.digest,
        **dump_measurements(appraisal.measurements),
        "pcrs": {str(index): value.hex() for index, value in sorted(appraisal.pcrs.items())},
        "public_key": _hex_or_null(appraisal.public_key),
        "user_data": _hex_or_null(appraisal.user_data),
        "nonce": _hex_or_null(appraisal.nonce),
        "root": root and {"name": root.name, "sha256": root.fingerprint.hex(), "development": root.development},
        "chain": [
            {"subject": c.subject, "not_before": c.not_before.isoformat(), "not_after": c.not_after.isoformat()}
            for c in appraisal.chain
        ],
    }


def _checks(judgement: Judgement) -> list[dict[str, Any]]:
    rows = [{"point": check.point, "what": check.what, "passed": True} for check in judgement.checks]
    failed = judgement.failed
    return rows + ([{"point": failed.point, "what": failed.what, "passed": False}] if failed else [])


def _hex_or_null(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def make_line(judgement: Judgement) -> str:
    """Return one line, for one document of several."""
    outcome = judgement.outcome
    what = outcome.module_id if isinstance(outcome, Appraisal) else outcome.slug
    return f"{judgement.file}: {judgement.verdict.value}: {what}"


def make_text(appraisal: Appraisal) -> str:
    """Return what a document that passed says, for a person."""
    lines = [f"{appraisal.verdict.value}: {appraisal.module_id}", f"  made        {appraisal.made}"]
    if appraisal.root:
        lines.append(f"  root        {appraisal.root.name}")
    lines += [f"  PCR{n:<8} {value.hex()}" for n, value in sorted(appraisal.pcrs.items()) if any(value)]
    for name, value in (
        ("public key", appraisal.public_key),
        ("user data", appraisal.user_data),
        ("nonce", appraisal.nonce),
    ):
        lines.append(f"  {name:<11} {'none' if value is None else value.hex() or 'empty'}")
    return "\n".join(lines)
