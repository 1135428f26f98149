# SPDX-License-Identifier: MIT
"""Whether an image has our runtime in it, as its metadata tells: a hint, which nothing measures, for better errors."""

from __future__ import annotations

import json
from typing import Any

from attestation.errors import UsageError
from enclave_image.eif import Eif

OUR_TOOL = "veracruz"
OF_A_CONTAINER = "container"  # recipe.make_metadata: the name of what was built from a container image
MAX_METADATA = 64 << 10  # bytes that are looked at


def check_origin(image: Eif, *, policy: bool) -> None:
    """Raise UsageError if the image says that it wants what it would not get: our runtime a policy, any other none."""
    ours = has_our_runtime(image.metadata)
    if ours is True and not policy:
        raise UsageError(
            "this image has our runtime, which waits for a policy", actual="--no-policy", hint="--policy FILE"
        )
    if ours is False and policy:
        raise UsageError(
            "this image has another application than our runtime: it would never ask for the policy",
            actual="--policy", hint="--no-policy --port N, where N is the vsock port that it serves",
        )  # fmt: skip


def has_our_runtime(metadata: bytes | None) -> bool | None:
    """Return what the metadata says, or None if it says nothing."""
    if metadata is None or len(metadata) > MAX_METADATA:
        return None
    try:
        told: Any = json.loads(metadata)
        tool, name = told["BuildMetadata"]["BuildTool"], told.get("ImageName")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (tool == OUR_TOOL and name != OF_A_CONTAINER) if isinstance(tool, str) else None
