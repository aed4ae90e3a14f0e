"""Selects one series for each patient: the one with the most slices of the first usable examination with a label.

A patient none of whose examinations has a label counts with the first one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial

from models.refusal import Reason
from pipeline.cohort import reasons
from pipeline.cohort.store import Scan
from pipeline.imaging.discovery import Series
from pipeline.site import reasons as site_reasons
from pipeline.system.codes import BY_CODE
from pipeline.system.findings import Finding

# The fates of a series that was not refused.
USED, OTHER_SERIES, OTHER_EXAMINATION = "used", "other series", "other examination"


@dataclass
class Selection:
    """The selected series. `used`: one series for each patient. `fates`: number of series by code of refusal or fate.

    Every series has exactly one fate.
    """

    used: list[Series] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


def select(
    series: Sequence[Series],
    scans: dict[str, Scan],
    *,
    dated: bool,
    has_label: Callable[[Series], bool] = lambda _: True,
) -> Selection:
    """Select among the examined series.

    `dated`: whether the labels depend on the day of the CT, so that a series without a date cannot be used.
    `has_label`: whether a series would have a label, by the day of its CT.
    Findings: the findings of the scans, E_CT_DATE, E_DUPLICATE_SCAN, E_SHARED_STUDY, W_DUPLICATE_SERIES,
    W_SEVERAL_SERIES.
    """
    selection = Selection()
    accepted = []
    for s in series:
        reason = _judge(s, scans[s.fingerprint], selection, dated=dated)
        if reason is None:
            accepted.append(s)
        else:
            selection.fates[reason.code] += 1
    for reason, owned_by in (
        (reasons.DUPLICATE_SCAN, lambda s: scans[s.fingerprint].scan_digest),
        (reasons.SHARED_STUDY, lambda s: s.study_uid),
    ):
        shared = _shared(accepted, owned_by)
        selection.findings += [Finding(reason, patient) for patient in sorted(shared)]
        selection.fates[reason.code] += sum(s.patient_id in shared for s in accepted)
        accepted = [s for s in accepted if s.patient_id not in shared]
    digests = Counter((s.patient_id, digest) for s in accepted if (digest := scans[s.fingerprint].scan_digest))
    twice = {patient for (patient, _), count in digests.items() if count > 1}
    selection.findings += [Finding(reasons.DUPLICATE_SERIES, patient) for patient in sorted(twice)]
    _choose(accepted, scans, has_label, selection)
    selection.fates += Counter()  # remove zero counts
    return selection


def _judge(series: Series, scan: Scan, selection: Selection, *, dated: bool) -> Reason | None:
    """Add the findings of one scan, and return the reason for its refusal, or None."""
    found = partial(
        Finding, patient_id=series.patient_id, detail=series.files[0].parent.name, series=series.fingerprint[:12]
    )
    if scan.code is not None:
        selection.findings.append(found(BY_CODE[scan.code], says=scan.says or ""))
        return BY_CODE[scan.code]
    selection.findings += [found(BY_CODE[flag]) for flag in scan.flags.split(",") if flag]
    if series.acquired is None and dated:
        selection.findings.append(found(site_reasons.CT_DATE))
        return site_reasons.CT_DATE
    return None


def _shared(accepted: Iterable[Series], owned_by: Callable[[Series], str | None]) -> set[str]:
    """Return the patients who share a scan or study with another patient, although it can belong to only one."""
    owners: dict[str, set[str]] = defaultdict(set)
    for s in accepted:
        if owned := owned_by(s):
            owners[owned].add(s.patient_id)
    return {patient for patients in owners.values() if len(patients) > 1 for patient in patients}


def _choose(
    accepted: Iterable[Series], scans: dict[str, Scan], has_label: Callable[[Series], bool], selection: Selection
) -> None:
    of_patient: dict[str, list[Series]] = defaultdict(list)
    for s in accepted:
        of_patient[s.patient_id].append(s)
    for patient_id, owned in sorted(of_patient.items()):
        examinations: dict[tuple[str, date | None], list[Series]] = defaultdict(list)
        for s in sorted(owned, key=lambda s: (s.acquired or datetime.min, s.study_uid)):
            examinations[_examination(s)].append(s)
        best = [
            max(same, key=lambda s: (_slices(s, scans[s.fingerprint]), s.series_uid)) for same in examinations.values()
        ]
        used = next(filter(has_label, best), best[0])
        same = examinations[_examination(used)]
        if len(same) > 1:
            folder = same[0].files[0].parent.name
            selection.findings.append(Finding(reasons.SEVERAL_SERIES, patient_id, folder, same[0].fingerprint[:12]))
        selection.used.append(used)
        others = len(owned) - len(same)
        selection.fates += Counter({USED: 1, OTHER_SERIES: len(same) - 1, OTHER_EXAMINATION: others})


def _examination(series: Series) -> tuple[str, date | None]:
    """Identify the examination of a patient's series: by StudyInstanceUID, or by the day where the header has none."""
    return series.study_uid, None if series.study_uid or series.acquired is None else series.acquired.date()


def _slices(series: Series, scan: Scan) -> int:
    """Return the number of slices that were read, without copies: a series may have been exported several times."""
    return scan.measures.slices if scan.measures else series.slices
