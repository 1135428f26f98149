# SPDX-License-Identifier: MIT
"""What must fail in the demo, and how: people without rights, hosts that lie, isolates that are not the agreed one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_hosts import LyingHost
from demo_means import CHECKOUT, IMAGE, MODEL, POLICY, PROGRAM, SHARED, Isolate, Means, demand
from demo_stage import Refusal

CERTIFICATE_REFUSED = Refusal(1, "certificate-refused")
NOT_AVAILABLE = Refusal(1, "not-available")
PIN_MISMATCH = Refusal(1, "pin-mismatch")
MEASUREMENT_MISMATCH = Refusal(1, "measurement-mismatch")
POLICY_MISMATCH = Refusal(1, "policy-mismatch")
KEY_MISMATCH = Refusal(1, "key-mismatch")
UNTRUSTED_CHAIN = Refusal(1, "untrusted-chain")
ISOLATE_CHANGED = Refusal(1, "isolate-changed")

SWAPPED = f"{SHARED}/swapped.json"
ALTERED = "altered.eif"
AT_ONCE = 2  # isolates that boot beside the story's own

# The check with which an isolate refuses a policy that does not name its own image; one byte takes it out.
ALTERED_FILE = Path("enclave_image") / "runtime" / "main.py"
ALTERED_LINE = b" serving.check_image("
ALTERED_TO = b"#serving.check_image("


@dataclass(frozen=True, slots=True)
class Begun:
    """What was begun early, and the commands of it."""

    future: Future[dict[str, Any]]
    commands: Sequence[list[str]]


@dataclass(frozen=True, slots=True)
class Early:
    """What the cheating host builds and boots while the story goes on."""

    swapped: Begun
    clone: Begun
    build: Begun | None  # None where no image is booted
    altered: Begun | None


def begin_early(means: Means) -> Early:
    """Begin what takes long and is told later."""
    stage, host = means.stage, means.cast.host
    pool = ThreadPoolExecutor(AT_ONCE)
    swap = means.policy_command(
        SWAPPED, "--participant", f"mallory={SHARED}/mallory.pem", "--right", "mallory:/input/:read,list"
    )
    swapped = means.boot_command("swapped", IMAGE, SWAPPED)
    clone = means.boot_command("clone", IMAGE, POLICY)
    build = ["image", "build", "--out", ALTERED, *means.options.build_options]
    altered = means.boot_command("altered", ALTERED, POLICY)

    def begin(action: Callable[[], dict[str, Any]], *commands: list[str]) -> Begun:
        return Begun(pool.submit(action), commands)

    def boot_swapped() -> dict[str, Any]:
        stage.veracruz(host, *swap, shown=False)
        return means.boot(swapped, shown=False)

    def build_altered() -> dict[str, Any]:
        copy = alter_checkout(host.folder / "altered")
        return stage.veracruz(host, *build, shown=False, checkout=copy)

    def boot_altered() -> dict[str, Any]:
        built.future.result()  # begun before, so it runs or has ended: no deadlock in a pool of two
        return means.boot(altered, shown=False)

    try:
        early = begin(boot_swapped, swap, swapped), begin(lambda: means.boot(clone, shown=False), clone)
        if not means.options.boots:
            return Early(*early, build=None, altered=None)
        built = begin(build_altered, build)
        return Early(*early, build=built, altered=begin(boot_altered, altered))
    finally:
        pool.shutdown(wait=False)


def await_begun(means: Means, begun: Begun) -> dict[str, Any]:
    """Show the commands of what was begun early, wait for it, return its answer."""
    for command in begun.commands:
        means.stage.show(means.cast.host, ["veracruz", *command])
    return begun.future.result()


def refuse_people(means: Means, isolate: Isolate) -> None:
    """Show what the isolate refuses."""
    stage, cast, at = means.stage, means.cast, isolate.address
    stage.title("What must fail: people who ask for more than the policy gives them.")
    with stage.step("Mallory, who is not in the policy"):
        means.verb(cast.mallory, at, "get", MODEL, "--out", "model.json", refusal=CERTIFICATE_REFUSED)
    with stage.step("Bob, who wants Alice's table"):
        stolen = cast.bob.folder / "stolen.csv"
        answers = [
            means.verb(
                cast.bob, at, "get", f"/input/alice/{name}", "--out", stolen.name,
                refusal=NOT_AVAILABLE, shown=name == "table.csv",
            )["error"]
            for name in ("table.csv", "never-was.csv")
        ]  # fmt: skip
        demand(answers[0] == answers[1], "forbidden and absent must give the same answer")
        demand(not stolen.exists(), "a refused get must leave no file")
    with stage.step("Alice, who sends another program than the one agreed"):
        program = bytearray((cast.shared / "recommender.wasm").read_bytes())
        program[-1] ^= 1
        (cast.alice.folder / "other.wasm").write_bytes(program)
        means.send(cast.alice, at, "other.wasm", PROGRAM, refusal=PIN_MISMATCH)


def refuse_liars(means: Means, isolate: Isolate) -> None:
    """Show what Alice's client refuses of a host that answers in the isolate's place, before it sends anything."""
    stage, alice = means.stage, means.cast.alice
    table = ("table.csv", "/input/alice/table.csv")
    victims = [means.cast.shared / f"{name}.pem" for name in ("alice", "bob")]
    stage.title("What must fail: hosts that lie. It is Alice's client that refuses, before it sends anything.")
    with stage.step("evidence that is not under AWS's root, where Alice asks for that"):
        means.fetch(alice, isolate.address, refusal=UNTRUSTED_CHAIN, root=False)
    with stage.step("a host with its own key that relays the isolate's genuine evidence") as step:
        with LyingHost(isolate.endpoint, victims=victims, honest=0) as liar:
            means.fetch(alice, liar.address, refusal=KEY_MISMATCH)
            means.send(alice, liar.address, *table, refusal=KEY_MISMATCH)
        demand(liar.documents == 2, f"the host must have relayed two documents, not {liar.documents}")
        demand(all(head.startswith(b"GET /v1/attestation?") for head in liar.requests), "it must see no other request")
        demand(liar.certificates == 0, "it must see no certificate of Alice's")
        step.result += "; it saw no certificate and no data"
    with stage.step("a host that steps in after the evidence, with a copied certificate") as step:
        with LyingHost(isolate.endpoint, victims=victims, honest=1) as liar:
            means.send(alice, liar.address, *table, refusal=KEY_MISMATCH)
        demand(liar.met == 1, "the second connection must have met the impostor")
        demand(not liar.requests and not liar.certificates, "it must see no certificate and no request")
        step.result += "; it saw no certificate and no data"


def refuse_isolates(means: Means, early: Early) -> None:
    """Show what Alice's client refuses of isolates that are genuine in themselves, but not the agreed one."""
    stage, cast = means.stage, means.cast

    def refuse(begun: Begun, refusal: Refusal) -> None:
        record = await_begun(means, begun)
        means.send(cast.alice, record["endpoint"], "table.csv", "/input/alice/table.csv", refusal=refusal)
        stage.stop(cast.host, record["name"])

    stage.title("What must fail: other isolates than the agreed one. The host had time to prepare them.")
    with stage.step("the agreed image under the host's own policy, which lets Mallory read"):
        refuse(early.swapped, POLICY_MISMATCH)
    with stage.step("a second isolate of the same image and policy, which does not hold what she sent"):
        refuse(early.clone, ISOLATE_CHANGED)
    if early.build is None or early.altered is None:
        return
    with stage.step("an image rebuilt after one byte was changed: its own check of itself is out") as step:
        found = await_begun(means, early.build)["Measurements"]
        agreed = json.loads((cast.shared / "measurements.json").read_bytes())["Measurements"]
        demand(found["PCR1"] == agreed["PCR1"], "the platform's half must be the same")
        demand(
            found["PCR2"] != agreed["PCR2"] and found["PCR0"] != agreed["PCR0"], "one byte must change PCR0 and PCR2"
        )
        step.result = "PCR0 and PCR2 differ, PCR1 does not"
    with stage.step("that image, booted under the agreed policy"):
        refuse(early.altered, MEASUREMENT_MISMATCH)


def alter_checkout(copy: Path) -> Path:
    """Copy the packages and change one byte of the runtime; return the copy."""
    for package in ("attestation", "enclave_image", "host_shim"):
        shutil.copytree(CHECKOUT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / ALTERED_FILE
    before = path.read_bytes()
    demand(before.count(ALTERED_LINE) == 1, f"{ALTERED_FILE} must hold the line that is to be altered, once")
    after = before.replace(ALTERED_LINE, ALTERED_TO)
    demand(sum(a != b for a, b in zip(before, after, strict=True)) == 1, "exactly one byte must be altered")
    path.write_bytes(after)
    return copy
