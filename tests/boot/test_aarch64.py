# SPDX-License-Identifier: MIT
"""An image for aarch64: built here, rebuilt to the same bytes, booted under QEMU's virt, and used by two parties."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from enclave_image.eif import load_eif
from examples.recommender import reference, tables
from host_shim.hardware import AARCH64

from .machines import PROGRAM, WASM, World

pytestmark = [
    pytest.mark.boot, pytest.mark.aarch64, pytest.mark.timeout(2700),
    pytest.mark.skipif(shutil.which(AARCH64.program) is None, reason=f"no {AARCH64.program}: {AARCH64.install}"),
]  # fmt: skip
PATIENCE = ("--accel", "tcg", "--boot-limit", "600")


@pytest.fixture(scope="module")
def arm(world: World) -> Path:
    image = world.directory / "aarch64.eif"
    world.run(
        "image", "build", "--architecture", "aarch64", "--out", image,
        "--measurements", image.with_suffix(".json"), timeout=2400,
    )  # fmt: skip
    return image


def test_is_an_image_of_its_own_kind(world: World, arm: Path, image: Path) -> None:
    told = world.run("image", "describe", arm, "--json").json
    assert told["architecture"] == "aarch64"
    assert {finding["weight"] for finding in told["findings"]} == {"note"}
    ours, theirs = load_eif(arm).measurements, load_eif(image).measurements
    assert {ours.pcr0, ours.pcr1}.isdisjoint({theirs.pcr0, theirs.pcr1})
    assert ours.pcr2 == theirs.pcr2  # the application: its bytecode and its packing are the same under emulation
    again = world.run("image", "reproduce", arm, "--architecture", "aarch64", "--json", timeout=2400)
    assert again.json["identical"] is True


def test_serves_two_parties_under_emulation(world: World, arm: Path, tmp_path: Path) -> None:
    measurements = arm.with_suffix(".json")
    policy = world.policy("aarch64", measurements)
    document = tmp_path / "document.cbor"
    with world.enclave(arm, policy, *PATIENCE) as enclave:
        told = world.run("attest", "fetch", "--isolate", enclave.endpoint, "--out", document, "--json").json
        verified = world.run(
            "attest", "verify", document, "--measurements", measurements, "--policy", policy, "--root", world.root,
            "--nonce", told["nonce"], "--public-key", told["public_key"], "--json",
        )  # fmt: skip
        assert verified.json["verdict"] == "verified-development"
        private = [tables.table(retailer.panel) for retailer in tables.split(tables.load_panel())]
        for name, table in zip(("alice", "bob"), private, strict=True):
            (tmp_path / name).write_bytes(table)
            path = f"/input/{name}/table.csv"
            world.party(
                name, "send", enclave, policy, tmp_path / name, path, "--new-isolate", measurements=measurements
            )
        world.party("bob", "send", enclave, policy, WASM, PROGRAM, measurements=measurements)
        job = world.party("bob", "run", enclave, policy, PROGRAM, "--wait", measurements=measurements).json
        assert job["exit_code"] == 0
        out = tmp_path / "model.json"
        world.party("alice", "get", enclave, policy, "/output/model.json", "--out", out, measurements=measurements)
        reference.check_model(out.read_bytes(), *private)


def test_a_machine_for_x86_refuses_it_with_the_way_out(world: World, arm: Path) -> None:
    policy = world.policy("aarch64", arm.with_suffix(".json"))
    words = ("enclave", "run", arm, "--policy", policy, "--isolate", "qemu-nitro", "--json")
    assert world.run(*words, expect=None).slug in ("image-of-another-machine", "no-nitro-machine")
