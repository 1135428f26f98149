# SPDX-License-Identifier: MIT
"""The verb `veracruz doctor`: what this machine has of what isolates need, and what mends each finding."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from attestation.console import Commands, emit, new_parser, paint, printable, write_out
from attestation.errors import EXIT_ENVIRONMENT, EXIT_OK

if TYPE_CHECKING:
    from .doctor import Finding

COLOURS = {"ok": "32", "note": "33", "problem": "31"}
WIDTH = 14  # columns of what was looked at


def add_verbs(commands: Commands) -> None:
    """Add this verb to the command line."""
    new_parser(commands, "doctor", summary="examine this machine and say what to mend", run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Print each finding as it is made; exit with 3 if one is a problem."""
    from . import doctor, doctor_machine

    examinations: tuple[doctor.Examination, ...] = (
        doctor.examine_python, doctor_machine.examine_qemu, doctor_machine.examine_sandbox, doctor.examine_memory,
        doctor.examine_files, doctor.examine_limits, doctor.examine_clock, doctor.examine_vsock, doctor.examine_nitro,
    )  # fmt: skip
    findings = []
    for examine in examinations:
        for finding in examine():
            findings.append(finding)
            if not args.json:
                show(finding)
    problems = sum(finding.level is doctor.Level.PROBLEM for finding in findings)
    verdict = "isolates can run here" if not problems else f"{problems} to mend before isolates run here"
    told = [{"what": f.what, "level": f.level.value, "found": f.found, "mend": f.mend} for f in findings]
    emit(args, {"problems": problems, "findings": told}, verdict)
    return EXIT_ENVIRONMENT if problems else EXIT_OK


def show(finding: Finding) -> None:
    """Print one finding: its level, what was looked at, what was found; below it what mends it."""
    level = finding.level.value
    lines = [f"{paint(level.ljust(8), COLOURS[level])}{finding.what.ljust(WIDTH)} {printable(finding.found)}"]
    if finding.mend is not None:
        lines.append(f"{'':{8 + WIDTH}} -> {printable(finding.mend)}")
    write_out("\n".join(lines))
