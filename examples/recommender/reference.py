# SPDX-License-Identifier: MIT
"""The recommender's model in plain NumPy, to check the isolate's result with and to see what pooling is worth.

Shares no code with recommender.c: other arithmetic (whole arrays), another parser (csv), another solver (NumPy's).

    python -m examples.recommender.reference                 # what each learns alone, and what both learn together
    python -m examples.recommender.reference --model FILE    # also compare a model.json with it (equal to 1e-6)
    python -m examples.recommender.reference --splits 200    # the same for other divisions of the households
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .tables import BRANDS, PANEL_HOUSEHOLDS, Purchase, WrongSource, load_panel, split, table

RIDGE = 1.0
TOLERANCE = 1e-6  # between a model and the reference, in every coefficient
MAX_MODEL = 64 * 1024  # bytes of a model.json

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


class WrongModel(Exception):
    """A model.json is malformed or is not the reference's."""


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model predicts purchases that it was not fitted to."""

    accuracy: float  # part of the purchases whose brand had the highest probability
    log_loss: float  # mean of -log(probability of the brand that was chosen), in nats


@dataclass(frozen=True, slots=True)
class Comparison:
    """What each learns alone and what both learn together, on the same held-out purchases of both retailers."""

    majority: Score  # always the brands' shares in the pooled tables
    alice: Score
    bob: Score
    pooled: Score
    purchases: tuple[int, int, int]  # Alice's, Bob's, held out


def load_design(*tables: bytes) -> tuple[Array, Indices]:
    """Return features [purchase, brand, coefficient] and choices [purchase] of CSV tables, one after another."""
    features, choices = [], []
    for raw in tables:
        history: dict[str, list[int]] = {}
        for row in csv.DictReader(io.StringIO(raw.decode("ascii"))):
            past = history.setdefault(row["household"], [])
            bought = np.bincount(past, minlength=len(BRANDS))
            columns = [
                *np.eye(len(BRANDS))[:-1],
                np.array([float(row[f"price.{brand}"]) for brand in BRANDS]) / 100,
                np.array([float(row[f"displayed.{brand}"]) for brand in BRANDS]),
                np.array([float(row[f"featured.{brand}"]) for brand in BRANDS]),
                (bought + 1 / len(BRANDS)) / (len(past) + 1),
                np.eye(len(BRANDS))[past[-1]] if past else np.zeros(len(BRANDS)),
            ]
            features.append(np.stack(columns, axis=1))
            past.append(BRANDS.index(row["choice"]))
            choices.append(past[-1])
    return np.stack(features), np.array(choices)


def probabilities(features: Array, coefficients: Array) -> Array:
    """Return the probability of each brand, [purchase, brand]."""
    utility = features @ coefficients
    weight = np.exp(utility - utility.max(axis=1, keepdims=True))
    result: Array = weight / weight.sum(axis=1, keepdims=True)
    return result


def objective(features: Array, choices: Indices, coefficients: Array) -> float:
    """Return the penalised negative log-likelihood that the coefficients minimise."""
    chosen = probabilities(features, coefficients)[np.arange(len(choices)), choices]
    return float(RIDGE / 2 * coefficients @ coefficients - np.log(chosen).sum())


def fit(features: Array, choices: Indices) -> Array:
    """Return the coefficients by plain Newton steps from zero; the objective is strongly convex."""
    coefficients = np.zeros(features.shape[2])
    chosen = features[np.arange(len(choices)), choices].sum(axis=0)
    for _ in range(50):
        weight = probabilities(features, coefficients)
        mean = np.einsum("nb,nbk->nk", weight, features)
        gradient = RIDGE * coefficients + mean.sum(axis=0) - chosen
        hessian = RIDGE * np.eye(len(coefficients)) - mean.T @ mean
        hessian += np.einsum("nb,nbk,nbl->kl", weight, features, features)
        step = np.linalg.solve(hessian, gradient)
        coefficients = coefficients - step
        if np.abs(step).max() < 1e-12:
            return coefficients
    raise WrongModel("the reference did not converge")


def _score(chances: Array, choices: Indices) -> Score:
    chosen = chances[np.arange(len(choices)), choices]
    return Score(float((chances.argmax(axis=1) == choices).mean()), float(-np.log(chosen).mean()))


def compare(panel: Sequence[Purchase], order: Sequence[int] | None = None, size: int = PANEL_HOUSEHOLDS) -> Comparison:
    """Fit Alice's table, Bob's and both, and score each on the held-out households of both."""
    alice, bob = split(panel, order, size)
    tables = table(alice.panel), table(bob.panel)
    features, choices = load_design(table(alice.held_out), table(bob.held_out))
    pooled_features, pooled_choices = load_design(*tables)
    counts = np.bincount(pooled_choices, minlength=len(BRANDS)) + 1  # + 1: no brand has probability 0
    alice_alone, bob_alone = (_score(probabilities(features, fit(*load_design(one))), choices) for one in tables)
    return Comparison(
        majority=_score(np.tile(counts / counts.sum(), (len(choices), 1)), choices),
        alice=alice_alone,
        bob=bob_alone,
        pooled=_score(probabilities(features, fit(pooled_features, pooled_choices)), choices),
        purchases=(len(alice.panel), len(bob.panel), len(choices)),
    )


def load_model(raw: bytes) -> Array:
    """Return the coefficients of a model.json; raise WrongModel."""
    try:
        if len(raw) > MAX_MODEL:
            raise ValueError("too long")
        model = json.loads(raw)
        if model["schema"] != "recommender.model/1" or model["brands"] != list(BRANDS):
            raise ValueError("another schema")
        coefficients = np.array([float(value) for value in model["coefficients"]])
        if coefficients.shape != (len(BRANDS) + 4,) or not np.isfinite(coefficients).all():
            raise ValueError("coefficients")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WrongModel("malformed model.json") from error
    return coefficients


def check_model(raw: bytes, *tables: bytes) -> float:
    """Return the largest difference between a model's coefficients and the reference's; raise WrongModel above 1e-6."""
    difference = float(np.abs(load_model(raw) - fit(*load_design(*tables))).max())
    if not difference <= TOLERANCE:
        raise WrongModel(f"not the reference's model; expected a difference <= {TOLERANCE}, got {difference:.3g}")
    return difference


def _many(panel: Sequence[Purchase], splits: int) -> dict[str, Any]:
    """Repeat the comparison for random divisions of the households, and for larger panels."""
    households = sorted({purchase.household for purchase in panel})
    result = {}
    for size in (4, PANEL_HOUSEHOLDS, 12, 24):
        runs = [compare(panel, list(np.random.default_rng(n).permutation(households)), size) for n in range(splits)]
        accuracy = np.array([[run.alice.accuracy, run.bob.accuracy, run.pooled.accuracy] for run in runs])
        loss = np.array([[run.alice.log_loss, run.bob.log_loss, run.pooled.log_loss] for run in runs])
        result[str(size)] = {
            "accuracy_alone": accuracy[:, :2].mean(),
            "accuracy_pooled": accuracy[:, 2].mean(),
            "log_loss_alone": loss[:, :2].mean(),
            "log_loss_pooled": loss[:, 2].mean(),
            "pooled_has_less_log_loss_than_one": float((loss[:, 2:] < loss[:, :2]).mean()),
            "pooled_has_less_log_loss_than_both": float((loss[:, 2] < loss[:, :2].min(axis=1)).mean()),
            "pooled_is_more_accurate_than_one": float((accuracy[:, 2:] > accuracy[:, :2]).mean()),
            "pooled_is_more_accurate_than_both": float((accuracy[:, 2] > accuracy[:, :2].max(axis=1)).mean()),
        }
    return {"splits": splits, "households_each": result}


def main() -> int:
    """Print the comparison as a table, or with --json or --splits as JSON."""
    parser = argparse.ArgumentParser(description="The recommender in NumPy: alone, pooled, and a model checked.")
    parser.add_argument("--model", type=Path, help="a model.json to compare with the pooled reference")
    parser.add_argument("--splits", type=int, default=0, help="repeat for N random divisions of the households")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        panel = load_panel()
        if args.splits:
            print(json.dumps(_many(panel, args.splits), indent=2))
            return 0
        comparison = compare(panel)
        difference = None
        if args.model:
            difference = check_model(args.model.read_bytes(), *(table(one.panel) for one in split(panel)))
    except (WrongSource, WrongModel, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({**asdict(comparison), "difference": difference}, indent=2))
        return 0
    print(f"learnt from {comparison.purchases[0]} and {comparison.purchases[1]} purchases, "
          f"scored on {comparison.purchases[2]} of other households")  # fmt: skip
    print("                   accuracy  log-loss")
    rows = {"brand shares only": comparison.majority, "Alice alone": comparison.alice, "Bob alone": comparison.bob}
    for name, score in {**rows, "pooled": comparison.pooled}.items():
        print(f"{name:<18} {100 * score.accuracy:7.1f} %  {score.log_loss:8.3f}")
    if difference is not None:
        print(f"largest difference from {args.model}: {difference:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
