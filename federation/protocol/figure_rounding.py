"""Round a reply's figures to their grids: in the app before it replies, and in the gateway as it composes the reply.

The grid of a share depends on the number of patients that it covers, which both take from the cohort.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from federation.protocol.grids import Digits, Ladder, Shares, Threes, Toward
from federation.protocol.metric_allowlist import FIGURES, TAILS, Figure, Kind
from federation.protocol.patient_counts import Patients

LOW, HIGH = "_low", "_high"  # suffixes of a figure's name: the limits of its interval


def rounded(figures: Mapping[str, float], kind: Kind, patients: Patients) -> dict[str, float]:
    """Round the figures to their grids, keeping their order.

    An interval is rounded outwards and always contains its figure; a limit without the figure or the other limit is
    omitted. The rungs of a tail are put in order. Names that are not in the table, and figures without a grid, stay
    unchanged.
    """
    table = FIGURES[kind]
    found: dict[str, float] = {}
    for name, value in figures.items():
        base = figure_of_end(name, table)
        if name not in table:
            found[name] = value
        elif not base:
            found[name] = _on_grid(value, table[name], patients, "nearest")
        elif {base, base + LOW, base + HIGH} <= set(figures):
            middle = _on_grid(figures[base], table[base], patients, "nearest")
            if name.endswith(LOW):
                found[name] = min(middle, _on_grid(value, table[name], patients, "down"))
            else:
                found[name] = max(middle, _on_grid(value, table[name], patients, "up"))
    for names in TAILS:
        _order(found, [name for name in names if name in found and name in table])
    return found


def _order(figures: dict[str, float], names: Sequence[str]) -> None:
    """Put a tail's rungs in order: more patients may be missed at a later one. Ruling in begins at the top."""
    further = min if names and names[0].startswith("rule_in") else max
    for before, name in pairwise(names):
        figures[name] = further(figures[before], figures[name])


def figure_of_end(name: str, table: Mapping[str, Figure]) -> str:
    """Return the name of the figure whose interval has this limit; "" if it is not a limit of an interval."""
    for end in (LOW, HIGH):
        base = name.removesuffix(end)
        if base != name and base in table:
            return base
    return ""


def _on_grid(value: float, figure: Figure, patients: Patients, toward: Toward) -> float:
    grid = figure.grid
    if grid is None:
        return value
    if isinstance(grid, Shares):
        return grid.rounded(value, patients.among(figure, grid.of), toward)
    return grid.rounded(value) if isinstance(grid, Digits | Threes | Ladder) else grid.rounded(value, toward)
