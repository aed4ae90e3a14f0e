"""Output of `node check` and `node ingest` on the site's own terminal: exact counts and local names."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from federation.cli.console import print_table, say
from pipeline.cohort.attrition import Count
from pipeline.cohort.ingest import Assessment
from pipeline.doctor.reasons import CT_ONLY_USES
from pipeline.system.check_line import Line

if TYPE_CHECKING:  # they import torch, which `node ingest` does not need
    from pipeline.doctor.checkup import Checkup
    from pipeline.doctor.contract import Result

_MARKS = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skip": "-"}


def show_checkup(checkup: "Checkup") -> None:
    """Show the checks, the rules with findings, the attrition, and the verdict if the truth was given."""
    print_table(["", "check", "found", "what to do"], list(_checks(checkup.lines)), whole=2)
    for line in checkup.lines:
        _show_private(line.name, line.private)
    if checkup.assessment is None:
        return
    met = [result for result in checkup.contract if result.is_met]
    print_table(["rule", "count", "what to do"], [_row(result) for result in met], whole=1)
    say(f"{len(checkup.contract) - len(met)} other rules of the data contract have no findings.")
    for result in met:
        _show_private(result.reason.code, result.private)
    show_waterfall(checkup.assessment)
    if checkup.verdict:
        v = checkup.verdict
        say(f"Planted defects: {v.planted}, found {v.found}; precision {v.precision:.3f}, recall {v.recall:.3f}.")


def _show_private(name: str, private: str) -> None:
    if private:
        say(f"  {name}, here: {private}")


def _checks(lines: Iterable[Line]) -> Iterator[list[str]]:
    """Yield the rows of the checks, those of an area below its name: a terminal is narrow."""
    by_area: dict[str, list[Line]] = {}
    for line in lines:
        by_area.setdefault(line.area, []).append(line)
    for area, of_area in by_area.items():
        yield ["", area, "", ""]
        yield from ([_MARKS[line.status], f"  {line.name}", line.exactly, line.remedy] for line in of_area)


def _row(result: "Result") -> list[str]:
    share = f"\n{100 * result.count / result.of:.1f} %" if result.of else ""
    return [f"{result.reason.code}\n{result.severity}", f"{result.count} {result.unit}{share}", result.reason.remedy]


def show_waterfall(assessment: Assessment) -> None:
    """Show how many each rule excluded, and how many are left."""
    print_table(["", "count"], list(_steps(assessment.waterfall)))
    content = assessment.to_json()
    if not assessment.has_labels:
        say(f"{content['series']} series; {content['unlabelled']} patients with a usable CT and without labels.")
        say(f"This site has chest CT only. {CT_ONLY_USES}")
        return
    say(
        f"{content['series']} series; {content['patients']} patients accepted, {content['pcr_positive']} of them "
        f"PCR-positive, of those {content['severe_among_positive']} severe "
        f"({content['severe_known_among_positive']} known)."
    )
    if assessment.unlabelled:
        say(f"{content['unlabelled']} more patients have no label. Only a pretraining that you approve uses them.")


def _steps(waterfall: Count) -> Iterator[list[str]]:
    for depth, count in waterfall.walk():
        code = f"  {count.code}" if count.code else ""
        yield [f"{'  ' * depth}{'' if count.stays else '- '}{count.says}{code}", str(count.count)]
