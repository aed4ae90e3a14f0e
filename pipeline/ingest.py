"""From a hospital's files to its cohort: examine every new series, join laboratory and outcomes, count refusals."""

import csv
import hashlib
import os
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

from models.refusal import Reason, Refusal
from pipeline import reasons
from pipeline.cohort import Cohort, FindingRow, PatientRow, Scan, save_tensor
from pipeline.findings import Finding
from pipeline.join import label_pcr, label_severe
from pipeline.laboratory import PcrResult, read_pcr
from pipeline.outcomes import Outcome, read_outcomes
from pipeline.preprocess import Preprocessing, settings_digest
from pipeline.series import Series, find_series
from pipeline.site import Site

# A row that was left out might have been the positive that forbids calling the patient negative.
SPOILS_NEGATIVE = {reasons.DATE, reasons.PCR_DATE, reasons.PCR_UNMAPPED_ROW}


@dataclass(frozen=True)
class Assessment:
    """What a site's files amount to. All of it is for the site's own eyes but `counts` and the sizes."""

    patients: list[PatientRow]
    findings: list[Finding]
    series: int
    examined_now: int

    @property
    def counts(self) -> list[tuple[Reason, int]]:
        """How often each reason was met, most frequent first."""
        return Counter(finding.reason for finding in self.findings).most_common()


def examine(series: Series, settings: Preprocessing, tensors: Path) -> Scan:
    """Read one series, prepare it and cache its tensor; a refusal is an answer too. Runs in a worker process."""
    import torch

    from pipeline.dicom import read_series
    from pipeline.preprocess import prepare

    torch.set_num_threads(1)  # one process a core; threads on top would only wait for each other
    digest, tensor, lungs_ml, flags = None, None, None, ""
    refused: Refusal | None = None
    try:
        volume = read_series(series)
        flags = ",".join(volume.flags)
        digest = hashlib.sha256(volume.hu.tobytes()).hexdigest()
        prepared = prepare(volume, settings)
        # Named after the settings too, so that the present cohort keeps its tensors until `replace`.
        lungs_ml, tensor = prepared.lungs_ml, f"{series.fingerprint[:32]}-{settings_digest(settings)}.npy"
        save_tensor(tensors, tensor, prepared.tensor)
    except Refusal as error:
        refused = error
    except OSError:
        raise  # a full disk says nothing about the scan
    except Exception:
        refused = Refusal(reasons.EXAMINE_FAILED)
        _log_failure(tensors.parent / "failures.log", series)
    return Scan(
        fingerprint=series.fingerprint,
        settings=settings_digest(settings),
        code=refused.code if refused else None,
        says=refused.says if refused else None,
        flags=flags,
        scan_digest=digest,
        tensor=tensor,
        slices=len(series.files),
        lungs_ml=lungs_ml,
    )


def _log_failure(path: Path, series: Series) -> None:
    """The error in full, for the site's own eyes."""
    with path.open("a", encoding="utf-8") as log:
        log.write(f"series {series.fingerprint[:12]}\n{traceback.format_exc()}\n")


def _workers() -> ForkServerContext:
    """Worker processes begin as forks of one that has torch and pydicom imported already, and nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["pipeline.dicom", "pipeline.preprocess"])
    return context


def examine_new(
    cohort: Cohort, series: Sequence[Series], settings: Preprocessing, progress: Callable[[int, int], None]
) -> int:
    """Examine the series that are not yet known, on all cores; each is remembered as soon as it is done.

    `progress(done, total)` is called after each. Returns how many were examined.
    """
    known = cohort.scans(settings_digest(settings))
    new = [s for s in series if s.fingerprint not in known]
    progress(0, len(new))
    if not new:
        return 0
    workers = min(os.cpu_count() or 1, len(new))
    with ProcessPoolExecutor(workers, mp_context=_workers()) as pool:
        jobs = [pool.submit(examine, s, settings, cohort.tensors) for s in new]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                cohort.add_scan(job.result())
                progress(done, len(new))
        except BrokenProcessPool as error:
            raise Refusal(reasons.WORKER_DIED) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(new)


def assess(site: Site, cohort: Cohort, settings: Preprocessing, progress: Callable[[int, int], None]) -> Assessment:
    """Examine what is new and judge everything; writes nothing but `scans` and tensors.

    Raises Refusal where a whole file (laboratory, outcomes) cannot be used or no image is found.
    """
    results, laboratory_findings = read_pcr(site.settings.laboratory)
    outcomes, outcome_findings = read_outcomes(site.settings.outcomes)
    if not site.settings.ct.folder.is_dir():
        raise Refusal(reasons.CT_FOLDER, private=str(site.settings.ct.folder))
    series, findings = find_series(site.settings.ct.folder)
    if not series:
        raise Refusal(reasons.NO_IMAGES)
    examined_now = examine_new(cohort, series, settings, progress)
    scans = cohort.scans(settings_digest(settings))
    findings += laboratory_findings + outcome_findings
    chosen = _choose(series, scans, findings)
    spoilt = {f.patient_id for f in laboratory_findings if f.reason in SPOILS_NEGATIVE}
    patients = _label(site, chosen, scans, results, outcomes, spoilt, findings)
    with_ct = {s.patient_id for s in series}
    findings += [Finding(reasons.OUTCOME_WITHOUT_CT, p) for p in sorted(outcomes.keys() - with_ct)]
    return Assessment(patients, findings, len(series), examined_now)


def _choose(series: Sequence[Series], scans: dict[str, Scan], findings: list[Finding]) -> list[Series]:
    """One accepted series a patient: of the first examination, the one with most slices."""
    accepted: dict[str, list[Series]] = defaultdict(list)
    owners: dict[str, set[str]] = defaultdict(set)
    for s in series:
        scan = scans[s.fingerprint]
        found = partial(Finding, patient_id=s.patient_id, detail=s.files[0].parent.name, series=_short(s))
        if scan.code is not None:
            findings.append(found(reasons.BY_CODE[scan.code], says=scan.says or ""))
            continue
        findings += [found(reasons.BY_CODE[flag]) for flag in scan.flags.split(",") if flag]
        if s.acquired is None:
            findings.append(found(reasons.CT_DATE))
            continue
        accepted[s.patient_id].append(s)
        owners[scan.scan_digest or ""].add(s.patient_id)
    shared = {p for patients in owners.values() if len(patients) > 1 for p in patients}
    findings += [Finding(reasons.DUPLICATE_SCAN, patient_id) for patient_id in sorted(shared)]
    chosen = []
    for patient_id in sorted(accepted.keys() - shared):
        first = min(accepted[patient_id], key=lambda s: (s.acquired, s.study_uid))
        same_study = [s for s in accepted[patient_id] if s.study_uid == first.study_uid]
        if len(same_study) > 1:
            folder = first.files[0].parent.name
            findings.append(Finding(reasons.SEVERAL_SERIES, patient_id, folder, _short(first)))
        chosen.append(max(same_study, key=lambda s: (len(s.files), s.series_uid)))
    return chosen


def _short(series: Series) -> str:
    return series.fingerprint[:12]


def _label(
    site: Site,
    chosen: Sequence[Series],
    scans: dict[str, Scan],
    results: Sequence[PcrResult],
    outcomes: dict[str, Outcome],
    spoilt: set[str],
    findings: list[Finding],
) -> list[PatientRow]:
    """Join each chosen scan with its PCR results and its outcome; who has no PCR label is refused."""
    by_patient: dict[str, list[PcrResult]] = defaultdict(list)
    for result in results:
        by_patient[result.patient_id].append(result)
    rules = site.settings.join
    patients = []
    for s in chosen:
        assert s.acquired is not None
        label = label_pcr(by_patient[s.patient_id], s.acquired, rules)
        if label.reason is not None:
            findings.append(Finding(label.reason, s.patient_id))
        if label.positive is None or (label.positive is False and s.patient_id in spoilt):
            continue
        tensor = scans[s.fingerprint].tensor
        assert tensor is not None
        patients.append(
            PatientRow(
                pseudonym=site.pseudonym(s.patient_id),
                split=site.split(s.patient_id),
                tensor=tensor,
                age_years=s.age_years,
                sex=s.sex,
                pcr_positive=label.positive,
                severe=label_severe(outcomes.get(s.patient_id), s.acquired, rules),
            )
        )
    return patients


def rows(site: Site, findings: Iterable[Finding]) -> list[FindingRow]:
    """Findings as they may be stored: under pseudonyms, without their details."""
    return [
        FindingRow(
            code=f.reason.code,
            pseudonym=site.pseudonym(f.patient_id) if f.patient_id else "",
            series=f.series,
            says=f.says or f.reason.says,
        )
        for f in findings
    ]


def ingest(site: Site, settings: Preprocessing, progress: Callable[[int, int], None]) -> Assessment:
    """Bring the cohort up to date with the site's files; what is known already is not read again."""
    with Cohort(site) as cohort:
        assessment = assess(site, cohort, settings, progress)
        found = rows(site, assessment.findings)
        cohort.replace(assessment.patients, found)
        _list_refusals(cohort.folder / "refusals.csv", found)
    return assessment


def _list_refusals(path: Path, found: Sequence[FindingRow]) -> None:
    """The findings as a table for hospital IT; `fedthorax node find` tells whose pseudonym it is."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["code", "pseudonym", "series", "says", "remedy"])
        for row in sorted(found, key=lambda row: (row.code, row.pseudonym)):
            writer.writerow([row.code, row.pseudonym, row.series, row.says, reasons.BY_CODE[row.code].remedy])
