"""Write the report's page and report.json into one folder, completely or not at all.

The page opens offline, runs no script and prints on A4. Names of studies, runs and sites are user input: all of them
are escaped, and characters that change the text direction are replaced by a mark.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader
from markupsafe import Markup, escape

from federation.report import figures, figures_many, figures_trust
from federation.report.content import SECTION, SECTIONS, content
from federation.report.drawing import MANY, WIDE, Figure, shown
from federation.report.estimates import LABELS, NAMES, PRIMARY
from federation.report.trust import GROUPS
from federation.runs.figures_from_counts import PERCENTS
from federation.runs.results import Results
from models.refusal import Refusal
from pipeline.scoring.reasons import REPORT_WRITE
from pipeline.system.atomic_files import named_file, write_durably
from pipeline.system.templating import page_environment

PAGE, NUMBERS = "report.html", "report.json"
MISSING = "–"
_ENDS = {"value": "", "low": "_low", "high": "_high"}


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    page: Path
    numbers: Path


def write_report(results: Results, out: Path) -> Written:
    """Write the report of a run: an HTML page and its numbers as JSON.

    Parameters
    ----------
    results : Results
        What `read_results` gives.
    out : Path
        The folder for report.html and report.json, which is made.

    Returns
    -------
    Written
        The paths of the page and of its numbers.

    Raises
    ------
    Refusal
        E_REPORT_WRITE where a file cannot be written.
    """
    report = content(results)
    written = Written(out / PAGE, out / NUMBERS)
    numbers = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in ((written.numbers, numbers), (written.page, render(report))):
            write_durably(named_file(path), text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise Refusal(REPORT_WRITE, private=str(error)) from error
    return written


def render(report: Mapping[str, Any]) -> str:
    """Render the page as text from the result of `content`."""
    environment = page_environment().overlay(loader=PackageLoader("federation.report"))
    environment.filters |= {"cell": cell, "mean_cell": mean_cell, "name": name, "code": code}
    environment.filters |= {"duration": duration, "megabytes": megabytes}
    return environment.get_template(PAGE).render(
        report=report,
        about=report["about"],
        sections=SECTIONS,
        section=SECTION,
        figure=_figures(report),
        labels=LABELS,
        titles=NAMES,
        primary=PRIMARY,
        groups=GROUPS,
        percents=PERCENTS,
        many=MANY,
        is_large=len(report["about"]["sites"]) > MANY,
        is_wide=len(report["about"]["sites"]) > WIDE,
    )


def _figures(report: Mapping[str, Any]) -> dict[str, Figure | None]:
    loo, audit, sums = report["leave_one_out"][PRIMARY], report["audit"], report["sums"]
    pooled = sums["labels"] if sums else report["pooled"]
    decision = report["decision"][PRIMARY]["by_site"]
    return {
        "aurocs": figures.aurocs(report["discrimination"][PRIMARY]["by_site"]),
        "roc": figures_trust.roc(pooled),
        "matrix": figures.matrix(report["matrix"][PRIMARY]),
        "leave_one_out": figures.leave_one_out(loo["by_site"]) if loo else None,
        "learning": figures.learning(report["learning"]),
        "reliability": figures_trust.reliability(pooled),
        "decision": figures_trust.decision_of_all(pooled) if sums else figures_trust.decision(decision),
        "transfer": figures_trust.transfer(report["operating_points"][PRIMARY]),
        "baselines": figures_trust.baselines(report["baselines"][PRIMARY]["by_site"]),
        "subgroups": figures_trust.subgroups(report["subgroups"][PRIMARY], GROUPS),
        "confusion": figures.confusion(audit["probe"]) if audit and audit["probe"] else None,
        "costs": figures.costs(report["costs"]["rounds"]),
        "participation": figures_many.participation(report["participation"]),
    }


# --- format of numbers and names --------------------------------------------------------------------------


def cell(value: Any, kind: str = "plain") -> str:
    """Format a number with two decimals, or an estimate with interval; `kind`: plain, signed, percent or count."""
    if value is None:
        return MISSING
    if isinstance(value, dict):
        if value["low"] is None or value["high"] is None:
            return _number(value["value"], kind)
        interval = f"({_number(value['low'], kind)} to {_number(value['high'], kind)})"
        return Markup('{} <span class="interval">{}</span>').format(_number(value["value"], kind), interval)
    return _number(value, kind)


def mean_cell(over: Mapping[str, Any] | None, kind: str = "plain", which: str = "mean") -> str:
    """Format the mean of a summary over sites (`estimates.spread`) with its interval; `which`: or "weighted_mean"."""
    return cell({end: over[f"{which}{tail}"] for end, tail in _ENDS.items()} if over else None, kind)


def _number(value: float, kind: str) -> str:
    if kind == "count":
        return f"{value:.0f}"
    if kind == "percent":
        return f"{100 * value:.0f} %"
    text = f"{value:+.2f}" if kind == "signed" else f"{value:.2f}"
    return "0.00" if text in ("-0.00", "+0.00") else text.replace("-", "−")


def name(text: str) -> Markup:
    """Format a name given by people, with its text direction isolated from the surrounding text."""
    return Markup("<bdi>{}</bdi>").format(shown(text))


def code(text: str) -> Markup:
    """Format text; parts between backticks become code."""
    parts = enumerate(shown(" ".join(text.split())).split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in parts)


def duration(seconds: float) -> str:
    """Format a duration in suitable units."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
