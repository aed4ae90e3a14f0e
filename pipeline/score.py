"""Scores one scan: reads it, prepares it as in training, asks the model, and says what speaks against trusting it."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from models.network import LABELS, SeverityNetwork, tabular
from models.reasons import MODEL_FORMAT
from models.refusal import Reason, Refusal
from models.release import Description, Release
from pipeline import reasons
from pipeline.archive import open_images
from pipeline.findings import Finding
from pipeline.preprocess import Prepared, Preprocessing, prepare
from pipeline.scans import find_scans, read_scan
from pipeline.series import Series, quiet_pydicom
from pipeline.slices import inspect_slice
from pipeline.volume import Volume

NOTICE = "Research use only. Not a medical device."
ADULT_YEARS = 18
_BAND_YEARS, _TOP_BAND_YEARS = 5, 90
_BESIDES_THE_SCAN = {reasons.MODALITY, reasons.LOCALIZER, reasons.NOT_AXIAL}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `reason` (a `W_` one) says why it needs a look; None where all is well."""

    name: str
    value: float | str
    unit: str = ""
    reason: Reason | None = None

    @property
    def verdict(self) -> str:
        return "flag" if self.reason else "ok"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "verdict": self.verdict,
            "code": self.reason and self.reason.code,
            "says": self.reason and self.reason.says,
            "remedy": self.reason and self.reason.remedy,
        }


@dataclass(frozen=True)
class Score:
    """What came of one scan; it holds nothing that names the patient or the place of the files.

    `probabilities`: of each label, calibrated, 0 to 1. `age_band`: five years, e.g. 60-64. `model`, `model_sha256`:
    the release. `hu_sha256`: of the volume as read. `seconds`: read, prepare, predict, total.
    `prepared`: the scan as the model saw it, for the page; not part of the JSON.
    """

    probabilities: dict[str, float]
    checks: tuple[Check, ...]
    age_band: str | None
    sex: str | None
    model: Description
    model_sha256: str
    hu_sha256: str
    seconds: dict[str, float]
    scored_at: datetime
    prepared: Prepared = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The score for machines. The keys are stable:

        notice, trained_on_synthetic_data, scored_at (ISO 8601); probability: {label: 0 to 1}; interval: null until
        releases bring one; quality: [{name, value, unit, verdict (ok or flag), code, says, remedy}]; model: {sha256,
        study, rounds, sites}; input: {age_band, sex, hu_sha256, tensor_sha256}; timing_seconds: {read, prepare,
        predict, total}.
        """
        return {
            "notice": NOTICE,
            "trained_on_synthetic_data": self.model.trained_on_synthetic_data,
            "scored_at": self.scored_at.isoformat(timespec="seconds"),
            "probability": self.probabilities,
            "interval": None,
            "quality": [check.to_json() for check in self.checks],
            "model": {
                "sha256": self.model_sha256,
                "study": self.model.study,
                "rounds": self.model.rounds,
                "sites": self.model.sites,
            },
            "input": {
                "age_band": self.age_band,
                "sex": self.sex,
                "hu_sha256": self.hu_sha256,
                "tensor_sha256": self.prepared.digest,
            },
            "timing_seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }


def score(source: Path | Sequence[Path], release: Release, *, series_uid: str | None = None) -> Score:
    """Score the one chest CT in a folder, zip or files, be it a DICOM series, a NIfTI or a MetaImage file.

    `series_uid` chooses where there are several DICOM series.

    Raises Refusal, never a number that cannot be trusted at all: E_MODEL_FORMAT, E_MIXED_PATIENT, E_MIXED_SERIES,
    E_UNKNOWN_SERIES, E_NO_PROBABILITY, and those of `open_images`, `find_scans`, `read_scan` and `prepare`.
    """
    settings = _settings(release.description)
    clock = [time.perf_counter()]
    with open_images(source) as images:
        found, unread = find_scans(images)
        series = _choose(found, unread, series_uid)
        volume = read_scan(series)
    hu_sha256 = hashlib.sha256(volume.hu.data).hexdigest()
    clock.append(time.perf_counter())
    prepared = prepare(volume, settings)
    clock.append(time.perf_counter())
    probabilities = _probabilities(release, _logits(release.network, prepared, series))
    clock.append(time.perf_counter())
    seconds = dict(zip(("read", "prepare", "predict"), np.diff(clock).tolist(), strict=True))
    return Score(
        probabilities=probabilities,
        checks=(
            *_file_checks(volume, settings, other_series=len(found) - 1, unread=len(unread)),
            *_lung_checks(prepared, settings),
            *_patient_checks(series),
        ),
        age_band=age_band(series.age_years),
        sex=series.sex,
        model=release.description,
        model_sha256=release.sha256,
        hu_sha256=hu_sha256,
        seconds={**seconds, "total": clock[-1] - clock[0]},
        scored_at=datetime.now().astimezone(),
        prepared=prepared,
    )


def age_band(years: float | None) -> str | None:
    """Five years, e.g. 60-64, and 90+ from there on: the exact age may single a patient out."""
    if years is None:
        return None
    low = int(years // _BAND_YEARS) * _BAND_YEARS
    return f"{_TOP_BAND_YEARS}+" if low >= _TOP_BAND_YEARS else f"{low}-{low + _BAND_YEARS - 1}"


def _settings(model: Description) -> Preprocessing:
    """The release's own preprocessing; refused where a label has no calibration or the numbers are not ours."""
    if model.calibration.keys() != set(LABELS):
        raise Refusal(MODEL_FORMAT)
    try:
        return Preprocessing.model_validate(model.preprocessing)
    except ValidationError as error:
        raise Refusal(MODEL_FORMAT) from error


def _choose(found: Sequence[Series], unread: Sequence[Finding], series_uid: str | None) -> Series:
    """The one series to score. Scouts, reformats and what is not CT may lie beside it; a second scan may not."""
    if not found:
        first = unread[0] if unread else Finding(reasons.NO_IMAGES)
        raise Refusal(first.reason, private=first.detail)
    asked = [s for s in found if series_uid in (None, s.series_uid)]
    if not asked:
        raise Refusal(reasons.UNKNOWN_SERIES, private=str(series_uid))
    patients = {(s.patient_id, s.issuer) for s in asked}
    if len(patients) > 1:
        raise Refusal(reasons.MIXED_PATIENT, patients=len(patients))
    if len(asked) == 1:
        return asked[0]  # whatever it is, `read_scan` says best why it cannot be used
    refusals = [_not_the_scan(s) for s in asked]
    scans = [s for s, refusal in zip(asked, refusals, strict=True) if refusal is None]
    if not scans:
        raise next(refusal for refusal in refusals if refusal)
    if len(scans) > 1:
        choice = ", ".join(f"{s.series_uid} ({len(s.files)} files)" for s in scans)
        raise Refusal(reasons.MIXED_SERIES, series=len(scans), private=choice)
    return scans[0]


@quiet_pydicom()
def _not_the_scan(series: Series) -> Refusal | None:
    """Why a series is not an axial CT scan, by its first file; a broken scan is a scan all the same."""
    try:
        inspect_slice(series.files[0])
    except Refusal as refusal:
        return refusal if refusal.reason in _BESIDES_THE_SCAN else None
    return None


@torch.inference_mode()
def _logits(network: SeverityNetwork, prepared: Prepared, series: Series) -> NDArray[np.float32]:
    """In float32 whatever the machine: bfloat16 would move the answer between one and the next."""
    network.eval()
    scan = torch.from_numpy(prepared.tensor.astype(np.float32))
    known = torch.tensor(tabular(series.age_years, series.sex))
    return network(scan[None], known[None])[0].numpy()


def _probabilities(release: Release, logits: NDArray[np.float32]) -> dict[str, float]:
    calibration = release.description.calibration
    answer = {label: float(calibration[label].probability(z)) for label, z in zip(LABELS, logits, strict=True)}
    if not np.isfinite(list(answer.values())).all():
        raise Refusal(reasons.NO_PROBABILITY)
    return answer


def _file_checks(volume: Volume, settings: Preprocessing, *, other_series: int, unread: int) -> list[Check]:
    """`other_series`: found beside this one and left out; `unread`: files that could not be read."""
    slice_mm, row_mm, column_mm = volume.spacing_mm
    pixel_mm = max(row_mm, column_mm)
    is_coarse = pixel_mm > settings.working_spacing_mm
    remarks = [reasons.BY_CODE[flag] for flag in volume.flags]
    return [
        Check("slices", len(volume.hu)),
        Check("slice_distance", round(slice_mm, 2), "mm"),
        Check("pixel_spacing", round(pixel_mm, 2), "mm", reasons.COARSE if is_coarse else None),
        Check("other_series", other_series),
        Check("unreadable_files", unread, "", reasons.FILES_UNREADABLE if unread else None),
        *[Check("reader", remark.code, "", remark) for remark in remarks],
    ]


def _lung_checks(prepared: Prepared, settings: Preprocessing) -> list[Check]:
    ends = [name for name, end in (("lowest", 0), ("highest", -1)) if prepared.lungs[end].any()]
    is_shift_spent = abs(prepared.shift_hu) >= settings.largest_shift_hu
    return [
        Check("lungs", round(prepared.lungs_ml), "mL"),
        Check("lungs_cut", " and ".join(ends) or "no", "", reasons.LUNGS_CUT if ends else None),
        Check("hu_shift", round(prepared.shift_hu), "HU", reasons.HU_SHIFT if is_shift_spent else None),
    ]


def _patient_checks(series: Series) -> list[Check]:
    age, sex = series.age_years, series.sex
    age_reason = reasons.AGE_MISSING if age is None else reasons.NOT_ADULT if age < ADULT_YEARS else None
    return [
        Check("age", "missing" if age is None else "known", "", age_reason),
        Check("sex", "known" if sex else "missing", "", None if sex else reasons.SEX_MISSING),
    ]
