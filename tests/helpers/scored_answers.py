"""Answers to a synthetic scan with all their files, made from fixed values without a network."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from models.description import Description
from models.familiarity import APPEARANCE_SIZE, Familiarity
from pipeline.clinic.pictures import write_pictures
from pipeline.clinic.records import Answer
from pipeline.clinic.results.source import keep_source
from pipeline.imaging.discovery import Series, find_series
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing import reasons
from pipeline.preprocessing.preprocess import Prepared, orient, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring.quality_checks import Check
from pipeline.scoring.score import Score
from pipeline.scoring.single_scan import read_one
from tests.helpers import phantoms
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import anything_goes, write_mislabelled
from tests.helpers.lungs import burden_of

ANSWERED_AT = datetime(2026, 5, 4, 3, 2, 1, 987654, tzinfo=UTC)
MODEL_SHA256 = "0123456789abcdef" * 4
SEVERE, PCR_POSITIVE = 0.2345, 0.9876
BAND = (0.1234, 0.3456)
DISTANCE, LIMIT = 1.25, 3.5
FLAG = reasons.LUNGS_CUT


def write_scan(folder: Path) -> None:
    """Write one synthetic series."""
    phantoms.scan(HOSPITALS[0], folder)


@anything_goes()
def rename(scan: Path, folder: Path, **attributes: Any) -> Series:
    """Copy a few slices of a series with changed headers, valid or not."""
    folder.mkdir()
    for path in sorted(scan.iterdir())[:3]:
        image = dcmread(path)
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
        image.save_as(folder / path.name)
    return series_of(folder)


def mislabelled(scan: Path, folder: Path, **attributes: str) -> Series:
    """Copy a few slices with changed headers, whose texts are Latin-1 although they say that they are UTF-8."""
    folder.mkdir()
    for path in sorted(scan.iterdir())[:3]:
        image = dcmread(path)
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
        write_mislabelled(image, folder / path.name)
    return series_of(folder)


def series_of(folder: Path) -> Series:
    (series,), findings = find_series(folder)
    assert findings == []
    return series


def score_of(scan: Path) -> Score:
    """Create a score with fixed values, and a saliency map with its peak in the right lung."""
    one = read_one(scan)
    prepared = prepare(one.volume, Preprocessing())
    return Score(
        probabilities={"pcr_positive": PCR_POSITIVE, "severe": SEVERE},
        checks=(Check("slices", len(one.volume.hu)), Check("lungs_cut", "lowest", "", FLAG)),
        age_band="60-64",
        sex="F",
        model=model(),
        model_sha256=MODEL_SHA256,
        hu_sha256="f" * 64,
        seconds={"total": 1.0},
        scored_at=ANSWERED_AT,
        prepared=prepared,
        volume=orient(one.volume),
        burden=burden_of(prepared),
        saliency=_in_the_right_lung(prepared),
        intervals={"severe": BAND},
        distance=DISTANCE,
        is_phantom=one.series.is_phantom,
    )


def model() -> Description:
    points = {"severe": {"rule_out": 0.1, "rule_in": 0.6}}
    known = Familiarity(mean=(0.0,) * APPEARANCE_SIZE, variance=(1.0,) * APPEARANCE_SIZE, limit=LIMIT, sites=3)
    return description(operating_points=points, familiarity=known)


def _in_the_right_lung(prepared: Prepared) -> NDArray[np.float32]:
    """Create a spot on the tensor's grid. Its columns run from the patient's right to the left."""
    lungs = prepared.tensor[1] > 0.5
    lungs[:, :, lungs.shape[2] // 3 :] = False
    places = np.argwhere(lungs)
    centre = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
    squares = ((np.indices(lungs.shape).T - centre) ** 2).sum(axis=-1).T
    return np.exp(-squares / 30).astype(np.float32)


def answer_to(scored: Score, series: Series, folder: Path, **changes: Any) -> Answer:
    """Create an answer. Write the files from which results are made to the new folder `folder`."""
    folder.mkdir(parents=True)
    write_pictures(scored, folder)
    keep_source(series, folder)
    made = Answer(
        id=folder.name,
        job_id="job",
        created_at=ANSWERED_AT,
        study_uid=series.study_uid,
        series_uid=series.series_uid,
        accession="",
        acquired_at=series.acquired,
        has_clock=series.has_clock,
        score=scored.to_json(),
        model_sha256=MODEL_SHA256,
        model_name="trial of synthetic hospitals",
        role="live",
        folder=folder,
    )
    return replace(made, **changes)
