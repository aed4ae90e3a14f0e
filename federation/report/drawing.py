"""The drawing of the report's figures: one style, a few chart types, SVG with text as paths.

matplotlib is imported only when a figure is drawn. Each chart type returns a `Figure` whose `uri` is an SVG for an
<img> of the page.
"""

import base64
import io
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.report.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 9.6  # inches; the page shows it at its full width
INK, SOFT, LINE, PALE = "#14181d", "#4a5460", "#8b96a3", "#e4e8ed"
# Distinguishable in grey print and for the colour-blind (Okabe and Ito); each has its own marker.
STYLES: Mapping[str, Mapping[str, Any]] = {
    "first": {"color": "#1f4e79", "marker": "o"},
    "second": {"color": "#d55e00", "marker": "s"},
    "third": {"color": "#5f6b76", "marker": "^"},
    "fourth": {"color": "#009e73", "marker": "D"},
}
MANY = 24  # sites; with more, there is no room for each site in a figure, or for a row of each in a table
WIDE = 8  # sites; a table with more columns would not fit on a sheet of paper
NUMBERED_CELLS = 260  # in a heat map with more cells, numbers are not readable
_LONGEST_NAME = 26  # characters


@dataclass(frozen=True)
class Figure:
    """A figure. `uri`: an SVG. `width`: in inches as drawn. `alt`: the alternative text."""

    uri: str
    width: float
    alt: str


def shown(name: str) -> str:
    """Return a name for the page: invisible characters and those that change the text direction are replaced."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") else c for c in name)


def short(name: str) -> str:
    """Shorten a name for a figure to its beginning and end."""
    text = shown(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[:13]}…{text[13 - _LONGEST_NAME + 1 :]}"


@contextmanager
def canvas(height: float, width: float = WIDTH) -> Iterator["Canvas"]:
    """Make an empty drawing of `width` x `height` inches in the report's style."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    style: Any = {
        "svg.hashsalt": "fedthorax",
        "svg.fonttype": "path",
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # a name may contain a dollar sign
        "axes.edgecolor": LINE,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": PALE,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "hatch.linewidth": 0.5,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # for a name in a script that the font lacks
        yield Drawing(figsize=(width, height), layout="constrained")


def finished(drawing: "Canvas", alt: str) -> Figure:
    """Return the drawing as SVG, with the same bytes each time."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.BytesIO()
    FigureCanvasSVG(drawing).print_svg(file, metadata={"Date": None, "Creator": None})
    uri = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
    return Figure(uri, drawing.get_figwidth(), alt)


def dots(axes: "Axes", at: Sequence[float], cells: Sequence[Estimate | None], style: str, label: str) -> None:
    """Draw estimates as points with their intervals, at heights `at`; None is left out."""
    known = [(height, cell) for height, cell in zip(at, cells, strict=True) if cell and cell["value"] is not None]
    for height, cell in known:
        if cell["low"] is not None and cell["high"] is not None:
            axes.plot([cell["low"], cell["high"]], [height, height], color=STYLES[style]["color"], linewidth=1.3)
    axes.plot(
        [cell["value"] for _, cell in known],
        [height for height, _ in known],
        linestyle="none",
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=label,
        **STYLES[style],
    )


def lowest_auroc(cells: Iterable[Estimate | None]) -> float:
    """Return the start of an AUROC axis: 0.4, or lower if an interval is lower."""
    lows = [cell["value"] if cell["low"] is None else cell["low"] for cell in cells if cell]
    return max(0.0, min([0.4, *(low - 0.03 for low in lows)]))


def name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Set up one row for each name, the first at the top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def heat(
    drawing: "Canvas",
    axes: "Axes",
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float = 1.0,
    label: str,
) -> None:
    """Draw a heat map from `low` (pale) to `high`; missing values are hatched; numbers are shown if readable."""
    import numpy as np

    mesh = heat_mesh(axes, values, low=low, high=high)
    table = mesh.get_array().filled(np.nan)
    if table.size <= NUMBERED_CELLS:
        axes.set_yticks(np.arange(len(rows)) + 0.5, [short(row) for row in rows])
        slant: Any = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if len(columns) > 6 else {}
        axes.set_xticks(np.arange(len(columns)) + 0.5, [short(column) for column in columns], **slant)
        axes.xaxis.tick_top()
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                colour = "white" if (value - low) / (high - low) > 0.68 else INK
                axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", color=colour)
    heat_bar(drawing, mesh, axes, label)


def heat_mesh(axes: "Axes", values: Sequence[Sequence[float | None]], *, low: float, high: float = 1.0) -> Any:
    """Draw only the cells of a heat map."""
    import numpy as np

    table = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)
    readable = table.size <= NUMBERED_CELLS
    axes.set_facecolor("#ffffff")
    axes.patch.set(hatch="////", edgecolor="#c9d0d8")
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(table),
        cmap="Blues",
        vmin=low,
        vmax=high,
        edgecolors="white" if readable else "none",
        linewidth=1.2 if readable else 0,
        rasterized=not readable,
    )
    axes.set(xlim=(0, table.shape[1]), ylim=(table.shape[0], 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return mesh


def heat_bar(drawing: "Canvas", mesh: Any, axes: "Axes | list[Axes]", label: str) -> None:
    """Draw the colour scale of a heat map."""
    bar = drawing.colorbar(mesh, ax=axes, shrink=min(1.0, 2.2 / drawing.get_figheight()), pad=0.01, aspect=14)
    bar.set_label(label)
    bar.outline.set_visible(False)
