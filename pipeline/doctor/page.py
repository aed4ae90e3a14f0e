"""The HTML page of `node check`: one self-contained file that can be printed and sent to others.

It contains only general texts, and counts that `pipeline/doctor/suppression.py` permits. It receives no pseudonym, no
patient's date, no path, no host and no word from a header.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from models.refusal import Refusal
from pipeline.cohort.attrition import Count, plain
from pipeline.doctor import figure
from pipeline.doctor.checkup import Checkup
from pipeline.doctor.contract import Result
from pipeline.doctor.suppression import hidden, shown, shown_of
from pipeline.scoring import reasons
from pipeline.system.atomic_files import named_file, write_durably
from pipeline.system.templating import page_environment

PAGE = "check.html"
_RANK = ("fail", "refuses", "warn", "flags", "skip", "informs")
_QUARTER_HAS = 4  # times the minimum: then each quarter has enough scans, and its bounds identify nobody


@dataclass(frozen=True)
class Step:
    """One row of the waterfall. `bar`: share of the largest shown count, None if the count is hidden."""

    depth: int
    code: str
    says: str
    text: str
    bar: float | None
    stays: bool


@dataclass(frozen=True)
class Problem:
    """A problem to fix or to review. `status`: one of `_RANK`. `about`: a rule's code, or the checked item."""

    status: str
    says: str
    about: str
    remedy: str
    count: str = ""
    share: str = ""


def write_page(checkup: Checkup, path: Path) -> None:
    """Write the page atomically, readable only by the node's user; a link to a file stays one.

    Raises Refusal E_REPORT_WRITE, also for a device or a folder.
    """
    try:
        write_durably(named_file(path), render(checkup, datetime.now()).encode())
    except OSError as error:
        raise Refusal(reasons.REPORT_WRITE, private=str(error)) from error


def render(checkup: Checkup, now: datetime) -> str:
    """Render the page as text."""
    environment = page_environment()
    environment.filters["code"] = _code
    return environment.get_template(PAGE).render(now=now, **content(checkup))


def _code(text: str) -> Markup:
    """Format text between backticks as code."""
    parts = enumerate(text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in parts)


def content(checkup: Checkup) -> dict[str, Any]:
    """Collect all content of the page."""
    waterfall = checkup.assessment.waterfall if checkup.assessment else None
    unseen = hidden(waterfall, checkup.minimum) if waterfall else set()
    met = [result for result in checkup.contract if result.is_met]
    return {
        "site": checkup.site,
        "minimum": checkup.minimum,
        "problems": sorted([*_problems(checkup), *(_problem(result, checkup, unseen) for result in met)], key=_order),
        "lines": checkup.lines,
        "steps": list(_steps(waterfall, unseen, checkup.minimum)) if waterfall else [],
        "rules": len(checkup.contract),
        "passed": _passed(checkup.contract),
        "numbers": _numbers(checkup),
        "figure": _figure(checkup, unseen),
    }


def _order(problem: Problem) -> tuple[int, int, str]:
    """Order by severity, then by shown counts: an order by hidden counts would reveal them."""
    shown_count = problem.count.partition(" ")[0]
    count = int(shown_count) if shown_count.isdecimal() else 0
    return _RANK.index(problem.status), -count, problem.about


def _problems(checkup: Checkup) -> Iterator[Problem]:
    """Yield the problems of the machine and the files."""
    for line in checkup.lines:
        if line.status != "ok" and line.remedy:
            yield Problem(line.status, line.says, f"{line.area}: {line.name}", line.remedy)


def _problem(result: Result, checkup: Checkup, unseen: set[str]) -> Problem:
    reason = result.reason
    count = _count(result, checkup, unseen)
    is_exact = count.isdecimal() and result.of > 0 and result.base not in unseen
    share = f"{100 * result.count / result.of:.0f} %" if is_exact else ""
    text = f"{count} {result.unit}" if count[-1].isdigit() else count
    return Problem(result.severity, plain(reason.says), reason.code, reason.remedy, text, share)


def _count(result: Result, checkup: Checkup, unseen: set[str]) -> str:
    """Format the count of a rule for others."""
    minimum = checkup.minimum
    assert checkup.assessment is not None
    if result.unit == "classes":
        return f"{result.count} of {result.of}"
    if result.of_waterfall:
        listed = {count.key for _, count in checkup.assessment.waterfall.walk()}
        in_it = result.reason.code in listed
        return shown(result.count, minimum, is_hidden=result.reason.code in unseen) if in_it else "see the waterfall"
    if result.unit == "times":
        return shown(result.count, minimum)
    is_of_shown = bool(result.base) and result.base not in unseen
    return shown_of(result.count, result.of, minimum, is_of_shown=is_of_shown)


def _passed(results: Sequence[Result]) -> dict[str, list[str]]:
    """Return the codes of the rules that found nothing, by area."""
    passed: dict[str, list[str]] = {}
    for result in results:
        if not result.is_met:
            passed.setdefault(result.area, []).append(result.reason.code)
    return dict(sorted(passed.items()))


def _steps(waterfall: Count, unseen: set[str], minimum: int) -> Iterator[Step]:
    """Yield the rows of the waterfall, without the parts of small counts."""
    largest = max((c.count for _, c in waterfall.walk() if c.key not in unseen), default=1)
    small_at: int | None = None
    for depth, count in waterfall.walk():
        if small_at is not None and depth > small_at:
            continue
        small_at = depth if count.count < minimum else None
        is_unseen = count.key in unseen
        text = shown(count.count, minimum, is_hidden=is_unseen)
        yield Step(depth, count.code, count.says, text, None if is_unseen else count.count / largest, count.stays)


def _numbers(checkup: Checkup) -> list[tuple[str, str]]:
    """Return the interquartile range of each measure that covers enough scans."""
    return [
        (name, f"{_short(found['first quartile'])} to {_short(found['third quartile'])}")
        for name, found in checkup.numbers.items()
        if found["scans"] >= _QUARTER_HAS * checkup.minimum
    ]


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}".removesuffix(".0")


def _figure(checkup: Checkup, unseen: set[str]) -> str:
    """Draw the figure with the curves that reveal nothing that the waterfall hides."""
    of = {"positive": "positive", "negative": "negative", "undecided": "patients"}
    curves = [curve for curve in figure.CURVES if of[curve] not in unseen]
    return figure.draw(checkup.variants, checkup.rules, checkup.minimum, curves)
