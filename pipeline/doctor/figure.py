"""The figure that shows how the cohort changes with the windows of the join."""

import base64
import io
from collections.abc import Sequence

from pipeline.doctor.suppression import leaks, rounded, within
from pipeline.records.join import JoinRules
from pipeline.records.join_sensitivity import VARIED, Variant

CURVES = ("positive", "negative", "undecided")
_TITLES = {
    "positive_from_days": "first day for a positive",
    "positive_to_days": "last day for a positive",
    "negative_to_days": "last day for a negative",
}
# Distinguishable in grey print and for colour-blind readers (Okabe and Ito).
_STYLES = {
    "positive": {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    "negative": {"color": "#d55e00", "marker": "s", "linestyle": "--"},
    "undecided": {"color": "#5f6b76", "marker": "^", "linestyle": ":"},
}
Point = dict[str, int | None]


def points(variants: Sequence[Variant], minimum: int, curves: Sequence[str]) -> list[Point]:
    """Return the values to draw for each variant: multiples of `minimum`, None for hidden values.

    If the total and the other curves would reveal a small count, nothing is drawn at that window.
    """
    return [_point(variant, minimum, curves) for variant in variants]


def _point(variant: Variant, minimum: int, curves: Sequence[str]) -> Point:
    counts = {curve: getattr(variant, curve) for curve in CURVES}
    point: Point = {curve: rounded(counts[curve], minimum) if curve in curves else None for curve in CURVES}
    if len(curves) < len(CURVES):
        return point
    total = variant.positive + variant.negative + variant.undecided
    ranges = [(value or 0, (value or 0) + minimum - 1) for value in point.values()]
    # As in the waterfall: a count of zero undecided patients needs no protection.
    sensitive = [i for i, curve in enumerate(CURVES) if counts[curve] or curve != "undecided"]
    reveals = any(leaks(within((total, total), ranges, i), minimum) for i in sensitive)
    return dict.fromkeys(CURVES) if reveals else point


def draw(variants: Sequence[Variant], rules: JoinRules, minimum: int, curves: Sequence[str]) -> str:
    """Return the figure as a data URI (SVG), '' if nothing may be drawn. Its counts are those of `points`."""
    drawn = points(variants, minimum, curves)
    if not any(value for point in drawn for value in point.values()):
        return ""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context({"svg.hashsalt": "fedthorax", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        axes = figure.subplots(1, len(VARIED), sharey=True)
        for ax, rule in zip(axes, VARIED, strict=True):
            here = [(v.days, point) for v, point in zip(variants, drawn, strict=True) if v.rule == rule]
            for curve in curves:
                days, heights = [day for day, _ in here], [point[curve] or float("nan") for _, point in here]
                ax.plot(days, heights, markersize=3.5, linewidth=1.2, label=curve, **_STYLES[curve])
            ax.axvline(getattr(rules, rule), color="#14181d", linewidth=0.8, linestyle=(0, (1, 2)))
            ax.set_title(f"{_TITLES[rule]}\nnow: day {getattr(rules, rule)}", fontsize=9)
            ax.set_xlabel("days from the CT")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", color="#e4e8ed", linewidth=0.7)
            ax.set_axisbelow(True)
        axes[0].set_ylabel("patients")
        axes[0].set_ylim(bottom=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        file = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
