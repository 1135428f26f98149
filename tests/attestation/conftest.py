# SPDX-License-Identifier: MIT
"""Parties that the tests of the participants' side share: keys are made once a run."""

from __future__ import annotations

import pytest

from .parties import Parties, make_parties


@pytest.fixture(scope="session")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Parties:
    return make_parties(tmp_path_factory.mktemp("parties"))
