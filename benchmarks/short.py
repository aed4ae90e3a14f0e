"""The short form for `make test`: measure a few ratios again, and compare them with the committed ones.

    python benchmarks/short.py

It fails if a ratio is worse than that in benchmarks/results/ by more than LOOSE, twice in a row. All are ratios of
processor time, because other tests run at the same time. Nothing is written. Improved ratios are reported only by
`make bench`.

Ratios differ between processors too: reading uncompressed slices took 2.7 times fewer seconds than pydicom on one
machine and 2.0 times fewer on another that is twice as fast. The committed ratios are those of the faster machine.
"""

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from common import Figure, Part

PARTS = ("reading", "training", "scoring")
LOOSE = 1.5  # with three busy processes on two cores, ratios differed from those of an idle machine by up to 1.11
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Held:
    """One ratio now and as committed; `worse` is 1 if both are the same, 2 if ours takes twice as long."""

    name: str
    now: float
    committed: float
    worse: float

    @property
    def is_kept(self) -> bool:
        return self.worse <= LOOSE

    def __str__(self) -> str:
        verdict = "as before" if self.is_kept else f"WORSE by {self.worse:.1f}"
        return f"{self.name}: {self.now:.2f}, committed {self.committed:.2f}: {verdict}"


def hold(figures: Iterable[Figure], committed: Sequence[dict[str, Any]]) -> list[Held]:
    """Pair the figures that have a goal with the committed ones of the same name.

    Raises LookupError if one of them was never committed, because there is nothing to compare it with.
    """
    ratios = {(each["name"], each["against"], each["unit"]): each["ratio"] for each in committed}
    held = []
    for figure in figures:
        if figure.target:
            before = ratios[figure.name, figure.against, figure.unit]
            more = figure.ratio / before
            worse = more if figure.target.startswith("at most") else 1 / more
            held.append(Held(f"{figure.name} / {figure.against}", figure.ratio, before, worse))
    return held


def measured(part: str) -> list[Held]:
    """Measure one part, and compare it."""
    with tempfile.TemporaryDirectory() as folder:
        result: Part = import_module(part).measure(Path(folder), is_short=True)
    return hold(result.figures, json.loads((RESULTS / f"{part}.json").read_text())["figures"])


def main() -> int:
    held = []
    for part in PARTS:
        compared = measured(part)
        if not all(each.is_kept for each in compared):  # once more: another test may have filled the caches
            compared = [min(pair, key=lambda each: each.worse) for pair in zip(compared, measured(part), strict=True)]
        print(*compared, sep="\n", flush=True)
        held += compared
    lost = [each for each in held if not each.is_kept]
    if lost:
        print(f"{len(lost)} of {len(held)} ratios are worse than the committed ones: see with `make bench`")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
