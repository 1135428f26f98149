# SPDX-License-Identifier: MIT
"""`explain SLUG`: what an error means, and what to do about it."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable
from typing import Any

from .console import Commands, emit, new_parser
from .error_reference import Entry, make_reference
from .errors import EXIT_OK, UsageError

NEAREST = 3  # slugs that are offered for one that does not exist


def add_verbs(commands: Commands, packages: Iterable[str]) -> None:
    """Add the verb `explain`, for the errors of these packages."""
    parser = new_parser(
        commands, "explain", summary="say what an error means and what to do about it", run=_verb(tuple(packages))
    )
    parser.add_argument("slug", metavar="SLUG", nargs="?", help="the error, such as nonce-mismatch; without it: all")


def _verb(packages: tuple[str, ...]) -> Callable[[argparse.Namespace], int]:
    def explain(args: argparse.Namespace) -> int:
        entries = make_reference(packages)
        if args.slug is None:
            emit(args, {"errors": [_fields(entry) for entry in entries]}, _list(entries))
        else:
            entry = _find(args.slug, entries)
            emit(args, _fields(entry), _text(entry))
        return EXIT_OK

    return explain


def _find(slug: str, entries: Iterable[Entry]) -> Entry:
    known = {entry.slug: entry for entry in entries}
    if slug not in known:
        nearest = difflib.get_close_matches(slug, known, n=NEAREST, cutoff=0.4)
        raise UsageError(
            "there is no such error", expected=" or ".join(nearest) or None, actual=slug,
            hint="without a slug, explain lists all",
        )  # fmt: skip
    return known[slug]


def _fields(entry: Entry) -> dict[str, Any]:
    return {
        "slug": entry.slug,
        "package": entry.package,
        "exit_code": entry.exit_code,
        "http_status": entry.status,
        "cause": entry.cause,
        "cure": entry.cure,
    }


def _text(entry: Entry) -> str:
    answered = f", HTTP {entry.status}" if entry.status else ""
    return (
        f"{entry.slug} ({entry.package}, exit code {entry.exit_code}{answered})\n"
        f"  cause  {entry.cause}\n  cure   {entry.cure}"
    )


def _list(entries: Iterable[Entry]) -> str:
    entries = list(entries)
    width = max(len(entry.slug) for entry in entries)
    return "\n".join(f"{entry.slug:<{width}}  {entry.cause.split('. ')[0]}" for entry in entries)
