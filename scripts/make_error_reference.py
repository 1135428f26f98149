#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write docs/errors.md from the error classes; with --check only say whether it is up to date."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from attestation.error_reference import Entry, make_reference
from host_shim.cli import PACKAGES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
HEAD = """\
# Every error

Made from the code by `scripts/make_error_reference.py`; edit the classes, not this page. `veracruz explain SLUG` prints
the same on a command line, and every verb names the slug under `--json`. Slugs are stable: scripts may rely on them.

Exit codes: 1 refused (evidence, policy or rights), 2 usage or malformed input, 3 the machine lacks something, 4 the
build failed, 5 the isolate died or cannot be reached. "HTTP" is the status with which the isolate's API answers.
"""


def make_page(entries: tuple[Entry, ...]) -> str:
    """Return the page in Markdown."""
    parts = [HEAD]
    for package, group in groupby(entries, key=lambda entry: entry.package):
        parts.append(f"## {package}\n")
        for entry in group:
            answered = f", HTTP {entry.status}" if entry.status else ""
            parts.append(f"### `{entry.slug}`\n")
            parts.append(f"Exit code {entry.exit_code}{answered}. {entry.cause}\n\n**What to do:** {entry.cure}\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write or check the page; return an exit code."""
    page = make_page(make_reference(PACKAGES))
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text() == page:
            return 0
        print(f"{PAGE.name} differs from what the code says: run scripts/make_error_reference.py", file=sys.stderr)
        return 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
