"""Compute how many bits a site's reply can carry besides a model, counted from the tables.

    python -m federation.protocol.capacity     updates the table in docs/one-reply.md

It counts the distinct possible replies: every figure on its grid or absent, every number in an array of moments, every
code. Values that the gateway sets or verifies itself (the weight of a reply, prevalences, ε, digests, counters) carry
no bits, because the app cannot choose them. A model's weights are not counted: no bound is known for them.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from federation.protocol.coarse_moments import RANGES
from federation.protocol.error_codes import OF_APPS, OF_SITES
from federation.protocol.figure_rounding import HIGH, LOW, figure_of_end
from federation.protocol.grids import Ladder, Threes
from federation.protocol.metric_allowlist import (
    APPEARANCE_SIZE,
    BINS,
    EPSILON,
    FIGURES,
    HANDSHAKE,
    LABELS,
    TAILS,
    TRAINING,
    Figure,
    Kind,
)
from federation.protocol.summed_answers import LOAD_EDGES, LOGIT_BINS, reported

FEATURES = 128  # per scan, in the default network
BEGIN, END = "<!-- begin: bits -->", "<!-- end: bits -->"
_OF_CLASS = 100  # patients of a class, for whose counts the page states the bits
_IN_SUMS: tuple[Kind, ...] = ("evaluate.calibrate", "evaluate.test")
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "one-reply.md"
_SAYS: Mapping[Kind, str] = {
    "query.handshake": "the handshake: version, two digests, a band of patients",
    "train": "a round of training, besides the model",
    "train.head": "fitting the head, besides the model",
    "evaluate.calibrate": "calibration and thresholds",
    "evaluate.test": "a test, with the shortcut audit",
    "evaluate.embed": "moments of features and of appearance features",
    "evaluate.assign": "the sites that test patients are assigned to",
}


def bits(kind: Kind, *, histograms: int = 0, features: int = FEATURES) -> float:
    """Return the bits of the values that an app can choose in a reply of this kind, without a model's weights.

    `histograms`: the size of the site's largest class if the site allows counts of patients to leave; else 0.
    `features`: how many numbers the network computes per scan.
    """
    table = {name: figure for name, figure in FIGURES[kind].items() if name != EPSILON and figure.counts is None}
    bits = sum(_bits_of(name, table) for name in table if not figure_of_end(name, table))
    if kind == "evaluate.embed":
        bits += (features + APPEARANCE_SIZE) * sum(math.log2(numbers.points) for numbers in RANGES.values())
    if kind == "evaluate.test" and histograms:
        # The counts of a class sum to at most its size: that many patients are spread over BINS bins and "not counted".
        bits += 2 * len(LABELS) * math.log2(math.comb(histograms + BINS, BINS))
    return bits


def summed_bits(kind: Kind, *, of_class: int) -> float:
    """Return the bits of what an app chooses in a part of a sum of this kind, for labels with classes of this size.

    The counts of a class are its size exactly, or all counts of the label are 0.
    """
    table = {name: FIGURES[kind][name] for name in reported(kind)}
    bits = sum(_bits_of(name, table) for name in table if not figure_of_end(name, table))
    counted = [LOGIT_BINS, len(LOAD_EDGES) - 1] if kind == "evaluate.test" else [LOGIT_BINS]
    ways = math.prod(math.comb(of_class + bins - 1, bins - 1) ** 2 for bins in counted)
    return bits + len(LABELS) * math.log2(1 + ways)


def code_bits(codes: frozenset[str] = OF_SITES) -> float:
    """Return the bits of an answer that is a code."""
    return math.log2(len(codes))


def _bits_of(name: str, table: Mapping[str, Figure]) -> float:
    """Return the bits of a figure with its interval, if it has one; being absent counts as a value."""
    figure = table[name]
    if figure.reveals_classes:  # the gateway knows its value: it is present or absent
        return 1.0
    if isinstance(figure.grid, Ladder):
        return _bits_of_rung(name, figure.grid.points(figure.low, figure.high))
    if isinstance(figure.grid, Threes):
        raise ValueError(f"{name} has a grid for numbers that the gateway computes")
    if figure.grid is None:
        raise ValueError(f"{name} has no grid")
    points = figure.grid.points(figure.low, figure.high)
    if {name + LOW, name + HIGH} <= set(table):
        # Either the figure alone, or three numbers in ascending order, which may be equal.
        return math.log2(1 + points + math.comb(points + 2, 3))
    return math.log2(1 + points)


def _bits_of_rung(name: str, rungs: int) -> float:
    """Return the bits of a whole tail at its first rung, and 0 at the others: they are in ascending order."""
    (names,) = (names for names in TAILS if name in names)
    if name != names[0]:
        return 0.0
    return math.log2(1 + math.comb(rungs + len(names) - 1, len(names)))


def page_table() -> str:
    """Return the table in docs/one-reply.md."""
    head = ("| reply | bits | besides |", "| --- | --- | --- |")
    rows = [f"| `{kind}`: {_SAYS[kind]} | {math.ceil(bits(kind))} | {_besides(kind)} |" for kind in FIGURES]
    codes = f"| a code: refused, or failed | {code_bits():.1f} | an app alone: {code_bits(OF_APPS):.1f} |"
    return "\n".join((*head, *rows, *map(_summed_row, _IN_SUMS), codes)) + "\n"


def _summed_row(kind: Kind) -> str:
    bits = math.ceil(summed_bits(kind, of_class=_OF_CLASS))
    return f"| `{kind}` in a masked study | {bits} | classes of {_OF_CLASS} patients; leaves only in a sum |"


def _besides(kind: Kind) -> str:
    if kind in TRAINING:
        return "the model's weights: no bound"
    if kind == "evaluate.test":
        more = math.ceil(bits(kind, histograms=_OF_CLASS) - bits(kind))
        return f"with histograms, classes of {_OF_CLASS} patients: {more} more"
    if kind == "evaluate.embed":
        return f"for {FEATURES} features and {APPEARANCE_SIZE} appearance features"
    return "the app chooses nothing" if kind == HANDSHAKE else ""


def with_table(page: str) -> str:
    """Return the page with the table in its place. Raises ValueError if the page has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("the page has no place for the table")
    return f"{before}{begin}\n{page_table()}{end}{after}"


if __name__ == "__main__":
    _PAGE.write_text(with_table(_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(page_table())
