"""Figures about calibration and thresholds. A function returns None without data to draw, or without room."""

from collections.abc import Mapping
from typing import Any

from federation.report.drawing import (
    INK,
    LINE,
    MANY,
    STYLES,
    Figure,
    canvas,
    dots,
    finished,
    lowest_auroc,
    name_rows,
    short,
)
from federation.report.estimates import LABELS, NAMES

Content = Mapping[str, Any]


def roc(pooled: Content) -> Figure | None:
    """Draw ROC curves of all sites' patients together, by label."""
    return _square(pooled, "curve", "false-positive rate (1 − specificity)", "sensitivity", "ROC of pooled patients")


def reliability(pooled: Content) -> Figure | None:
    """Draw the observed share against the predicted probability for all sites' patients together, by label."""
    alt = "Reliability curve of pooled patients"
    return _square(pooled, "reliability", "predicted probability", "observed share", alt)


def _square(pooled: Content, key: str, across: str, up: str, alt: str) -> Figure | None:
    known = {label: found for label in LABELS if (found := pooled[label]) and found[key]}
    if not known:
        return None
    with canvas(3.5, 3.9) as drawing:
        axes = drawing.subplots()
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1, linestyle=":")
        for style, (label, found) in zip(("first", "second"), known.items(), strict=False):
            axes.plot(
                *zip(*found[key], strict=True), markersize=3.5, linewidth=1.4, label=NAMES[label], **STYLES[style]
            )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel=across, ylabel=up)
        axes.grid()
        axes.legend(loc="lower right")
        return finished(drawing, alt)


def decision_of_all(labels: Content) -> Figure | None:
    """Draw one panel for each label of a masked study, over all patients together."""
    known = {NAMES[label]: found["benefit"] for label in LABELS if (found := labels[label]) and found["benefit"]}
    return decision(known, "Decision curves of all patients together: the model, treating all, treating none")


def decision(
    rows: Content, alt: str = "Decision curves of severe by site: the model, treating all, treating none"
) -> Figure | None:
    """Draw one panel for each row, such as a site: net benefit of the model, of treating all and of treating none."""
    if not rows or len(rows) > MANY // 2:
        return None
    across = min(4, len(rows))
    down = -(-len(rows) // across)
    with canvas(0.45 + 1.75 * down) as drawing:
        panels = drawing.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        benefits = [point["model"] for row in rows.values() for point in row.values()]
        ends = (min(-0.1, *benefits) - 0.03, max(0.1, *benefits) + 0.03)
        for axes, (site, row) in zip(panels, rows.items(), strict=False):
            percents = [int(percent) for percent in row]
            everyone = [point["treat_all"] for point in row.values()]
            axes.axhline(0, color=INK, linewidth=0.9, label="treat none")
            axes.plot(
                percents, everyone, color=STYLES["second"]["color"], linestyle="--", linewidth=1.3, label="treat all"
            )
            model = [point["model"] for point in row.values()]
            axes.plot(percents, model, linewidth=1.5, markersize=4, label="act on the model", **STYLES["first"])
            axes.set(title=short(site), xticks=[10, 20, 30, 40, 50], ylim=ends)
            axes.grid(axis="y")
        for axes in panels[len(rows) :]:
            axes.set_axis_off()
        for axes in panels[len(rows) - across : len(rows)]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
        drawing.supxlabel("threshold probability, %", fontsize=9)
        drawing.supylabel("net benefit", fontsize=9)
        drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return finished(drawing, alt)


def transfer(found: Content) -> Figure | None:
    """Draw, for each threshold and site, the sensitivity or specificity that it was chosen for; the aim is dashed."""
    rows = found["by_site"]
    if not rows or len(rows) > MANY:
        return None
    with canvas(0.75 + 0.25 * len(rows)) as drawing:
        points = found["points"]
        for axes, (name, point) in zip(
            drawing.subplots(1, len(points), sharey=True, squeeze=False)[0], points.items(), strict=True
        ):
            dots(
                axes, range(len(rows)), [row[f"{point['learnt_for']}_at_{name}"] for row in rows.values()], "first", ""
            )
            name_rows(axes, list(rows))
            axes.axvline(point["aim"], color=STYLES["second"]["color"], linewidth=1.2, linestyle="--")
            cells = [cell for row in rows.values() if (cell := row[f"{point['learnt_for']}_at_{name}"])]
            lowest = min((cell["value"] if cell["low"] is None else cell["low"] for cell in cells), default=0.5)
            axes.set(
                xlim=(max(-0.02, min(0.5, lowest - 0.05)), 1.02), xlabel=f"{point['learnt_for']} (dashed: the aim)"
            )
            axes.set_title("rule out" if name == "rule_out" else "rule in")
        return finished(drawing, "Sensitivity and specificity that each threshold reaches at each site")


def baselines(rows: Content) -> Figure | None:
    """Draw, by site, the model, age and sex alone, and lesion load alone."""
    if not rows or len(rows) > MANY:
        return None
    series = (("model", "first", "the model", -0.2), ("lesion_load", "second", "lesion load alone", 0.0))
    with canvas(0.95 + 0.33 * len(rows)) as drawing:
        axes = drawing.subplots()
        for key, style, label, shift in (*series, ("age_sex", "third", "age and sex alone", 0.2)):
            dots(
                axes, [height + shift for height in range(len(rows))], [row[key] for row in rows.values()], style, label
            )
        name_rows(axes, list(rows))
        cells = [row[key] for row in rows.values() for key in ("model", "lesion_load", "age_sex")]
        axes.set(xlim=(lowest_auroc(cells), 1.0), xlabel="AUROC of severe (95 % interval)")
        drawing.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return finished(drawing, "By site the AUROC of the model, of lesion load alone, and of age and sex alone")


def subgroups(kinds: Content, names: Mapping[str, Mapping[str, str]]) -> Figure | None:
    """Draw one panel for each kind of group: the AUROC of each group at each site that reported it."""
    cells = [
        cell for groups in kinds.values() for group in groups.values() for cell in group["by_site"].values() if cell
    ]
    sites = list(
        dict.fromkeys(site for groups in kinds.values() for group in groups.values() for site in group["by_site"])
    )
    if not cells or len(sites) > MANY:
        return None
    styles = list(STYLES)
    with canvas(3.4) as drawing:
        panels = drawing.subplots(1, len(kinds))
        step = 0.8 / max(1, len(sites))
        for axes, (kind, groups) in zip(panels, kinds.items(), strict=True):
            for k, site in enumerate(sites):
                heights = [row + (k - (len(sites) - 1) / 2) * step for row in range(len(groups))]
                style = styles[k] if len(sites) <= len(styles) else "first"
                dots(axes, heights, [group["by_site"].get(site) for group in groups.values()], style, short(site))
            name_rows(axes, [names[kind][group] for group in groups])
            axes.set(xlim=(lowest_auroc(cells), 1.02), xlabel="AUROC of severe", title=kind)
        if len(sites) <= len(styles):
            drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(sites))
        return finished(drawing, "AUROC of severe by sex, age and scanner, at each site")
