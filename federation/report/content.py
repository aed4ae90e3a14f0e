"""The content of the report, as in report.json. The page shows only numbers from here."""

from typing import Any

from federation.report import comparison, conduct, overview, pooled_patients, trust
from federation.report.checklists import CHECKLISTS, filled_in
from federation.report.sums import sums
from federation.runs.results import Results
from federation.runs.training_length import trained_long
from pipeline.site.folder import TEST_SHARE, VALIDATION_SHARE

FORMAT = 1
SECTIONS = {
    "summary": "Summary",
    "matrix": "Every model at every site",
    "leave_one_out": "The federation without one site",
    "learning": "Learning curves",
    "calibration": "Calibration and net benefit",
    "thresholds": "Thresholds and their transfer",
    "baselines": "Simpler models, and groups of patients",
    "audit": "Shortcut audit",
    "costs": "Costs",
    "checklists": "Reporting checklists",
}

SECTION = {name: f"section {number}" for number, name in enumerate(SECTIONS, start=1)}  # in running text


def content(results: Results) -> dict[str, Any]:
    """Return the report's numbers for JSON. Values that the sites or the study left out are None or empty."""
    report: dict[str, Any] = {
        "format": FORMAT,
        "about": overview.about(results),
        "discrimination": overview.discrimination(results),
        "pooled": pooled_patients.pooled(results),
        "sums": sums(results),
        "mean_over_hospitals": pooled_patients.mean_over_hospitals(results),
        "matrix": comparison.matrix(results),
        "models_missing": comparison.missing(results),
        "generalisation": comparison.generalisation(results),
        "leave_one_out": comparison.leave_one_out(results),
        "learning": conduct.learning(results),
        "trained_long": [warning.to_json() for warning in trained_long(results.history)],
        "calibration": trust.calibration(results),
        "decision": trust.decision(results),
        "operating_points": trust.operating_points(results),
        "baselines": trust.baselines(results),
        "subgroups": trust.subgroups(results),
        "groups_told": trust.has_groups(results),
        "audit": conduct.audit(results),
        "judgements": conduct.judgements(results),
        "doubts": conduct.doubted(results),
        "audit_asked": results.study.evaluation.shortcut_audit,
        "costs": conduct.costs(results),
        "absences": conduct.absences(results),
        "participation": conduct.participation(results),
        "shares": _shares(),
    }
    return report | {"checklists": {name: filled_in(name, report, SECTION) for name in CHECKLISTS}}


def _shares() -> dict[str, int]:
    """Return the average split of a site's patients, in percent."""
    test, validation = round(100 * TEST_SHARE), round(100 * VALIDATION_SHARE)
    return {"train": 100 - test - validation, "validation": validation, "test": test}
