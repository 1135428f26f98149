# SPDX-License-Identifier: MIT
"""What an image's metadata says of what is in it: a hint, and nothing where it says nothing."""

from __future__ import annotations

import json

import pytest

from host_shim.image_origin import has_our_runtime


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ({"ImageName": "veracruz", "BuildMetadata": {"BuildTool": "veracruz"}}, True),
        ({"ImageName": "container", "BuildMetadata": {"BuildTool": "veracruz"}}, False),
        ({"ImageName": "veracruz", "BuildMetadata": {"BuildTool": "nitro-cli"}}, False),
        ({"BuildMetadata": {"BuildTool": 7}}, None),
        ({"BuildMetadata": []}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_tells_ours_from_others(told: object, ours: bool | None) -> None:
    assert has_our_runtime(json.dumps(told).encode()) is ours


@pytest.mark.parametrize("raw", [None, b"", b"{", b"\xff", b"[" * 100_000, b'"' + b"x" * (1 << 17) + b'"'])
def test_says_nothing_of_what_is_no_metadata(raw: bytes | None) -> None:
    assert has_our_runtime(raw) is None
