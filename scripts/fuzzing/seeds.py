# SPDX-License-Identifier: MIT
"""The seed corpora in the checkout: a file a seed, made by each target from the tests' factory, always the same."""

from __future__ import annotations

import shutil
from pathlib import Path

from .target import TOP
from .targets import TARGETS

CORPUS = TOP / "tests" / "fuzz_corpus"


def write_seeds(folder: Path = CORPUS) -> int:
    """Write the corpora of all targets anew; return the number of seeds."""
    shutil.rmtree(folder, ignore_errors=True)
    count = 0
    for target in TARGETS.values():
        (folder / target.name).mkdir(parents=True)
        for name, data in target.seeds().items():
            (folder / target.name / name).write_bytes(data)
            count += 1
    return count
