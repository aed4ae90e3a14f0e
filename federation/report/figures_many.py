"""The report's figures for many sites: without site names, which would not be readable, and with sorted sites."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation.report.drawing import MANY, STYLES, Figure, canvas, finished, heat_bar, heat_mesh, short
from federation.report.estimates import value_of

Content = Mapping[str, Any]

_BLOCKS = {"left_out": "without a site", "fine_tuned": "fine-tuned", "local": "one site alone"}
_THIN, _THICK = 0.3, 2.6  # inches: height of a block with one model, and largest height


def matrix(found: Content) -> Figure:
    """Draw models in rows, in one block for each kind; sites in columns, by ascending AUROC of the first model."""
    models = found["models"]
    first = models[0]["cells"]
    sites = sorted(found["sites"], key=lambda site: value_of(first.get(site)) or 0.0)
    blocks = {kind: [m for m in models if m["kind"] == kind] for kind in dict.fromkeys(m["kind"] for m in models)}
    heights = [_height(len(block)) for block in blocks.values()]
    with canvas(sum(heights) + 0.5) as drawing:
        panels = drawing.subplots(len(blocks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (kind, block) in zip(panels, blocks.items(), strict=True):
            values = [[value_of(model["cells"].get(site)) for site in sites] for model in block]
            mesh = heat_mesh(axes, values, low=0.5)
            axes.set_yticks(
                [len(block) / 2], [f"{_BLOCKS.get(kind, kind)}{f' ({len(block)})' if len(block) > 1 else ''}"]
            )
            axes.set_xticks([])
        panels[-1].set_xlabel(
            f"{len(sites)} sites, from the lowest AUROC of the {models[0]['name']} model to its highest"
        )
        heat_bar(drawing, mesh, list(panels), "AUROC")
        return finished(drawing, "Heat map of the AUROC of each model at each site, sites in order")


def _height(models: int) -> float:
    return min(_THICK, max(_THIN, 0.09 * models))


def participation(report: Content) -> Figure | None:
    """Draw sites in columns and rounds in rows: counted, missing or refused, or not sampled.

    The sites that were missing or refused most often are first.
    """
    rows: Mapping[str, Sequence[str | None]] = report["by_site"]
    if all(mark == "counted" for row in rows.values() for mark in row):
        return None
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    sites = sorted(rows, key=lambda site: (-sum(mark == "refused" for mark in rows[site]), site))
    kinds = {"counted": STYLES["first"]["color"], "refused": STYLES["second"]["color"], "not asked": "#e4e8ed"}
    marks = [
        [list(kinds).index(rows[site][place] or "not asked") for site in sites]
        for place in range(len(report["rounds"]))
    ]
    with canvas(min(3.6, 1.1 + 0.11 * len(marks))) as drawing:
        axes = drawing.subplots()
        colours = ListedColormap(list(kinds.values()))
        axes.pcolormesh(marks, cmap=colours, vmin=-0.5, vmax=len(kinds) - 0.5, edgecolors="white", linewidth=0.4)
        axes.set(ylim=(len(marks), 0), ylabel="round")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks(*_some_rounds(report["rounds"]))
        if len(sites) > MANY:
            axes.set(xticks=[], xlabel=f"{len(sites)} sites, most often missing or refused first")
        else:
            places = [place + 0.5 for place in range(len(sites))]
            axes.set_xticks(places, [short(site) for site in sites], rotation=40, ha="right", rotation_mode="anchor")
        handles = [Patch(color=colour, label=kind) for kind, colour in kinds.items()]
        handles[1].set_label("missing or refused")
        drawing.legend(handles=handles, loc="outside upper center", ncols=3)
        return finished(drawing, "Which site counted, was missing or refused, or was not asked, in each round")


def _some_rounds(rounds: Sequence[int]) -> tuple[list[float], list[str]]:
    """Return positions and labels of at most ten rounds."""
    step = -(-len(rounds) // 10)
    shown = range(0, len(rounds), step)
    return [place + 0.5 for place in shown], [str(rounds[place]) for place in shown]
