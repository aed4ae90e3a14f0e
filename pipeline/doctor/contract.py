"""The data contract: the rules for a site's scans, labels and outcomes.

Each rule has an identifier, the code of its reason, and a severity: `refuses` leaves scans or patients out, `flags`
needs a review, `informs` needs none. A rule counts how often it is met, and of how many.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.refusal import Reason
from pipeline.cohort import reasons as cohort_reasons
from pipeline.cohort.ingest import Assessment, Member
from pipeline.cohort.store import PatientRow
from pipeline.doctor import reasons
from pipeline.doctor.duplicates import near_duplicates
from pipeline.imaging import reasons as imaging_reasons
from pipeline.preprocessing import reasons as preprocessing_reasons
from pipeline.preprocessing.measures import Measures
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records import reasons as records_reasons
from pipeline.scoring import reasons as scoring_reasons
from pipeline.site.folder import Site, Split
from pipeline.system.findings import Finding

Severity = Literal["refuses", "flags", "informs"]
ADULT_YEARS = 18
SMALL_LUNGS_ML = 2000
MIXED_FROM = 0.1  # share of the rarer kind
SKEWED_BELOW = 0.05  # share of the rarer PCR label
MOST = 0.5
HEARTS_FOR_A_SIDE = 10  # lesions hide the side of the heart in one scan of twenty
FEW_IN_SPLIT = 5
MOST_WORDS = 50  # listed on the site's screen

# Reasons for which one scan or one patient is refused or flagged, by area.
_AREAS: dict[str, tuple[Reason, ...]] = {
    "geometry": (
        *(
            imaging_reasons.GEOMETRY,
            imaging_reasons.SPACING,
            imaging_reasons.MIXED_GEOMETRY,
            imaging_reasons.DIMENSIONS,
            imaging_reasons.SLICE_GAP,
        ),
        *(
            imaging_reasons.DUPLICATE_SLICE,
            imaging_reasons.DUPLICATE_SLICE_FLAGGED,
            imaging_reasons.TILT,
            imaging_reasons.OBLIQUE,
            imaging_reasons.TOO_FEW,
        ),
        *(imaging_reasons.SEVERAL_SCANS, imaging_reasons.POSITIONS, imaging_reasons.POSITIONS_FLAGGED),
        *(imaging_reasons.TILT_FLAGGED, imaging_reasons.SEAM, imaging_reasons.THICK),
    ),
    "HU": (
        imaging_reasons.RESCALE,
        imaging_reasons.HU_RANGE,
        imaging_reasons.EMPTY_VOLUME,
        imaging_reasons.PADDING,
        preprocessing_reasons.NO_AIR,
        preprocessing_reasons.AIR_HU,
        preprocessing_reasons.HU_SHIFT,
    ),
    "orientation": (preprocessing_reasons.TURNED,),
    "lungs": (
        *(preprocessing_reasons.NO_LUNGS, preprocessing_reasons.NOT_A_WHOLE_CHEST, preprocessing_reasons.LUNGS_CUT),
        *(preprocessing_reasons.PROPORTIONS, preprocessing_reasons.LUNGS_FLAT, preprocessing_reasons.FIELD_OF_VIEW),
    ),
    "contrast": (imaging_reasons.CONTRAST,),
    "duplicates": (
        *(cohort_reasons.DUPLICATE_SCAN, cohort_reasons.SHARED_STUDY),
        *(cohort_reasons.DUPLICATE_SERIES, cohort_reasons.SEVERAL_SERIES),
    ),
    "join": (
        *(
            records_reasons.NO_PCR,
            records_reasons.PCR_CONFLICT,
            records_reasons.PCR_WINDOW,
            records_reasons.PCR_INDETERMINATE,
        ),
        *(records_reasons.PCR_INCOMPLETE, records_reasons.NO_LABEL),
    ),
    "records": (cohort_reasons.OUTCOME_WITHOUT_CT,),
}
_OF_PATIENTS = (cohort_reasons.SEVERAL_SERIES, cohort_reasons.DUPLICATE_SERIES)  # counted by patient, not by series
_AREA_OF = {reason: area for area, found in _AREAS.items() for reason in found}
_UNMATCHED = (records_reasons.NO_PCR, records_reasons.NO_LABEL)
_INFORM = {
    *(
        imaging_reasons.DUPLICATE_SLICE_FLAGGED,
        imaging_reasons.PADDING,
        imaging_reasons.CONTRAST,
        *_OF_PATIENTS,
        imaging_reasons.MODALITY_EMPTY,
    ),
    *(reasons.KERNEL_UNKNOWN, reasons.SCANNER_MIX, reasons.REPEATED, reasons.PRONE, reasons.FEET_FIRST),
    reasons.CT_ONLY,
    *(records_reasons.EVENT_BEFORE_CT, scoring_reasons.AGE_MISSING, scoring_reasons.SEX_MISSING),
}


@dataclass(frozen=True)
class Facts:
    """The input of the rules. `measures`: of all accepted scans. `tensors`: the folder of their tensors.

    `stored`: the patients of the last ingest. `other_spelling`: see `identifier_spelling`.
    """

    site: Site
    settings: Preprocessing
    assessment: Assessment
    tensors: Path
    stored: Sequence[PatientRow]
    other_spelling: Collection[str] = ()

    @property
    def measures(self) -> list[Measures]:
        return [scan.measures for scan in self.assessment.accepted if scan.measures is not None]

    @property
    def members(self) -> list[Member]:
        return self.assessment.members

    @property
    def patients(self) -> list[PatientRow]:
        return self.assessment.patients


@dataclass(frozen=True)
class Result:
    """One rule and how often it is met.

    It is met by `count` of `of` `unit` (`of` is 0 if unknown). `base`: the key of the waterfall's count that equals
    `of`, if there is one. `of_waterfall`: the count is in the waterfall, or follows from it. `private`: the affected
    patients, for the site's screen.
    """

    reason: Reason
    area: str
    count: int
    of: int
    unit: str
    is_met: bool
    base: str = ""
    of_waterfall: bool = False
    private: str = ""

    @property
    def severity(self) -> Severity:
        return "refuses" if self.reason.refuses else "informs" if self.reason in _INFORM else "flags"

    def to_json(self) -> dict[str, Any]:
        return {
            "code": self.reason.code,
            "area": self.area,
            "severity": self.severity,
            "met": self.is_met,
            "count": self.count,
            "of": self.of,
            "unit": self.unit,
            "share": round(self.count / self.of, 4) if self.of else None,
            "remedy": self.reason.remedy,
        }


def contract(facts: Facts) -> list[Result]:
    """Return all rules, met rules first, ordered by severity."""
    order = {"refuses": 0, "flags": 1, "informs": 2}
    results = [*_findings(facts), *_scans(facts), *_duplicates(facts), *_labels(facts), *_splits(facts)]
    return sorted(results, key=lambda r: (not r.is_met, order[r.severity], -r.count, r.reason.code))


def _findings(facts: Facts) -> Iterator[Result]:
    """Yield the rules of single findings: those of `_AREAS` always, all others only if met."""
    assessment = facts.assessment
    counts = Counter(f.reason for f in assessment.findings)
    in_waterfall = {count.key: count.count for _, count in assessment.waterfall.walk()}
    of_records = {f.reason for f in assessment.material.record_findings}
    for reason in {**_AREA_OF, **counts}:
        area = _AREA_OF.get(reason, "records" if reason in of_records else "files")
        count = in_waterfall.get(reason.code, counts[reason])
        base, unit = _base(reason, area, facts)
        yield Result(
            reason,
            area,
            count,
            in_waterfall.get(base, 0),
            unit,
            count > 0,
            base,
            of_waterfall=reason.code in in_waterfall or reason in _OF_PATIENTS,
            private=_words(assessment.material.record_findings)
            if reason == records_reasons.PCR_UNMAPPED_FLAGGED
            else "",
        )


def _base(reason: Reason, area: str, facts: Facts) -> tuple[str, str]:
    """Return the waterfall's count that a finding belongs to ('' if none), and its unit."""
    flagged = {code for scan in facts.assessment.accepted for code in scan.flags.split(",")}
    if area == "join" or reason in _OF_PATIENTS:
        return "patients", "patients"
    if area == "records":
        return "", "patients" if reason == cohort_reasons.OUTCOME_WITHOUT_CT else "times"
    if reason.code in flagged or (area in _AREAS and not reason.refuses):
        return "accepted", "series"
    if area in _AREAS or reason.code in {count.key for count in facts.assessment.waterfall.parts}:
        return "found", "series"
    return "", "times"


def _words(findings: Sequence[Finding]) -> str:
    """List the words that are in none of the laboratory's lists, most frequent first; they may name a patient."""
    words = Counter(f.detail for f in findings if f.reason == records_reasons.PCR_UNMAPPED_FLAGGED)
    listed = [f"{word!r} {count} times" for word, count in words.most_common(MOST_WORDS)]
    return "; ".join(listed) + (f"; {len(words) - MOST_WORDS} more words" if len(words) > MOST_WORDS else "")


def _scans(facts: Facts) -> Iterator[Result]:
    """Yield the rules over all accepted scans."""
    scans = facts.measures

    def scans_with(reason: Reason, area: str, meets: Callable[[Measures], bool]) -> Result:
        count = sum(map(meets, scans))
        return Result(reason, area, count, len(scans), "series", count > 0, "accepted")

    yield scans_with(scoring_reasons.COARSE, "geometry", lambda m: m.pixel_mm > facts.settings.working_spacing_mm)
    yield scans_with(reasons.PRONE, "orientation", lambda m: m.position[2:] not in ("", "S"))
    yield scans_with(reasons.FEET_FIRST, "orientation", lambda m: m.position.startswith("FF"))
    yield scans_with(reasons.SMALL_LUNGS, "lungs", lambda m: m.lungs_ml < SMALL_LUNGS_ML)
    yield scans_with(reasons.KERNEL_UNKNOWN, "scanner", lambda m: not m.sharpness)
    right = sum(m.heart_left < 0 for m in scans)
    is_mirrored = len(scans) >= HEARTS_FOR_A_SIDE and right > MOST * len(scans)
    yield Result(reasons.MIRRORED, "orientation", right, len(scans), "series", is_mirrored, "accepted")
    kernels = Counter(m.sharpness for m in scans if m.sharpness)
    rarer = min(kernels["soft"], kernels["sharp"])
    is_mixed = rarer > 0 and rarer >= MIXED_FROM * kernels.total()
    yield Result(reasons.KERNEL_MIX, "scanner", rarer, kernels.total(), "series", is_mixed)
    makers = Counter(m.manufacturer for m in scans)
    others = makers.total() - max(makers.values(), default=0)
    yield Result(reasons.SCANNER_MIX, "scanner", others, len(scans), "series", others > 0, "accepted")


def _duplicates(facts: Facts) -> Iterator[Result]:
    """Yield the rules about duplicates. Without records there is no list of patients to compare."""
    members = facts.members
    pairs = list(near_duplicates([facts.tensors / str(m.scan.tensor) for m in members]))
    names = [m.series.patient_id for m in members]
    private = "; ".join(f"{names[i]} and {names[j]} ({r})" for i, j, r in pairs)
    involved = len({place for i, j, _ in pairs for place in (i, j)})
    yield Result(
        reasons.NEAR_DUPLICATE,
        "duplicates",
        involved,
        len(members),
        "patients",
        bool(pairs),
        "patients",
        private=private,
    )
    days: dict[str, set[object]] = {}
    for s in facts.assessment.material.series:
        days.setdefault(s.patient_id, set()).add(s.acquired and s.acquired.date())
    repeated = sum(len(of_patient) > 1 for of_patient in days.values())
    yield Result(reasons.REPEATED, "duplicates", repeated, len(days), "patients", repeated > 0)


def _labels(facts: Facts) -> Iterator[Result]:
    """Yield the rules about number and balance of labels, age, sex and outcomes.

    At a site with chest CT only, one rule says so, and the others have nobody to judge.
    """
    has_labels, everybody = facts.assessment.has_labels, facts.members
    members, patients = everybody if has_labels else [], facts.patients
    unlabelled = 0 if has_labels else len(everybody)
    yield Result(reasons.CT_ONLY, "labels", unlabelled, len(everybody), "patients", not has_labels, "patients")

    def most(reason: Reason, area: str, count: int, of: int) -> Result:
        return Result(reason, area, count, of, "patients", count > MOST * of, of_waterfall=True)

    def some(reason: Reason, area: str, count: int, of: int, *, of_waterfall: bool = False) -> Result:
        return Result(reason, area, count, of, "patients", count > 0, "labelled", of_waterfall)

    yield most(reasons.LABEL_YIELD, "labels", len(members) - len(patients), len(members))
    unmatched = sum(m.labels.reason in _UNMATCHED for m in members)
    yield most(reasons.IDENTIFIERS_DIFFER, "labels", unmatched, len(members))
    spelled = sum(m.series.patient_id in facts.other_spelling for m in members if m.labels.reason in _UNMATCHED)
    yield Result(reasons.IDENTIFIER_SPELLING, "labels", spelled, len(members), "patients", spelled > 0)
    balances = [_rarer(known) for known in _known(patients).values() if known]
    rarer, of = min(balances, key=lambda found: found[0] / found[1], default=(0, 0))
    is_skewed = rarer < SKEWED_BELOW * of
    yield Result(reasons.PREVALENCE, "labels", rarer, of, "patients", is_skewed, of_waterfall=True)
    yield some(scoring_reasons.AGE_MISSING, "labels", sum(p.age_years is None for p in patients), len(patients))
    minors = sum(p.age_years is not None and p.age_years < ADULT_YEARS for p in patients)
    yield some(scoring_reasons.NOT_ADULT, "labels", minors, len(patients))
    yield some(scoring_reasons.SEX_MISSING, "labels", sum(p.sex is None for p in patients), len(patients))
    asked = [m.labels for m in members if m.labels.reason is None and m.labels.pcr_positive is not False]
    unknown = Counter(labels.severe_reason for labels in asked)
    for reason in (records_reasons.NO_OUTCOME, records_reasons.FOLLOWED_TOO_SHORT, records_reasons.EVENT_BEFORE_CT):
        yield some(reason, "outcomes", unknown[reason], len(asked), of_waterfall=True)
    yield most(reasons.OUTCOME_YIELD, "outcomes", sum(labels.severe is None for labels in asked), len(asked))


def _splits(facts: Facts) -> Iterator[Result]:
    """Yield the rules about splits: no patient is in two splits, and each split has both classes."""
    splits: dict[str, set[str]] = {}
    for p in (*facts.patients, *facts.stored):
        splits.setdefault(p.pseudonym, set()).add(p.split)
    wrong = sum(found != {facts.site.split(pseudonym)} for pseudonym, found in splits.items())
    yield Result(reasons.OTHER_SPLIT, "splits", wrong, len(splits), "patients", wrong > 0)
    learnt_from: tuple[Split, ...] = ("train", "test")
    cells = Counter((label, split, value) for label, known in _known(facts.patients).items() for split, value in known)
    classes = [
        (label, split, value)
        for label, known in _known(facts.patients).items()
        if known
        for split in learnt_from
        for value in (True, False)
    ]
    few = [cell for cell in classes if cells[cell] < FEW_IN_SPLIT]
    private = "; ".join(
        f"{split}, {label} {'yes' if value else 'no'}: {cells[label, split, value]}" for label, split, value in few
    )
    yield Result(reasons.FEW_IN_SPLIT, "splits", len(few), len(classes), "classes", bool(few), private=private)


def _known(patients: Sequence[PatientRow]) -> dict[str, list[tuple[Split, bool]]]:
    """Return split and value of each known label; severity is defined only for patients who are not negative."""
    return {
        "PCR": [(p.split, p.pcr_positive) for p in patients if p.pcr_positive is not None],
        "severe": [(p.split, p.severe) for p in patients if p.severe is not None and p.pcr_positive is not False],
    }


def _rarer(known: Sequence[tuple[Split, bool]]) -> tuple[int, int]:
    """Return the number of patients with the rarer value, and of all."""
    true = sum(value for _, value in known)
    return min(true, len(known) - true), len(known)


def numbers(facts: Facts) -> dict[str, dict[str, float]]:
    """Return range and quartiles of the measures of the accepted scans."""
    found: dict[str, Sequence[float | None]] = {
        "distance between slices, mm": [m.slice_mm for m in facts.measures],
        "pixel, mm": [m.pixel_mm for m in facts.measures],
        "slice thickness, mm": [m.thickness_mm for m in facts.measures],
        "slices": [m.slices for m in facts.measures],
        "volume of the lungs, mL": [m.lungs_ml for m in facts.measures],
        "air around the patient, HU": [m.air_hu for m in facts.measures],
        "aerated lung, HU": [m.aerated_hu for m in facts.measures],
    }
    known = {name: [value for value in values if value is not None] for name, values in found.items()}
    return {name: {"scans": len(values), **_quartiles(values)} for name, values in known.items() if values}


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    marks = ("least", "first quartile", "median", "third quartile", "most")
    found = np.percentile(values, (0, 25, 50, 75, 100))
    return {mark: round(float(value), 2) for mark, value in zip(marks, found, strict=True)}
