# SPDX-License-Identifier: MIT
"""The process that fuzzes: atheris (libFuzzer) tries inputs on one target, and what is wrong is saved at once.

    python -m scripts.fuzzing.engine MODULE TARGET FINDINGS [libFuzzer's options and corpora]

It ends by itself only where an input takes the process down; libFuzzer then writes that input into FINDINGS.
"""

from __future__ import annotations

import importlib
import logging
import resource
import sys
import warnings
from pathlib import Path
from random import Random

import atheris

# What guides the fuzzer must be instrumented when it is first imported.
with atheris.instrument_imports(include=["attestation", "enclave_image", "host_shim", "http.client", "cbor2"]):
    _TARGETS = importlib.import_module(sys.argv[1]).TARGETS
    from .findings import save
from .mutations import change_bytes
from .target import MEMORY, Finding, Target, address_space, judge

_PLAIN = 3  # of so many changes one is libFuzzer's own, which knows what values were compared with


class _Session:
    """One target's inputs and findings: of each place the smallest input is kept."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target = target
        self._folder = folder
        self._smallest: dict[str, int] = {}

    def try_input(self, data: bytes) -> None:
        finding = judge(self._target, data)
        if finding is not None:
            self._note(finding)

    def _note(self, finding: Finding) -> None:
        best = self._smallest.get(finding.place)
        if best is None or len(finding.data) < best:
            self._smallest[finding.place] = len(finding.data)
            save(self._folder, self._target, finding, replaces=best is not None)

    def mutate(self, data: bytes, largest: int, seed: int) -> bytes:
        random = Random(seed)
        changes = random.choice((1, 1, 2, 4))
        for _ in range(changes):
            match random.randrange(_PLAIN):
                case 0:
                    data = atheris.Mutate(data, largest)
                case 1 if self._target.mutate is None:
                    data = change_bytes(data, random)
                case _ if self._target.mutate is not None:
                    data = self._target.mutate(data, random)
            data = data[:largest]  # each time: atheris.Mutate takes no more
        return data


def main() -> None:
    """Fuzz until libFuzzer's own options end it."""
    _, _, name, folder, *options = sys.argv
    logging.disable()
    warnings.simplefilter("ignore")  # cryptography's remarks on odd names
    session = _Session(_TARGETS[name], Path(folder))
    atheris.Setup(["fuzz", *options], session.try_input, custom_mutator=session.mutate)
    # For the whole life: the corpus and libFuzzer's tables are small beside it.
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + 2 * MEMORY, resource.RLIM_INFINITY))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
