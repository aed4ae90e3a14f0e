"""Makes the cohort from a hospital's files: examines new series, joins laboratory and outcomes, counts refusals."""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from models.refusal import Reason, Refusal
from pipeline.cohort import reasons
from pipeline.cohort.attrition import Count, waterfall
from pipeline.cohort.record_counts import count_records, fewer_records
from pipeline.cohort.selection import Selection, select
from pipeline.cohort.store import Cohort, FindingRow, PatientRow, Scan, UnlabelledRow
from pipeline.cohort.workers import Examination, expect_series
from pipeline.imaging import reasons as imaging_reasons
from pipeline.imaging.discovery import Series
from pipeline.imaging.nifti_reader import is_volume_file
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.records.join import Labels, Records, label
from pipeline.site import reasons as site_reasons
from pipeline.site.folder import Site
from pipeline.site.site_data import read_records, read_series_list
from pipeline.system.atomic_files import remove_unfinished, replacing
from pipeline.system.codes import BY_CODE
from pipeline.system.findings import Finding
from pipeline.system.folder_format import stamp_folder

# Of series that are counted, not examined: they are no patient's here, or volume files without a usable header or name.
_NOT_EXAMINED = {
    site_reasons.NO_PATIENT_ID,
    site_reasons.PATIENT_ID_UNDECODED,
    site_reasons.ISSUER,
    site_reasons.WITHDRAWN,
    imaging_reasons.VOLUME_FILE,
    imaging_reasons.VOLUME_ELSEWHERE,
    imaging_reasons.VOLUME_NAME,
}


@dataclass(frozen=True)
class Material:
    """The content of a site's files, under pseudonyms. `records` is None if `node check` could not read them."""

    series: list[Series]
    records: Records | None
    scan_findings: list[Finding]
    record_findings: list[Finding]


@dataclass(frozen=True)
class Member:
    """One patient with a usable CT, and its labels from the join."""

    series: Series
    scan: Scan
    labels: Labels


@dataclass(frozen=True)
class Assessment:
    """The result of an ingest. Only `counts`, the numbers and `waterfall` may be shown outside the site.

    `accepted`: all usable scans. `members`: one for each patient with a usable scan; empty without records.
    `patients`: the members with a label. `unlabelled`: the others, if the site keeps them.
    `has_labels`: False at a site with chest CT only, where the missing labels are no findings.
    """

    material: Material
    accepted: list[Scan]
    members: list[Member]
    patients: list[PatientRow]
    findings: list[Finding]
    waterfall: Count
    examined_now: int
    unlabelled: Sequence[UnlabelledRow] = ()
    has_labels: bool = True

    @property
    def series(self) -> int:
        """Number of series found, those without a patient too: the first count of the waterfall."""
        return self.waterfall.count

    @property
    def counts(self) -> list[tuple[Reason, int]]:
        """Number of findings for each reason, the most frequent first."""
        return Counter(finding.reason for finding in self.findings).most_common()

    @property
    def fewer_records(self) -> list[str]:
        """Texts with both counts: of what there is clearly less than at the last ingest."""
        return [finding.says for finding in self.findings if finding.reason == reasons.FEWER_RECORDS]

    def to_json(self) -> dict[str, Any]:
        """Return counts and remedies, without patients, files or dates."""
        positive = [p for p in self.patients if p.pcr_positive]
        return {
            "series": self.series,
            "has_labels": self.has_labels,
            "patients": len(self.patients),
            "unlabelled": len(self.unlabelled),
            "pcr_positive": len(positive),
            "severe_known_among_positive": sum(p.severe is not None for p in positive),
            "severe_among_positive": sum(bool(p.severe) for p in positive),
            "waterfall": self.waterfall.to_json(),
            "fewer_records": self.fewer_records,
            "findings": [
                {"code": r.code, "count": n, "remedy": r.remedy, "refuses": r.refuses} for r, n in self.counts
            ],
        }


def assess(site: Site, cohort: Cohort, settings: Preprocessing, progress: Callable[[int, int], None]) -> Assessment:
    """Examine new series and assess all; only `scans` and tensors are written.

    Raises Refusal if a whole file (laboratory, outcomes) cannot be used or no image is found.
    """
    expect_series()
    records, record_findings = read_records(site)
    with Examination(cohort, settings, progress) as examination:
        # Only in the first run: later, a series in several folders would be read again, in part, each time.
        series, scan_findings = read_series_list(site, examination.add if examination.is_first else None)
        return assess_material(site, cohort, Material(series, records, scan_findings, record_findings), examination)


def assess_material(site: Site, cohort: Cohort, material: Material, examination: Examination) -> Assessment:
    """Assess files that have been read; without records no patient gets a label."""
    has_labels = site.settings.has_labels
    series, records = material.series, material.records
    if records is not None and has_labels:
        fewer = fewer_records(count_records(records), cohort.records())
        material = replace(material, record_findings=[*material.record_findings, *fewer])
    for each in series:
        examination.add(each)
    not_examined = Counter(f.reason.code for f in material.scan_findings if f.reason in _NOT_EXAMINED)
    examination.finish(len(series) + not_examined.total())
    scans = cohort.scans(settings_digest(examination.settings))
    is_dated = records is None or records.labels is None
    selection = select(series, scans, dated=is_dated, has_label=lambda s: _reason(site, s, records) is None)
    members = [] if records is None else _join(site, selection, scans, records)
    findings = [*material.record_findings, *material.scan_findings, *selection.findings]
    if has_labels:
        findings += [Finding(m.labels.reason, m.series.patient_id) for m in members if m.labels.reason is not None]
    if records is not None:
        without_ct = records.outcomes.keys() - {s.patient_id for s in series}
        findings += [Finding(reasons.OUTCOME_WITHOUT_CT, p) for p in sorted(without_ct)]
    keeps = site.settings.site.unlabelled_patients
    labels = [m.labels for m in members] if records else None
    return Assessment(
        material=material,
        accepted=[scan for s in series if (scan := scans[s.fingerprint]).code is None],
        members=members,
        patients=[patient_row(site, m) for m in members if m.labels.reason is None],
        findings=findings,
        waterfall=waterfall(not_examined + selection.fates, labels, keeps_unlabelled=keeps, has_labels=has_labels),
        examined_now=sum(map(examination.is_new, series)),
        unlabelled=[_unlabelled_row(m) for m in members if m.labels.reason and _is_named(m)] if keeps else (),
        has_labels=has_labels,
    )


def _reason(site: Site, series: Series, records: Records | None) -> Reason | None:
    """Return why a series would have no label; None too if there are no records."""
    return None if records is None else label(series.patient_id, series.acquired, records, site.settings.join).reason


def _join(site: Site, selection: Selection, scans: dict[str, Scan], records: Records) -> list[Member]:
    rules = site.settings.join
    return [Member(s, scans[s.fingerprint], label(s.patient_id, s.acquired, records, rules)) for s in selection.used]


def patient_row(site: Site, member: Member) -> PatientRow:
    """Return the row of the cohort for a member that has a label."""
    series, labels, tensor = member.series, member.labels, member.scan.tensor
    assert tensor is not None
    return PatientRow(
        pseudonym=series.patient_id,
        split=site.split(series.patient_id),
        tensor=tensor,
        age_years=series.age_years if labels.age_years is None else labels.age_years,
        sex=series.sex or labels.sex,
        pcr_positive=labels.pcr_positive,
        severe=labels.severe,
    )


def _is_named(member: Member) -> bool:
    """Whether the scan names its patient. The name of a volume file does so only in a labels file."""
    return not is_volume_file(member.series.files[0].name)


def _unlabelled_row(member: Member) -> UnlabelledRow:
    assert member.scan.tensor is not None
    return UnlabelledRow(member.series.patient_id, member.scan.tensor)


def rows(findings: Iterable[Finding]) -> list[FindingRow]:
    """Convert findings for storage: under pseudonyms, without details."""
    return [FindingRow(f.reason.code, f.patient_id, f.series, f.says or f.reason.says) for f in findings]


def ingest(site: Site, settings: Preprocessing, progress: Callable[[int, int], None]) -> Assessment:
    """Bring the cohort up to date with the site's files; known series are not read again.

    Parameters
    ----------
    site : Site
        The site whose cohort is updated.
    settings : Preprocessing
        The settings with which scans are prepared, those of the study.
    progress : callable
        Called with the number of series that are done and their total; at the end, both are all series found.

    Returns
    -------
    Assessment
        Accepted scans and patients, findings, and counts by reason. Only counts may leave the site.

    Raises
    ------
    Refusal
        E_COHORT_BUSY, and those of `assess`.
    """
    stamp_folder(site.folder, "site")
    with Cohort(site) as cohort, cohort.alone():
        assessment = assess(site, cohort, settings, progress)
        found = rows(assessment.findings)
        known = {s.fingerprint for s in assessment.material.series}
        records = assessment.material.records
        counts = count_records(records) if records else None
        _write(cohort, assessment.patients, found, known, assessment.unlabelled, counts)
    return assessment


def withdraw(site: Site, pseudonyms: Collection[str]) -> int:
    """Delete all that the cohort holds of some patients, at once; return how many of them were in it, with or without
    labels.

    They must be in the list of withdrawn patients already. Prepared scans of series that were never selected are found
    by reading the headers of the site's series; if the series cannot be read, the next ingest deletes them.
    Raises Refusal: E_COHORT_BUSY, E_COHORT_FILE.
    """
    with Cohort(site) as cohort, cohort.alone():
        patients, unlabelled, findings = cohort.patients(), cohort.unlabelled(), cohort.findings()
        tensors = {patient.tensor for patient in patients if patient.pseudonym in pseudonyms}
        tensors |= {patient.tensor for patient in unlabelled if patient.pseudonym in pseudonyms}
        others = [patient for patient in patients if patient.pseudonym not in pseudonyms]
        unlabelled_others = [patient for patient in unlabelled if patient.pseudonym not in pseudonyms]
        try:
            known = {each.fingerprint for each in read_series_list(site)[0]}
        except Refusal:
            known = cohort.fingerprints(without=tensors)
        left = [row for row in findings if row.pseudonym not in pseudonyms]
        _write(cohort, others, left, known, unlabelled_others)
        cohort.compact()
        return len(patients) + len(unlabelled) - len(others) - len(unlabelled_others)


def _write(
    cohort: Cohort,
    patients: Sequence[PatientRow],
    found: Sequence[FindingRow],
    fingerprints: Collection[str],
    unlabelled: Sequence[UnlabelledRow],
    records: Mapping[str, int] | None = None,
) -> None:
    """Replace the cohort's content and its two CSV files, and delete what no longer belongs to it.

    cohort.csv lists the patients with a label only, as before there were others.
    """
    cohort.replace(patients, found, fingerprints, unlabelled, records)
    remove_unfinished(cohort.folder)
    _list_refusals(cohort.folder / "refusals.csv", found)
    _export(cohort.folder / "cohort.csv", cohort)
    cohort.sweep()


def _list_refusals(path: Path, found: Sequence[FindingRow]) -> None:
    """Write the findings as a table for hospital IT; `fedthorax node find` finds the patient of a pseudonym."""
    ordered = sorted(found, key=lambda row: (row.code, row.pseudonym, row.series))
    lines = [[r.code, r.pseudonym, r.series, r.says, BY_CODE[r.code].remedy] for r in ordered]
    _write_table(path, ["code", "pseudonym", "series", "says", "remedy"], lines)


def _export(path: Path, cohort: Cohort) -> None:
    """Write the cohort as a table; the same files and settings always give the same bytes."""
    lines = [
        [p.pseudonym, p.split, p.age_years, p.sex, _bit(p.pcr_positive), _bit(p.severe), digest]
        for p, digest in ((p, _digest(cohort.tensors / p.tensor)) for p in cohort.patients())
    ]
    _write_table(path, ["pseudonym", "split", "age_years", "sex", "pcr_positive", "severe", "tensor_sha256"], lines)


def _bit(value: bool | None) -> str:
    return "" if value is None else str(int(value))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_table(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically; no cell contains text from the hospital, so none can be a formula."""
    with replacing(path, flush=True) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(lines)
        text.detach()  # writes the rest and leaves the file open
