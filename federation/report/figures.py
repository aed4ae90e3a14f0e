"""The report's figures, drawn from the report's content only. A function returns None if there is nothing to draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation.report import figures_many
from federation.report.drawing import (
    LINE,
    MANY,
    NUMBERED_CELLS,
    PALE,
    STYLES,
    WIDTH,
    Figure,
    canvas,
    dots,
    finished,
    heat,
    lowest_auroc,
    name_rows,
)
from federation.report.estimates import NAMES, value_of

Content = Mapping[str, Any]


def aurocs(cells: Mapping[str, Any]) -> Figure | None:
    """Draw the federated model's AUROC of severe by site; with many sites, in ascending order and without names."""
    if not cells:
        return None
    found = {site: row["auroc"] for site, row in cells.items()}
    alt = "AUROC of severe at each site with its 95 % interval"
    with canvas(2.6 if len(found) > MANY else 0.75 + 0.27 * len(found)) as drawing:
        axes = drawing.subplots()
        if len(found) > MANY:
            _ranked(axes, [cell for cell in found.values() if cell])
        else:
            dots(axes, range(len(found)), list(found.values()), "first", "")
            name_rows(axes, list(found))
            axes.axvline(0.5, color=LINE, linewidth=1, linestyle=":")
            axes.set(xlim=(lowest_auroc(found.values()), 1.0), xlabel="AUROC of severe (95 % interval); dotted: chance")
        return finished(drawing, alt)


def _ranked(axes: Any, cells: Sequence[Any]) -> None:
    ranked = sorted(cells, key=lambda cell: cell["value"])
    for rank, cell in enumerate(ranked, start=1):
        if cell["low"] is not None and cell["high"] is not None:
            axes.plot([rank, rank], [cell["low"], cell["high"]], color=STYLES["first"]["color"], linewidth=1)
    heights = [cell["value"] for cell in ranked]
    axes.plot(range(1, len(ranked) + 1), heights, linestyle="none", markersize=3, **STYLES["first"])
    axes.axhline(0.5, color=LINE, linewidth=1, linestyle=":")
    axes.grid(axis="y")
    axes.set(ylim=(lowest_auroc(ranked), 1.0), xlabel="sites, from the lowest to the highest", ylabel="AUROC of severe")


def matrix(found: Content) -> Figure | None:
    """Draw models in rows and sites in columns. Frames mark own sites (solid) and sites without patients (dashed)."""
    sites, models = found["sites"], found["models"]
    if not models:
        return None
    if len(sites) * len(models) > NUMBERED_CELLS or len(sites) > MANY:
        return figures_many.matrix(found)
    values = [[value_of(model["cells"].get(site)) for site in sites] for model in models]
    with canvas(0.75 + 0.29 * len(models) + (0.5 if len(sites) > 6 else 0)) as drawing:
        axes = drawing.subplots()
        heat(drawing, axes, values, [m["name"] for m in models], sites, low=0.5, label="AUROC")
        _frame(axes, sites, models)
        return finished(drawing, "Heat map of the AUROC of each model at each site")


def _frame(axes: Any, sites: Sequence[str], models: Sequence[Content]) -> None:
    from matplotlib.patches import Rectangle

    lines = {"own": "-", "outside": (0, (2.5, 1.5))}
    for row, model in enumerate(models):
        for column, site in enumerate(sites):
            place = model["cells"].get(site, {}).get("place", "")
            if place:
                box = Rectangle((column + 0.04, row + 0.07), 0.92, 0.86, fill=False, linewidth=1.5)
                axes.add_patch(box)
                box.set(edgecolor="#d55e00", linestyle=lines[place])


def leave_one_out(rows: Content) -> Figure | None:
    """Draw for each site the federation without it, the full federation, and its own model."""
    if not rows or len(rows) > MANY:
        return None
    with canvas(0.95 + 0.33 * len(rows)) as drawing:
        axes = drawing.subplots()
        heights = range(len(rows))
        series = (("federated", "first", "the full federation", -0.2), ("without", "second", "without this site", 0.0))
        for key, style, label, shift in (*series, ("alone", "third", "this site alone", 0.2)):
            cells = [row[key] for row in rows.values()]
            if any(cells):
                dots(axes, [height + shift for height in heights], cells, style, label)
        name_rows(axes, list(rows))
        every = [row[key] for row in rows.values() for key in ("federated", "without", "alone")]
        axes.set(xlim=(lowest_auroc(every), 1.0), xlabel="AUROC of severe (95 % interval)")
        drawing.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return finished(
            drawing, "At each site the AUROC of the full federation, of the one without it, and of its own model"
        )


def learning(rounds: Sequence[Content]) -> Figure | None:
    """Draw mean losses and mean validation AUROC by round; lost rounds are shaded."""
    curves = {
        "mean loss": [
            ("mean_validation_loss_severe", "first", f"{NAMES['severe']}, validation"),
            ("mean_validation_loss_pcr_positive", "second", f"{NAMES['pcr_positive']}, validation"),
            ("mean_train_loss", "third", "training"),
        ],
        "mean validation AUROC": [
            ("mean_validation_auroc_severe", "first", NAMES["severe"]),
            ("mean_validation_auroc_pcr_positive", "second", NAMES["pcr_positive"]),
        ],
    }
    curves = {
        title: lines
        for title, lines in curves.items()
        if any(entry[key] is not None for entry in rounds for key, _, _ in lines)
    }
    if not curves:
        return None
    with canvas(2.5) as drawing:
        for axes, (title, lines) in zip(
            drawing.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
        ):
            _shade_lost(axes, rounds)
            for key, style, label in lines:
                known = [(entry["round"], entry[key]) for entry in rounds if entry[key] is not None]
                axes.plot(*zip(*known, strict=True), markersize=3.5, linewidth=1.3, label=label, **STYLES[style])
            axes.set_title(title)
            _by_round(axes)
            if len(lines) > 1:
                axes.legend(loc="best")
        return finished(drawing, "Mean losses and mean validation AUROC by round, lost rounds shaded")


def costs(rounds: Sequence[Content]) -> Figure | None:
    """Draw seconds and megabytes of each round; lost rounds are shaded."""
    if not rounds:
        return None
    numbers = [entry["round"] for entry in rounds]
    with canvas(2.1) as drawing:
        seconds, megabytes = drawing.subplots(1, 2)
        for axes in (seconds, megabytes):
            _shade_lost(axes, rounds)
            _by_round(axes)
        seconds.bar(numbers, [entry["seconds"] for entry in rounds], width=0.7, color=STYLES["first"]["color"])
        seconds.set_title("seconds")
        down = [entry["bytes_down"] / 1e6 for entry in rounds]
        up = [entry["bytes_up"] / 1e6 for entry in rounds]
        megabytes.bar(numbers, down, width=0.7, color=STYLES["first"]["color"], label="to the sites")
        megabytes.bar(numbers, up, width=0.7, bottom=down, color="#d9a066", label="from the sites")
        megabytes.set_title("megabytes, all sites together")
        megabytes.set_ylim(0, 1.35 * max(map(sum, zip(down, up, strict=True))) or 1)
        megabytes.legend(loc="upper right", ncols=2)
        return finished(drawing, "Seconds and megabytes of each round, lost rounds shaded")


def _shade_lost(axes: Any, rounds: Sequence[Content]) -> None:
    for entry in rounds:
        if entry["lost"]:
            axes.axvspan(
                entry["round"] - 0.5,
                entry["round"] + 0.5,
                facecolor=PALE,
                hatch="////",
                edgecolor="#c9d0d8",
                linewidth=0,
            )


def _by_round(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.grid(axis="y")


def confusion(probe: Content) -> Figure | None:
    """Draw the confusion matrix of sites: rows are a patient's site, columns the site predicted from the embedding."""
    shares = probe["confusion"]
    rows, columns = list(shares), list(dict.fromkeys(site for row in shares.values() for site in row))
    if not rows:
        return None
    values = [[row.get(site) for site in columns] for row in shares.values()]
    is_wide = len(rows) * len(columns) > NUMBERED_CELLS
    height = 3.9 if is_wide else 0.85 + 0.3 * len(rows) + (0.5 if len(columns) > 6 else 0)
    with canvas(height, 4.8 if is_wide else min(WIDTH, 2.6 + 0.75 * len(columns))) as drawing:
        axes = drawing.subplots()
        # With many sites all shares are small, so the colours end at the largest share.
        high = max(0.1, *(share for row in shares.values() for share in row.values())) if is_wide else 1.0
        heat(drawing, axes, values, rows, columns, low=0.0, high=high, label="share of test patients")
        axes.set(ylabel="true site", xlabel="predicted site")
        if is_wide:
            axes.set(xticks=[], yticks=[])
        return finished(drawing, "Share of each site's test patients whose embedding is assigned to each site")
