# SPDX-License-Identifier: MIT
"""Write the tables of docs/kernel.md from the kernel's fragments; --check only compares them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from enclave_image.config import DEFAULT_DIR
from enclave_image.kernel_config import Option, parse_fragment

PAGE = Path(__file__).parents[1] / "docs/kernel.md"
FRAGMENTS = ("kernel.fragment", "kernel-minimal.fragment")


def rows(options: Sequence[Option]) -> Iterator[str]:
    """Yield a table for each group of options."""
    for group, members in groupby(options, key=lambda option: option.group):
        yield from ("", f"**{group}**", "", "| option | value | why |", "|---|---|---|")
        for option in members:
            only = f"{option.architecture} only: " if option.architecture else ""
            why = only + option.reason.replace("|", "\\|")
            yield f"| `{option.name.removeprefix('CONFIG_')}` | `{option.value}` | {why} |"


def make_page(page: str) -> str:
    """Return the page with its tables made anew."""
    for name in FRAGMENTS:
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{PAGE.name} has no place for {name}")
        table = "\n".join(rows(parse_fragment(name, (DEFAULT_DIR / name).read_bytes())))
        page = before + begin + table.lstrip("\n") + end + after
    return page


def main() -> int:
    """Write the page, or compare it."""
    page = PAGE.read_text()
    made = make_page(page)
    if "--check" in sys.argv[1:]:
        return int(made != page)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
