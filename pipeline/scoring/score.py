"""Scores one scan: reads and preprocesses it as in training, runs the model, and reports reasons to distrust it."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from models.calibration import Platt
from models.compute import PROCESSOR, Compute
from models.description import Description
from models.familiarity import Familiarity, appearance_features
from models.network_settings import LABELS, tabular
from models.operating_points import evidence_text
from models.provenance import FlagRecord
from models.reasons import MODEL_FORMAT
from models.refusal import Refusal
from models.release import Release
from models.saliency import METHOD, saliency
from pipeline.imaging.discovery import Series
from pipeline.imaging.missing_slices import require_whole
from pipeline.imaging.volume import Volume
from pipeline.preprocessing.lesion_burden import Burden, burden, median_density
from pipeline.preprocessing.plausibility import look_at, require_chest
from pipeline.preprocessing.preprocess import Prepared, mask_of, orient, prepare, regions_of
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring import reasons, verdict
from pipeline.scoring.quality_checks import Check, checks
from pipeline.scoring.single_scan import OneScan, read_one
from pipeline.scoring.verdict import Band, Level

NOTICE = "Research use only. Not a medical device."
EXPLAINED = ("severe", "pcr_positive")  # the map explains the first of these whose probability is not low
LOW_BELOW = 0.1  # if the release has no operating points
ALL_LOW = "the probabilities are low, so a map would show nothing relevant"
NOTHING_RAISES = "nothing in the lungs raises the probability"
_BAND_YEARS, _TOP_BAND_YEARS = 5, 90


@dataclass(frozen=True)
class Score:
    """What came of one scan; it holds nothing that names the patient or the place of the files.

    `probabilities`: calibrated, 0 to 1, of each label that was calibrated and judged. `age_band`: five years, e.g.
    60-64. `model`, `model_sha256`: the release; `signed_by`: the fingerprint of the trusted key that signed it, None
    where that was not checked.
    `intervals`: 95 % band of the calibration at each probability, as far as the release has one. `burden`: how much of
    the lungs is dense. `distance`: from the scans that the model was trained on, if the release has a limit for it.
    `hu_sha256`, `geometry_sha256`: of the volume as read. `seconds`: read, prepare, predict, explain, total.
    `is_phantom`: whether the scan's headers mark it as a synthetic phantom; only then does a model that was trained on
    phantoms have levels.

    For the pages, not part of the JSON: `prepared`, the scan as the model saw it; `volume`, the scan upright (axes as
    in `preprocess.AXES`); `saliency`, where the model looked for the label that `explained` names: float32, 0 to 1, on
    the tensor's grid (`prepared.tensor_affine`), or None.
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
    volume: Volume = field(repr=False)
    burden: Burden = field(repr=False)
    saliency: NDArray[np.float32] | None = field(default=None, repr=False)
    intervals: dict[str, Band] = field(default_factory=dict)
    distance: float | None = None
    signed_by: str | None = None
    is_phantom: bool = False
    geometry_sha256: str | None = None

    @property
    def signature(self) -> str:
        return f"signed by {self.signed_by}" if self.signed_by else "signature not checked"

    @property
    def no_number(self) -> dict[str, str]:
        """Why a label has no probability, for each of those that have none."""
        return {label: self.model.why_no_number(label) or "" for label in LABELS if label not in self.probabilities}

    @property
    def doubts(self) -> tuple[FlagRecord, ...]:
        """Reasons to doubt the model: see `Description.doubts`."""
        return self.model.doubts

    @property
    def withheld(self) -> str | None:
        """Why there are no levels and no operating points, and why nothing is sent; None if the score is a verdict."""
        is_synthetic = self.model.trained_on_synthetic_data
        return verdict.why_withheld(is_synthetic=is_synthetic, is_phantom=self.is_phantom)

    @property
    def operating_points(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{label: {rule_out, rule_in: {threshold, met, evidence, says}}}, as the release has them; {} if withheld.

        `met`: below rule_out, at or above rule_in; None where the band crosses the threshold. `evidence`: see
        `models.operating_points.Evidence`; None if the release does not record it. `says`: the same in a sentence.
        """
        if self.withheld:
            return {}
        points = verdict.decide_points(self.probabilities, self.model.thresholds(), self.intervals)
        for label, of_label in points.items():
            for name, decided in of_label.items():
                evidence = self.model.operating_points[label][name].evidence
                decided["evidence"] = evidence.model_dump() if evidence else None
                decided["says"] = evidence_text(name, evidence)
        return points

    @property
    def missing_points(self) -> dict[str, dict[str, str]]:
        """By label and point: why the release has no such threshold, in a sentence; {} if the score is withheld."""
        return {} if self.withheld else {label: self.model.why_missing(label) for label in self.probabilities}

    @property
    def levels(self) -> dict[str, Level | None]:
        """By label: see `verdict.level`; None where the score is withheld or the release lacks a threshold."""
        points = self.operating_points
        return {label: verdict.level(points.get(label, {})) for label in self.probabilities}

    @property
    def explained(self) -> str | None:
        """The label whose probability the saliency explains; None where both are low."""
        return explained_label(self.probabilities, self.model, self.intervals)

    def to_json(self) -> dict[str, Any]:
        """The score for machines. The keys are stable:

        notice, trained_on_synthetic_data, scored_at (ISO 8601); probability: {label: 0 to 1}; no_number: {label: why it
        has no probability}; withheld: null, or why
        the score is no verdict: then level is null for each label and operating_points is {}; operating_points:
        {label: {rule_out, rule_in: {threshold, met, evidence, says}}}, as far as the release has them, where met is
        true, false, or null if the band crosses the threshold; evidence is {value, low, high, positives, negatives,
        sites}, sensitivity or specificity on validation patients with its 90 % interval and counts, or null; says is
        the same in a sentence;
        missing_points: {label: {rule_out, rule_in: text}}, why the release has no such threshold; level: {label: low,
        intermediate, high, uncertain (the band crosses a threshold) or null}; interval: {label: [low, high]}, the 95 %
        band of the calibration, or null; lungs: see `lesion_burden.Burden`; saliency: {shown, label, method, why_not};
        familiarity: {distance, limit} or null; quality: [{name, value, unit, verdict (ok or flag), code, says,
        remedy}]; model: {sha256, signature, study, rounds, sites, doubts (texts, in spite of which it was released; or
        that nobody released it), released_because}; input: {is_phantom, age_band, sex, hu_sha256, geometry_sha256,
        tensor_sha256}; timing_seconds: {read, prepare, predict, explain, total}.
        """
        return {
            "notice": NOTICE,
            "trained_on_synthetic_data": self.model.trained_on_synthetic_data,
            "scored_at": self.scored_at.isoformat(timespec="seconds"),
            "probability": self.probabilities,
            "no_number": self.no_number,
            "withheld": self.withheld,
            "operating_points": self.operating_points,
            "missing_points": self.missing_points,
            "level": self.levels,
            "interval": {label: list(band) for label, band in self.intervals.items()} or None,
            "lungs": self.burden.to_json(),
            "saliency": self._saliency(),
            "familiarity": self._familiarity(),
            "quality": [check.to_json() for check in self.checks],
            "model": {
                "sha256": self.model_sha256,
                "signature": self.signature,
                "study": self.model.study,
                "rounds": self.model.rounds,
                "sites": self.model.sites,
                "doubts": [flag.says for flag in self.doubts],
                "released_because": self.model.released_because,
            },
            "input": {
                "is_phantom": self.is_phantom,
                "age_band": self.age_band,
                "sex": self.sex,
                "hu_sha256": self.hu_sha256,
                "geometry_sha256": self.geometry_sha256,
                "tensor_sha256": self.prepared.digest,
            },
            "timing_seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }

    def _saliency(self) -> dict[str, Any]:
        is_shown = self.saliency is not None
        why_not = verdict.NO_MAP_WITHHELD if self.withheld else NOTHING_RAISES if self.explained else ALL_LOW
        return {
            "shown": is_shown,
            "label": self.explained if is_shown else None,
            "method": METHOD if is_shown else None,
            "why_not": None if is_shown else why_not,
        }

    def _familiarity(self) -> dict[str, float] | None:
        known = self.model.familiarity
        return {"distance": self.distance, "limit": known.limit} if known and self.distance is not None else None


def score(
    source: Path | Sequence[Path], release: Release, *, series_uid: str | None = None, lungs: Path | None = None
) -> Score:
    """Score the one chest CT in a folder, zip or files.

    A scan whose score cannot be trusted at all gets no number but a refusal.

    Parameters
    ----------
    source : Path or sequence of Path
        A folder, a zip, one file or several: a DICOM series, NIfTI or MetaImage.
    release : Release
        The model, from `load_release`.
    series_uid : str or None
        SeriesInstanceUID that chooses among several DICOM series.
    lungs : Path or None
        The hospital's own lung mask of this scan: NIfTI-1 or a DICOM segmentation. The outline and the table use it;
        the model's input only if the release was trained with such masks.

    Returns
    -------
    Score
        Calibrated probabilities (0 to 1) by label, their intervals, quality checks and saliency; `to_json` for
        machines.

    Raises
    ------
    Refusal
        Those of `read_one` and `score_scan`.
    """
    return score_scan(read_one(source, series_uid, lungs=lungs), release)


def score_scan(scan: OneScan, release: Release, *, compute: Compute = PROCESSOR) -> Score:
    """Score a scan that has been read, in float32, on the CPU unless `compute` is another processor.

    Raises Refusal E_MODEL_FORMAT, E_LABELS_NOT_JUDGED, E_SLICES_MISSING, E_NO_PROBABILITY, E_UNFAMILIAR, and those of
    `prepare`, `require_chest` and `Compute.use`.
    """
    compute = compute.exact()
    require_whole(scan.stated, scan.volume.spacing_mm[0])
    settings = _settings(release.description)
    numbered = numbered_calibration(release.description)
    if not numbered:
        raise Refusal(reasons.LABELS_NOT_JUDGED)
    # Work that does not need the model runs in other threads, without holding Python's global lock.
    with ThreadPoolExecutor(2) as beside:
        hu_sha256 = beside.submit(_sha256, scan.volume.hu)
        clock = [time.perf_counter()]
        volume = orient(scan.volume)
        prepared = prepare(volume, settings, scan.mask)
        mask = mask_of(prepared, scan.mask)
        looked_at = beside.submit(look_at, volume, prepared)
        regions = beside.submit(regions_of, prepared)
        density = beside.submit(median_density, volume.hu, prepared.image_hu.shape)
        clock.append(time.perf_counter())
        seen = network_input(prepared, scan.series)
        logits = _ask(release, *seen, compute)
        probabilities = calibrated(numbered, logits)
        clock.append(time.perf_counter())
        intervals = _intervals(numbered, logits)
        label = explained_label(probabilities, release.description, intervals)
        heat = saliency(release.network, *seen, LABELS.index(label), compute=compute) if label else None
        anatomy = looked_at.result()
        require_chest(anatomy)
        found = regions.result()
        distance = require_familiar(release.description.familiarity, seen[0])
        clock.append(time.perf_counter())
    seconds = {
        "read": scan.seconds,
        **dict(zip(("prepare", "predict", "explain"), np.diff(clock).tolist(), strict=True)),
    }
    return Score(
        probabilities=probabilities,
        checks=checks(scan, prepared, anatomy, settings, found, mask),
        age_band=age_band(scan.series.age_years),
        sex=scan.series.sex,
        model=release.description,
        model_sha256=release.sha256,
        hu_sha256=hu_sha256.result(),
        geometry_sha256=scan.volume.geometry_sha256,
        seconds={**seconds, "total": sum(seconds.values())},
        scored_at=datetime.now().astimezone(),
        prepared=prepared,
        volume=volume,
        burden=burden(
            prepared.image_hu, found, prepared.spacing_mm, mask, density.result(), voxel_ml=prepared.voxel_ml
        ),
        saliency=heat if heat is not None and heat.any() else None,
        intervals=intervals,
        distance=distance,
        signed_by=release.signed_by,
        is_phantom=scan.series.is_phantom,
    )


def explained_label(
    probabilities: Mapping[str, float], model: Description, intervals: Mapping[str, Band]
) -> str | None:
    """The first of EXPLAINED whose probability is not low: rule_out is not met, without one LOW_BELOW."""
    for label in EXPLAINED:
        if label not in probabilities:
            continue
        below = model.thresholds().get(label, {}).get("rule_out", LOW_BELOW)
        if not verdict.is_met("rule_out", probabilities[label], below, intervals.get(label)):
            return label
    return None


def network_input(prepared: Prepared, series: Series) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan (2, slices, rows, columns) and tabular data (4), float32.

    In float32 whatever the machine: bfloat16 would move the answer between one and the next.
    """
    scan = torch.from_numpy(prepared.tensor.astype(np.float32))
    return scan, torch.tensor(tabular(series.age_years, series.sex))


def calibrated(calibration: Mapping[str, Platt], logits: NDArray[np.float32]) -> dict[str, float]:
    """The probability of each label with a calibration, from logits in the order of LABELS.

    Raises Refusal E_NO_PROBABILITY.
    """
    found = zip(LABELS, logits, strict=True)
    answer = {label: float(calibration[label].probability(z)) for label, z in found if label in calibration}
    if not np.isfinite(list(answer.values())).all():
        raise Refusal(reasons.NO_PROBABILITY)
    return answer


def numbered_calibration(model: Description) -> dict[str, Platt]:
    """Return the calibration of the labels that get a number: those that were calibrated and judged."""
    return {label: model.calibration[label] for label in LABELS if model.why_no_number(label) is None}


def age_band(years: float | None) -> str | None:
    """Five years, e.g. 60-64, and 90+ from there on: the exact age may single a patient out."""
    if years is None:
        return None
    low = int(years // _BAND_YEARS) * _BAND_YEARS
    return f"{_TOP_BAND_YEARS}+" if low >= _TOP_BAND_YEARS else f"{low}-{low + _BAND_YEARS - 1}"


def _settings(model: Description) -> Preprocessing:
    """Return the release's preprocessing; refuse labels and settings that are not known."""
    if model.calibration.keys() - set(LABELS):
        raise Refusal(MODEL_FORMAT)
    try:
        return Preprocessing.model_validate(model.preprocessing)
    except ValidationError as error:
        raise Refusal(MODEL_FORMAT) from error


def _sha256(hu: NDArray[np.int16]) -> str:
    return hashlib.sha256(hu.data).hexdigest()


@torch.inference_mode()
def _ask(release: Release, scan: torch.Tensor, known: torch.Tensor, compute: Compute) -> NDArray[np.float32]:
    """Return the logits in the order of LABELS."""
    network = release.network.eval()
    with compute.use(network):
        logits: torch.Tensor = network(compute.move(scan[None]), compute.move(known[None]))[0]
        return logits.cpu().numpy()


def _intervals(calibration: Mapping[str, Platt], logits: NDArray[np.float32]) -> dict[str, Band]:
    found = zip(LABELS, logits, strict=True)
    bands = {label: calibration[label].band(float(z)) for label, z in found if label in calibration}
    return {label: band for label, band in bands.items() if band is not None}


def require_familiar(known: Familiarity | None, scan: torch.Tensor) -> float | None:
    """Return the scan's distance from the training scans, None without a limit. Raises Refusal E_UNFAMILIAR beyond it.

    `scan`: as `network_input` returns it.
    """
    if known is None:
        return None
    distance = known.distance(appearance_features(scan.numpy()))
    if not known.is_familiar(distance):
        raise Refusal(reasons.UNFAMILIAR, distance=round(distance, 2), limit=round(known.limit, 2))
    return distance
