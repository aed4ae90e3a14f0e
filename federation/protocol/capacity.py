"""How many bits one reply of a site can carry beside a model: counted from the tables, not estimated.

    python -m federation.protocol.capacity     writes the table of docs/one-reply.md anew

Counted are the replies that can be told apart: every figure on its grid or absent, every number of an array of moments,
every code. What the gateway sets or demands itself (the weight of a reply, prevalences, ε, digests, counters) carries
nothing of an app's choosing. A model's weights are not counted: no bound holds for them.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from federation.protocol.coarse_moments import RANGES
from federation.protocol.error_codes import OF_APPS, OF_SITES
from federation.protocol.figure_rounding import HIGH, LOW, figure_of_end
from federation.protocol.metric_allowlist import (
    BINS,
    EPSILON,
    FIGURES,
    HANDSHAKE,
    LABELS,
    LOOKS,
    TRAINING,
    Figure,
    Kind,
)

FEATURES = 128  # of a scan, in the default network
BEGIN, END = "<!-- begin: bits -->", "<!-- end: bits -->"
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "one-reply.md"
_SAYS: Mapping[Kind, str] = {
    "query.handshake": "the handshake: version, two digests, a band of patients",
    "train": "a round of training, beside the model",
    "train.head": "the head fitted, beside the model",
    "evaluate.calibrate": "calibration and thresholds",
    "evaluate.test": "a test, with the shortcut audit",
    "evaluate.embed": "moments of features and looks",
    "evaluate.assign": "the sites that test patients are taken for",
}


def bits(kind: Kind, *, histograms: int = 0, features: int = FEATURES) -> float:
    """Bits of the values that an app can choose in a reply of that kind, without a model's weights.

    `histograms`: where a site lets counts of its patients out, the size of its largest class; else 0. `features`: how
    many numbers the network makes of a scan.
    """
    table = {name: figure for name, figure in FIGURES[kind].items() if name != EPSILON and figure.counts is None}
    told = sum(_bits_of(name, table) for name in table if not figure_of_end(name, table))
    if kind == "evaluate.embed":
        told += (features + LOOKS) * sum(math.log2(numbers.points) for numbers in RANGES.values())
    if kind == "evaluate.test" and histograms:
        # The counts of a class are at most as many as it has: so many patients on BINS bins, and those left out.
        told += 2 * len(LABELS) * math.log2(math.comb(histograms + BINS, BINS))
    return told


def code_bits(codes: frozenset[str] = OF_SITES) -> float:
    """Bits of an answer that is a code."""
    return math.log2(len(codes))


def _bits_of(name: str, table: Mapping[str, Figure]) -> float:
    """Of a figure with its interval, if it has one; that it is absent is a value too."""
    figure = table[name]
    if figure.tells_classes:  # the gateway knows it: it is there or not
        return 1.0
    if figure.grid is None:
        raise ValueError(f"{name} has no grid")
    points = figure.grid.points(figure.low, figure.high)
    if {name + LOW, name + HIGH} <= set(table):
        # The figure alone, or three numbers in order, equal ones included.
        return math.log2(1 + points + math.comb(points + 2, 3))
    return math.log2(1 + points)


def page_table() -> str:
    """The table of docs/one-reply.md."""
    head = ("| reply | bits | besides |", "| --- | --- | --- |")
    rows = [f"| `{kind}`: {_SAYS[kind]} | {math.ceil(bits(kind))} | {_besides(kind)} |" for kind in FIGURES]
    codes = f"| a code: refused, or failed | {code_bits():.1f} | an app alone: {code_bits(OF_APPS):.1f} |"
    return "\n".join((*head, *rows, codes)) + "\n"


def _besides(kind: Kind) -> str:
    if kind in TRAINING:
        return "the model's weights: not bounded"
    if kind == "evaluate.test":
        more = math.ceil(bits(kind, histograms=100) - bits(kind))
        return f"with histograms, classes of 100 patients: {more} more"
    if kind == "evaluate.embed":
        return f"for {FEATURES} features and {LOOKS} looks"
    return "nothing is of the app's choosing" if kind == HANDSHAKE else ""


def with_table(page: str) -> str:
    """The page with the table in its place. Raises ValueError where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("the page has no place for the table")
    return f"{before}{begin}\n{page_table()}{end}{after}"


if __name__ == "__main__":
    _PAGE.write_text(with_table(_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(page_table())
