"""All checks of a site, from the machine to the data, and an evaluation of the checks themselves.

A check examines scans like an ingest, but fetches nothing and does not change the cohort. Something that cannot be read
becomes one line of the result, and the check continues. For a synthetic hospital with known truth, the findings are
compared with the planted defects.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.refusal import Refusal
from pipeline.cohort.ingest import Assessment, Material, assess_material
from pipeline.cohort.store import Cohort
from pipeline.cohort.workers import Examination, with_result
from pipeline.doctor import connectivity, reasons
from pipeline.doctor.contract import Facts, Result, contract, numbers
from pipeline.doctor.environment import configuration, machine
from pipeline.doctor.identifier_spelling import other_spelling
from pipeline.doctor.record_checks import read_lines
from pipeline.imaging.discovery import Series
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.records.join import JoinRules, Records
from pipeline.records.join_sensitivity import Variant, vary
from pipeline.site import reasons as site_reasons
from pipeline.site.folder import Site
from pipeline.site.site_data import read_records, read_series_list
from pipeline.system.check_line import Line, Status, refused
from pipeline.system.findings import Finding


@dataclass(frozen=True)
class Verdict:
    """Comparison of the findings with the defects planted in a synthetic hospital."""

    planted: int
    found: int
    missed: list[str]
    unexpected: list[str]

    @property
    def precision(self) -> float:
        reported = self.found + len(self.unexpected)
        return self.found / reported if reported else 1.0

    @property
    def recall(self) -> float:
        return self.found / self.planted if self.planted else 1.0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "precision": self.precision, "recall": self.recall}


@dataclass(frozen=True)
class Checkup:
    """The result of `check`, for the site itself only.

    `assessment` is None if there are no scans; then `contract`, `numbers` and `variants` are empty.
    """

    site: str
    minimum: int
    rules: JoinRules
    lines: tuple[Line, ...]
    assessment: Assessment | None = None
    contract: tuple[Result, ...] = ()
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    verdict: Verdict | None = None

    @property
    def is_refused(self) -> bool:
        """Whether a problem prevents the site from working; refused scans and patients do not."""
        return any(line.status == "fail" for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Return exact counts and remedies, without patients, files or dates."""
        return {
            "site": self.site,
            "refused": self.is_refused,
            "lines": [line.to_json() for line in self.lines],
            **(self.assessment.to_json() if self.assessment else {}),
            "contract": [result.to_json() for result in self.contract],
            "numbers": self.numbers,
            "windows": [vars(variant) for variant in self.variants],
            "verdict": self.verdict and self.verdict.to_json(),
        }


def judge(site: Site, assessment: Assessment, truth: Path) -> Verdict:
    """Compare the findings with the truth of a synthetic hospital, by code and patient."""
    defects = json.loads(truth.read_text())["defects"]
    planted = Counter((d["code"], site.pseudonym(d["patient_id"])) for d in defects)
    reported = Counter((f.reason.code, f.patient_id) for f in assessment.findings)
    return Verdict(
        planted=planted.total(),
        found=(planted & reported).total(),
        missed=sorted(code for code, _ in (planted - reported).elements()),
        unexpected=sorted(code for code, _ in (reported - planted).elements()),
    )


def check(
    site: Site,
    settings: Preprocessing,
    progress: Callable[[int, int], None],
    *,
    truth: Path | None = None,
    more: Sequence[Line] = (),
) -> Checkup:
    """Run all checks. Raises Refusal E_COHORT_BUSY; all other refusals become lines.

    `more`: lines of further checks on this machine.
    """
    lines = [*configuration(site), *connectivity.network(site), *connectivity.pacs(site, connectivity.count_at_pacs)]
    lines += [*connectivity.listener(site), *connectivity.fhir(site), *connectivity.omop(site)]
    material = _read(site, lines)
    with Cohort(site) as cohort, cohort.alone():
        known = with_result(cohort.scans(settings_digest(settings)))
        new = sum(s.fingerprint not in known for s in material.series)
        lines = [*machine(site, settings, new), *more, *lines]
        checkup = Checkup(site.name, site.settings.site.min_patients, site.settings.join, tuple(lines))
        if not material.series or any(line.name == "disk" and line.status == "fail" for line in lines):
            return checkup
        try:
            with Examination(cohort, settings, progress) as examination:
                assessment = assess_material(site, cohort, material, examination)
        except Refusal as refusal:
            return replace(checkup, lines=(*lines, refused("scans", "scans", refusal)))
        facts = Facts(site, settings, assessment, cohort.tensors, cohort.patients(), other_spelling(site, material))
        results = contract(facts)
    return replace(
        checkup,
        lines=(*lines, *_cohort_lines(assessment, results, checkup.minimum)),
        assessment=assessment,
        contract=tuple(results),
        numbers=numbers(facts),
        variants=tuple(_variants(assessment, site.settings.join)),
        verdict=judge(site, assessment, truth) if truth else None,
    )


def _read(site: Site, lines: list[Line]) -> Material:
    """Read records and list of series; add a line for what cannot be read."""
    records: Records | None = None
    record_findings: list[Finding] = []
    scan_findings: list[Finding] = []
    series: list[Series] = []
    try:
        records, record_findings = read_records(site)
        lines += read_lines(records)
    except Refusal as refusal:
        line = refused("records", "laboratory and outcomes", refusal)
        lines.append(replace(line, status="skip") if refusal.reason == site_reasons.NOTHING_FETCHED else line)
    try:
        series, scan_findings = read_series_list(site)
        lines.append(Line("scans", "scans", "ok", "can be found", detail=f"{len(series)} series"))
    except Refusal as refusal:
        line = refused("scans", "scans", refusal)
        # Not an error: pulling is the next step.
        lines.append(replace(line, status="skip") if refusal.reason == site_reasons.NOTHING_PULLED else line)
    return Material(series, records, scan_findings, record_findings)


def _cohort_lines(assessment: Assessment, results: Sequence[Result], minimum: int) -> list[Line]:
    """Check size and splits of the whole cohort."""
    patients = len(assessment.patients)
    detail = f"patients with a usable CT and a label: {patients}; {minimum} are needed"
    if not assessment.has_labels:
        lines = [Line("cohort", "size", "skip", "no labels: studies that learn from labels leave this site out")]
    elif patients >= minimum:
        lines = [Line("cohort", "size", "ok", "enough patients to take part", detail=detail)]
    else:
        remedy = reasons.TOO_FEW_PATIENTS.remedy if assessment.material.records else "Correct the records first."
        lines = [Line("cohort", "size", "warn", "too few patients to take part", remedy, detail)]
    if assessment.unlabelled:
        detail = f"patients with a usable CT and no label: {len(assessment.unlabelled)}"
        lines.append(
            Line("cohort", "unlabelled", "ok", "kept apart: only an approved pretraining uses them", detail=detail)
        )
    split = next(result for result in results if result.reason == reasons.OTHER_SPLIT)
    says = f"{split.reason.code}: {split.reason.says}" if split.is_met else "every patient is in one split"
    status: Status = "fail" if split.is_met else "ok"
    return [*lines, Line("cohort", "splits", status, says, split.reason.remedy if split.is_met else "")]


def _variants(assessment: Assessment, rules: JoinRules) -> list[Variant]:
    """Return how the windows change the cohort; published labels do not depend on days."""
    records = assessment.material.records
    if records is None or records.labels is not None:
        return []
    cts = [(m.series.patient_id, m.series.acquired) for m in assessment.members]
    return vary([(pseudonym, ct) for pseudonym, ct in cts if ct is not None], records, rules)
