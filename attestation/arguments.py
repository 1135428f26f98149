# SPDX-License-Identifier: MIT
"""The parser of every command line of ours: argparse's, but whoever asked for JSON gets it for a usage error too."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NoReturn

from .console import error_fields, write_out
from .errors import EnvironmentLacks, UsageError


class Parser(argparse.ArgumentParser):
    """A parser whose subparsers are of this class too; no option may be abbreviated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._words: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as argparse does, and keep the words for `error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        """Say usage and error on stderr, under --json also one object on stdout; exit with 2."""
        options = takewhile(lambda word: word != "--", self._words)
        if "--json" in options:
            with contextlib.suppress(EnvironmentLacks):  # it is told on stderr in any case
                write_out(
                    json.dumps({"error": error_fields(UsageError(message, hint=f"{self.prog} --help"))}, indent=2)
                )
        super().error(message)
