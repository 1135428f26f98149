# SPDX-License-Identifier: MIT
"""Kernels, booted: the default beside a peer that never listens, the minimal configuration, one that is given."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from enclave_image.eif import SectionType, load_eif
from enclave_image.runtime.wire import Event

from .machines import World
from .neglect import REQUESTS, RING, neglect
from .nitro_machine import find_nitro_qemu, on_nitro_machine
from .rig import boot

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]


def check_serves(world: World, image: Path, name: str) -> None:
    """Boot an image by the command line and verify its evidence as a relying party does."""
    policy = world.policy(name, image.with_suffix(".json"))
    document = world.directory / f"{name}.cbor"
    with world.enclave(image, policy) as enclave:
        answer = world.run("attest", "fetch", "--isolate", enclave.endpoint, "--out", document, "--json").json
        done = world.run(
            "attest", "verify", document, "--measurements", image.with_suffix(".json"), "--policy", policy,
            "--root", world.root, "--nonce", answer["nonce"], "--public-key", answer["public_key"], "--json",
        )  # fmt: skip
    assert done.json["verdict"] == "verified-development"


def test_goes_on_receiving_while_nobody_takes_its_answers(image: Path) -> None:
    """Without our patch it stops for good at three rings (docs/kernel.md); with it, what it keeps stays bounded too."""
    found = neglect(load_eif(image))
    assert found["unheard"] == found["afterwards"] == REQUESTS
    assert RING <= found["resets"] <= 2 * RING + 16


def test_takes_a_kernel_that_is_given_and_says_that_it_is_in_no_lock(world: World, image: Path) -> None:
    ours = load_eif(image)
    kernel = world.directory / "bzImage"
    kernel.write_bytes(ours.kernel)
    given = world.directory / "given.eif"
    manifest, sbom = world.directory / "given.manifest", world.directory / "given.sbom"
    done = world.run(
        "image", "build", "--out", given, "--measurements", given.with_suffix(".json"), "--kernel", kernel,
        "--manifest", manifest, "--sbom", sbom, timeout=2400,
    )  # fmt: skip
    digest = hashlib.sha256(kernel.read_bytes()).hexdigest()
    assert "in no lock" in done.err
    assert digest in done.err
    built = load_eif(given)
    assert built.measurements == ours.measurements  # the same bytes, whoever brought them
    (metadata,) = (part.data for part in built.sections if part.type is SectionType.METADATA)
    told = json.loads(bytes(metadata))
    assert told["CustomMetadata"] == {"GivenKernel": {"SHA256": digest}}
    assert "eif@eif" in told["BuildMetadata"]["KernelVersion"]
    components = json.loads(manifest.read_text())["components"]
    (inside,) = (row for row in components if row["kind"] == "kernel")
    assert (inside["name"], inside["sha256"]) == ("bzImage", digest)  # and not the lock's source package
    assert digest in sbom.read_text()
    done = world.run("image", "reproduce", given, "--kernel", kernel, "--json", timeout=2400)
    assert done.json["identical"] is True
    check_serves(world, given, "given")


@pytest.mark.minimal_kernel
def test_the_minimal_configuration_boots_on_both_machines(world: World, image: Path) -> None:
    minimal = world.directory / "minimal.eif"
    world.run(
        "image", "build", "--out", minimal, "--measurements", minimal.with_suffix(".json"),
        "--kernel-config", "minimal", timeout=2400,
    )  # fmt: skip
    assert load_eif(minimal).measurements.pcr2 == load_eif(image).measurements.pcr2  # only the kernel differs
    assert load_eif(minimal).measurements.pcr1 != load_eif(image).measurements.pcr1
    again = world.run("image", "reproduce", minimal, "--kernel-config", "minimal", "--json", timeout=2400)
    assert again.json["identical"] is True
    refused = world.run("image", "reproduce", minimal, "--json", timeout=2400, expect=1)
    assert any("configuration" in cause for cause in refused.json["causes"])
    check_serves(world, minimal, "minimal")
    program = find_nitro_qemu()
    policy = world.policy("minimal", minimal.with_suffix(".json"))

    async def run() -> None:
        state = Path(world.environment["XDG_STATE_HOME"]) / "veracruz"
        change = on_nitro_machine(program, minimal)
        async with boot(load_eif(minimal), policy=policy.read_bytes(), state=state, command=change) as guest:
            await guest.wait_for_event(Event.SERVING)

    asyncio.run(run())
