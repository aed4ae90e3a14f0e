"""Synthetic cohorts for the tests of `node check`: patients with scans, labels and findings, and their assessment."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from pipeline.cohort.attrition import waterfall
from pipeline.cohort.ingest import Assessment, Material, Member, patient_row
from pipeline.cohort.selection import USED
from pipeline.records.join import Labels, Records
from pipeline.site.folder import Site
from pipeline.system.findings import Finding
from tests.helpers.scan_list import DAY, measures, scan, series


def member(
    patient: str, labels: Labels, days: int = 0, age: float | None = 60.0, sex: str | None = "F", **more: object
) -> Member:
    """One patient with one scan. `more`: measures of the scan."""
    of = series(patient, age_years=age, sex=sex, acquired=DAY + timedelta(days=days))
    return Member(of, scan(of, measures=measures(**more)), labels)


def assessed(
    site: Site,
    members: Sequence[Member],
    *,
    refused: dict[str, int] | None = None,
    findings: Sequence[Finding] = (),
    records: Records | None = None,
) -> Assessment:
    """`refused`: number of additional refused series by reason code, with one finding for each series."""
    refused = refused or {}
    from pipeline.system.codes import BY_CODE

    found = [Finding(BY_CODE[code], f"{code}-{i}") for code, count in refused.items() for i in range(count)]
    found += [Finding(m.labels.reason, m.series.patient_id) for m in members if m.labels.reason]
    known = records or Records({}, {}, set())
    return Assessment(
        material=Material([m.series for m in members], known, [], list(findings)),
        accepted=[m.scan for m in members],
        members=list(members),
        patients=[patient_row(site, m) for m in members if m.labels.reason is None],
        findings=[*findings, *found],
        waterfall=waterfall(Counter(refused) + Counter({USED: len(members)}), [m.labels for m in members]),
        examined_now=0,
    )
