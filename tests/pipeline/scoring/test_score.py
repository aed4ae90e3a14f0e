"""Tests of scoring one scan: result, quality flags and refusals. All scans but those of `real_data` are synthetic."""

import copy
import gzip
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset

from models.calibration import Platt
from models.compute import Compute
from models.familiarity import APPEARANCE_SIZE, Familiarity
from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from models.reasons import NOT_RELEASED
from models.refusal import Refusal
from models.release import Release, save_release
from models.saliency import METHOD
from pipeline.cohort.dataset import Example, Examples
from pipeline.cohort.tensor_files import save_tensor
from pipeline.imaging.discovery import find_series
from pipeline.imaging.phantom_marker import mark
from pipeline.imaging.series_reader import read_series
from pipeline.preprocessing import external_lungs
from pipeline.preprocessing.lungs import find_lungs
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring import quality_checks
from pipeline.scoring.html_report import write_report
from pipeline.scoring.score import ALL_LOW, NOTHING_RAISES, Score, age_band, explained_label, score, score_scan
from pipeline.scoring.single_scan import read_one
from pipeline.training.train import predict
from tests.helpers import descriptions, volume_images
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import PATIENT_ID, SERIES_UID, body, ct_slice, save, write_series
from tests.helpers.enhanced import enhanced, legacy_converted, save_frames, single_frames
from tests.helpers.fake_gpu import GPU, fake_gpu

SPACING_MM = (5.0, 4.0, 4.0)
AS_IT_IS = dict.fromkeys(LABELS, descriptions.AS_IT_IS)
AWKWARD = {
    "cornerstone-chest-slice": "E_MIXED_PATIENT",
    "dcm_qa_ct": "E_MIXED_PATIENT",
    "dcm_qa_ct/GE_gantry_tilt_variable_spacing": "E_TOO_FEW",
    "dcm_qa_ct/Philips_localizer": "E_LOCALIZER",
    "dicom2nifti-failing/gantrytilting": "E_TOO_FEW",
    "dicom2nifti-failing/notavolume": "E_DUPLICATE_SLICE",
    "dicom2nifti-failing/sliceincrement": "E_MIXED_SERIES",
    "dicom2nifti-failing/sliceincrement/001": "E_SLICE_GAP",
    "dicom2nifti-failing/sliceincrement/002": "E_SLICE_GAP",
    "lungmask": "E_TOO_FEW",
    "pydicom-data": "E_MIXED_PATIENT",
}


def chest(*, above_mm: float = 40.0, below_mm: float = 40.0, lung_hu: float = -850.0) -> np.ndarray:
    """A synthetic chest: two ellipsoidal lungs, 180 mm long, joined by a trachea that leaves through the neck.

    `above_mm`, `below_mm`: extent of tissue beyond the lungs; a negative value cuts the lungs off.
    The shape is (slices, rows, columns).
    """
    z = np.arange(-90.0 - below_mm, 90.0 + above_mm, SPACING_MM[0])[:, None, None]
    y = (np.arange(60) - 29.5)[None, :, None] * SPACING_MM[1]
    x = (np.arange(84) - 41.5)[None, None, :] * SPACING_MM[2]
    hu = np.where((x / 150) ** 2 + (y / 105) ** 2 < 1, 40.0, -1000.0) + 0 * z
    for centre_mm in (-65.0, 65.0):
        hu[((x - centre_mm) / 52) ** 2 + (y / 70) ** 2 + (z / 90) ** 2 < 1] = lung_hu
    trachea = (np.hypot(x, y) < 9) & (z > -20) | (np.abs(x) < 40) & (np.abs(y) < 6) & (np.abs(z + 20) < 6)
    hu[trachea] = -1000.0
    return hu


@pytest.fixture(scope="module")
def make_release(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Release]:
    """Make releases of one network with random weights, described as trained on patients."""
    network = build_network(NetworkSettings(), seed=3)

    def make(
        *,
        calibration: Mapping[str, Platt] = AS_IT_IS,
        preprocessing: Mapping[str, object] | None = None,
        **changes: object,
    ) -> Release:
        settings = Preprocessing().model_dump(mode="json") | dict(preprocessing or {})
        fields = {"trained_on_synthetic_data": False, **changes}
        described = description(calibration=dict(calibration), preprocessing=settings, **fields)
        return save_release(tmp_path_factory.mktemp("release"), network, described)

    return make


@pytest.fixture(scope="module")
def release(make_release: Callable[..., Release]) -> Release:
    return make_release()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One complete synthetic chest. Tests must not change this folder."""
    path = tmp_path_factory.mktemp("SECRET-PLACE")
    write_series(path, chest(), spacing_mm=SPACING_MM)
    return path


@pytest.fixture(scope="module")
def scored(folder: Path, release: Release) -> Score:
    return score(folder, release)


def refused(source: Path, release: Release, **options: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        score(source, release, **options)
    assert PATIENT_ID not in str(caught.value)
    return caught.value


def flags(scored: Score) -> dict[str, str]:
    return {check.name: check.reason.code for check in scored.checks if check.reason}


def values(scored: Score) -> dict[str, float | str]:
    return {check.name: check.value for check in scored.checks}


def edited(**attributes: object) -> Callable[[Dataset, int], None]:
    def edit(ds: Dataset, _: int) -> None:
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)

    return edit


def test_probabilities_match_those_of_the_evaluation(
    folder: Path, scored: Score, release: Release, tmp_path: Path
) -> None:
    (series,), _ = find_series(folder)
    prepared = prepare(read_series(series), Preprocessing())
    save_tensor(tmp_path, "tensor.npy", prepared.tensor)
    logits = predict(
        release.network, Examples([Example(tmp_path / "tensor.npy", series.age_years, series.sex, None, None)])
    )
    expected = dict(zip(LABELS, 1 / (1 + np.exp(-logits[0])), strict=True))
    assert scored.probabilities == pytest.approx(expected, abs=5e-3)  # `predict` may compute in bfloat16
    assert scored.prepared.digest == prepared.digest


def test_score_is_in_float32_whatever_the_precision(folder: Path, scored: Score, release: Release) -> None:
    again = score_scan(read_one(folder), release, compute=Compute(precision="fp16"))
    assert again.probabilities == scored.probabilities
    np.testing.assert_array_equal(again.saliency, scored.saliency)


def test_score_can_be_computed_on_a_gpu(folder: Path, release: Release) -> None:
    """This GPU has no values and returns zeros: a logit of 0 is a probability of one half."""
    moved = replace(release, network=copy.deepcopy(release.network))  # its weights return as zeros too
    scan = read_one(folder)
    with fake_gpu() as gpu:
        found = score_scan(scan, moved, compute=GPU)
    assert gpu.computed > 100
    assert found.probabilities == pytest.approx(dict.fromkeys(LABELS, 0.5))
    assert {weight.device.type for weight in moved.network.parameters()} == {"cpu"}


def test_each_label_has_its_own_calibration(folder: Path, scored: Score, make_release: Callable[..., Release]) -> None:
    shifted = score(folder, make_release(calibration={**AS_IT_IS, "severe": Platt(slope=1.0, intercept=-2.0)}))
    before, after = scored.probabilities, shifted.probabilities
    assert after["pcr_positive"] == before["pcr_positive"]
    assert np.log(after["severe"] / (1 - after["severe"])) == pytest.approx(
        np.log(before["severe"] / (1 - before["severe"])) - 2.0
    )


@pytest.mark.parametrize("attributes", [{"PatientAge": "085Y"}, {"PatientSex": "M"}], ids=str)
def test_age_and_sex_reach_the_model(
    attributes: dict[str, object], scored: Score, release: Release, tmp_path: Path
) -> None:
    write_series(tmp_path, chest(), spacing_mm=SPACING_MM, edit=edited(**attributes))
    other = score(tmp_path, release)
    assert other.hu_sha256 == scored.hu_sha256
    assert other.probabilities != scored.probabilities


def test_preprocessing_follows_the_release(folder: Path, make_release: Callable[..., Release]) -> None:
    assert score(folder, make_release(preprocessing={"shape": (20, 28, 24)})).prepared.tensor.shape == (
        2,
        20,
        28,
        24,
    )


def test_zip_and_different_file_order_give_the_same_score(
    folder: Path, scored: Score, release: Release, tmp_path: Path
) -> None:
    files = sorted(folder.iterdir())
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for number, file in enumerate(reversed(files)):
            archive.write(file, f"{number}.dcm")
    for source in (tmp_path / "scan.zip", files[::-1]):
        other = score(source, release)
        assert (other.hu_sha256, other.probabilities) == (scored.hu_sha256, scored.probabilities)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.mha"])
def test_volume_file_gives_the_same_hu_values_without_age_and_sex(
    name: str, scored: Score, release: Release, tmp_path: Path
) -> None:
    path = volume_images.save(volume_images.image(chest(), spacing_mm=SPACING_MM), tmp_path / "CANARY" / name)
    for source in (path, path.parent):
        other = score(source, release)
        assert other.hu_sha256 == scored.hu_sha256
        assert flags(other) == {"age": "W_AGE_MISSING", "sex": "W_SEX_MISSING"}
        assert "CANARY" not in json.dumps(other.to_json())


def test_age_and_sex_are_read_from_a_metaimage(scored: Score, release: Release, tmp_path: Path) -> None:
    made = volume_images.image(chest(), spacing_mm=SPACING_MM, PatientAge="063Y", PatientSex="F")
    told = score(volume_images.save(made, tmp_path / "scan.mha"), release)
    assert told.probabilities == pytest.approx(scored.probabilities)
    assert told.age_band == "60-64"


def test_two_volume_files_are_refused_as_two_patients(release: Release, tmp_path: Path) -> None:
    for name in ("scan.nii.gz", "mask.nii.gz"):
        volume_images.save(volume_images.image(chest(), spacing_mm=SPACING_MM), tmp_path / name)
    assert refused(tmp_path, release).code == "E_MIXED_PATIENT"


def test_complete_chest_is_not_flagged(scored: Score) -> None:
    assert flags(scored) == {}
    assert values(scored)["slices"] == 52
    assert values(scored)["slice_distance"] == 5.0
    assert values(scored)["pixel_spacing"] == 4.0
    assert values(scored)["lungs"] == pytest.approx(2 * 4 / 3 * np.pi * 5.2 * 7.0 * 9.0, rel=0.15)
    assert values(scored)["lungs_cut"] == "no"  # although the trachea reaches the last slice


def test_lungs_of_the_segmenter_that_the_threshold_does_not_find_are_flagged(
    folder: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower_half(*given: Any) -> NDArray[np.bool_]:
        lungs = find_lungs(*given)
        lungs[len(lungs) // 2 :] = False
        return lungs

    monkeypatch.setattr(external_lungs, "find_lungs", lower_half)
    assert flags(score(folder, release)) == {"lungs_agree": "W_LUNGS_UNSURE"}


@pytest.mark.parametrize(("share", "expected"), [(0.021, {"unsure_border": "W_BORDER_UNSURE"}), (0.019, {})])
def test_dense_tissue_at_an_uncertain_border_is_flagged(
    share: float, expected: dict[str, str], folder: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_checks, "unsure_share", lambda *given: share)
    assert flags(score(folder, release)) == expected


def test_json_contains_which_operating_points_are_met(scored: Score) -> None:
    p = scored.probabilities["severe"]
    for points, met in (
        ({"rule_out": p + 0.1, "rule_in": p + 0.2}, {"rule_out": True, "rule_in": False}),
        ({"rule_out": p - 0.1, "rule_in": p}, {"rule_out": False, "rule_in": True}),
        ({"rule_out": p}, {"rule_out": False}),
    ):
        model = description(operating_points={"severe": points}, trained_on_synthetic_data=False)
        said = replace(scored, model=model).to_json()["operating_points"]
        assert {point: found["met"] for point, found in said["severe"].items()} == met
        assert {point: found["threshold"] for point, found in said["severe"].items()} == points


@pytest.mark.parametrize(
    ("points", "p", "level"),
    [
        ({"rule_out": 0.2, "rule_in": 0.6}, 0.19, "low"),
        ({"rule_out": 0.2, "rule_in": 0.6}, 0.2, "intermediate"),
        ({"rule_out": 0.2, "rule_in": 0.6}, 0.6, "high"),
        ({"rule_out": 0.6, "rule_in": 0.2}, 0.4, "intermediate"),  # the thresholds overlap
        ({"rule_out": 0.2}, 0.1, None),
        ({}, 0.9, None),
    ],
)
def test_level_follows_from_the_operating_points(
    points: dict[str, float], p: float, level: str | None, scored: Score
) -> None:
    model = description(operating_points={"severe": points} if points else {}, trained_on_synthetic_data=False)
    told = replace(scored, probabilities={"severe": p, "pcr_positive": 0.5}, model=model)
    assert told.to_json()["level"] == {"severe": level, "pcr_positive": None}


@pytest.mark.parametrize(
    ("severe", "pcr_positive", "explained"),
    [(0.1, 0.9, "severe"), (0.09, 0.9, "pcr_positive"), (0.09, 0.29, None), (0.5, 0.01, "severe")],
)
def test_saliency_explains_the_first_label_that_is_not_low(
    severe: float, pcr_positive: float, explained: str | None
) -> None:
    model = description(operating_points={"pcr_positive": {"rule_out": 0.3}})
    assert explained_label({"severe": severe, "pcr_positive": pcr_positive}, model, {}) == explained


def test_saliency_map_is_reported_with_its_label_or_a_reason_why_not(
    folder: Path, scored: Score, make_release: Callable[..., Release]
) -> None:
    said = scored.to_json()["saliency"]
    assert scored.saliency is not None
    assert scored.saliency.shape == scored.prepared.tensor.shape[1:]
    assert scored.saliency.max() == 1 and scored.saliency.min() == 0
    assert not scored.saliency[scored.prepared.tensor[1] <= 0.5].any()
    assert said == {"shown": True, "label": "severe", "method": METHOD, "why_not": None}
    low = score(folder, make_release(calibration=dict.fromkeys(LABELS, Platt(intercept=-9.0))))
    assert low.saliency is None
    assert low.to_json()["saliency"] == {"shown": False, "label": None, "method": None, "why_not": ALL_LOW}
    nothing = replace(scored, saliency=None).to_json()["saliency"]
    assert (nothing["shown"], nothing["why_not"]) == (False, NOTHING_RAISES)


def test_confidence_band_comes_from_the_calibration(folder: Path, make_release: Callable[..., Release]) -> None:
    known = Platt(slope=1.0, intercept=0.5, covariance=(0.04, 0.0, 0.09))
    told = score(folder, make_release(calibration={**AS_IT_IS, "severe": known}))
    p = told.probabilities["severe"]
    assert set(told.intervals) == {"severe"}
    assert told.to_json()["interval"]["severe"] == pytest.approx(known.band(np.log(p / (1 - p)) - 0.5), abs=1e-6)


LOW_FOR_ALL = {label: {"rule_out": 0.9999, "rule_in": 0.99999} for label in LABELS}


def scored_by(synthetic: bool, folder: Path, make_release: Callable[..., Release], **changes: object) -> Score:
    release = make_release(trained_on_synthetic_data=synthetic, operating_points=LOW_FOR_ALL, **changes)
    return score(folder, release)


def test_phantom_model_gives_no_level_for_a_patient_scan(folder: Path, make_release: Callable[..., Release]) -> None:
    told = scored_by(True, folder, make_release)
    said = told.to_json()
    assert said["withheld"] == "This model was trained on synthetic data. Its result is not valid for patients."
    assert said["input"]["is_phantom"] is False
    assert said["level"] == dict.fromkeys(LABELS)
    assert said["operating_points"] == told.operating_points == {}
    assert said["probability"] == told.probabilities
    assert "low" not in str(said["saliency"]["why_not"])


def test_phantom_model_gives_levels_for_a_phantom_scan(make_release: Callable[..., Release], tmp_path: Path) -> None:
    write_series(tmp_path, chest(), spacing_mm=SPACING_MM, edit=lambda image, _: mark(image))
    said = scored_by(True, tmp_path, make_release).to_json()
    assert (said["withheld"], said["input"]["is_phantom"]) == (None, True)
    assert said["level"] == dict.fromkeys(LABELS, "low")


def test_phantom_marker_does_not_change_the_score_of_a_patient_model(
    folder: Path, make_release: Callable[..., Release], tmp_path: Path
) -> None:
    write_series(tmp_path, chest(), spacing_mm=SPACING_MM, edit=lambda image, _: mark(image))
    marked, plain = (scored_by(False, source, make_release).to_json() for source in (tmp_path, folder))
    assert marked["input"].pop("is_phantom") is not plain["input"].pop("is_phantom")
    for each in (marked, plain):
        del each["timing_seconds"], each["scored_at"], each["model"]["sha256"]
    assert marked == plain
    assert marked["level"] == dict.fromkeys(LABELS, "low")


def test_level_is_uncertain_if_the_band_crosses_a_threshold(scored: Score) -> None:
    points = {"severe": {"rule_out": 0.46, "rule_in": 0.7}}
    told = replace(
        scored,
        probabilities={"severe": 0.38, "pcr_positive": 0.01},
        model=description(operating_points=points, trained_on_synthetic_data=False),
        intervals={"severe": (0.19, 0.62)},
        saliency=None,
    )
    said = told.to_json()
    assert said["level"] == {"severe": "uncertain", "pcr_positive": None}
    assert {point: each["met"] for point, each in said["operating_points"]["severe"].items()} == {
        "rule_out": None,
        "rule_in": False,
    }
    assert told.explained == "severe"  # the level is not low
    assert said["saliency"]["why_not"] == NOTHING_RAISES
    assert replace(told, intervals={}).to_json()["level"]["severe"] == "low"


def test_scan_unlike_the_training_data_gets_no_score(folder: Path, make_release: Callable[..., Release]) -> None:
    known = Familiarity(mean=(0.0,) * APPEARANCE_SIZE, variance=(1.0,) * APPEARANCE_SIZE, limit=100.0, sites=3)
    near = score(folder, make_release(familiarity=known)).to_json()["familiarity"]
    assert near["limit"] == 100.0 and 0 < near["distance"] < 100
    refusal = refused(folder, make_release(familiarity=known.model_copy(update={"limit": near["distance"] / 2})))
    assert refusal.code == "E_UNFAMILIAR"


def with_a_lesion() -> np.ndarray:
    """A synthetic chest with one lesion, near the base of the right lung."""
    hu = chest()
    z = np.arange(len(hu))[:, None, None] * SPACING_MM[0] - 130.0
    y, x = (np.arange(60)[:, None] - 29.5) * SPACING_MM[1], (np.arange(84)[None, :] - 41.5) * SPACING_MM[2]
    hu[(z + 30) ** 2 + (y - 10) ** 2 + (x + 65) ** 2 < 25**2] = -550.0
    return hu


@pytest.fixture(scope="module")
def sick(release: Release, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Score]:
    """A scan with a lesion, without age and sex, because a NIfTI file does not contain them."""
    path = tmp_path_factory.mktemp("sick")
    write_series(path, with_a_lesion(), spacing_mm=SPACING_MM, edit=edited(PatientAge="", PatientSex=""))
    return path, score(path, release)


FORMS = (
    "zip",
    "scan.nii.gz",
    "scan.mha",
    "stack from head to feet",
    "columns to the right",
    "rows to the front",
    "prone",
)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_same_scan_in_another_form_gives_the_same_probabilities(
    form: str, sick: tuple[Path, Score], release: Release, tmp_path: Path
) -> None:
    """The probabilities are the same, and the lesion stays in the right lung."""
    folder, first = sick
    other = score(in_form(form, folder, tmp_path), release)
    assert other.probabilities == pytest.approx(first.probabilities, abs=0.01)
    for each in (first, other):
        lungs = each.to_json()["lungs"]["regions"]
        assert lungs["right"]["whole"]["ground_glass"] > 0.04  # 58 mL of 1500
        assert lungs["left"]["lower"]["ground_glass"] < 0.02
        assert each.volume.affine[0, 2] < 0, "columns run to the patient's left, against the R axis of RAS"
        assert each.volume.hu[20, 32, 25] == -550.0
        assert each.volume.hu[20, 32, -26] == -850.0


def in_form(form: str, folder: Path, out: Path) -> Path:
    hu = with_a_lesion()
    if form == "zip":
        with zipfile.ZipFile(out / "scan.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        return out / "scan.zip"
    if form.startswith("scan."):
        return volume_images.save(volume_images.image(hu, spacing_mm=SPACING_MM), out / form)
    back, left = ((n - 1) * mm for n, mm in zip(hu.shape[1:], SPACING_MM[1:], strict=True))
    up = (len(hu) - 1) * SPACING_MM[0]
    turned = {
        "stack from head to feet": (hu[::-1], (0, 0, up), (1, 0, 0, 0, 1, 0), -1),
        "columns to the right": (hu[:, :, ::-1], (left, 0, 0), (-1, 0, 0, 0, 1, 0), 1),
        "rows to the front": (hu[:, ::-1], (0, back, 0), (1, 0, 0, 0, -1, 0), 1),
        "prone": (hu[:, ::-1, ::-1], (left, back, 0), (-1, 0, 0, 0, -1, 0), 1),
    }
    pixels, origin_mm, orientation, step = turned[form]
    write_series(
        out,
        pixels,
        spacing_mm=SPACING_MM,
        origin_mm=origin_mm,
        orientation=orientation,
        step_mm=(0, 0, step * SPACING_MM[0]),
        edit=edited(PatientAge="", PatientSex=""),
    )
    return out


def test_json_is_complete_and_contains_no_patient_data(scored: Score, release: Release, folder: Path) -> None:
    said = scored.to_json()
    written = json.dumps(said, allow_nan=False)
    assert said["notice"] == "Research use only. Not a medical device."
    assert said["trained_on_synthetic_data"] is False
    assert said["withheld"] is None
    assert said["probability"] == scored.probabilities
    assert all(0 < p < 1 for p in said["probability"].values())
    assert said["interval"] is None
    assert said["familiarity"] is None
    assert set(said["level"]) == set(LABELS)
    assert said["lungs"] == scored.burden.to_json()
    assert said["model"] == {
        "sha256": release.sha256,
        "signature": "signature not checked",
        "study": "trial",
        "rounds": 7,
        "sites": 3,
        "doubts": [NOT_RELEASED.says],
        "released_because": "",
    }
    assert said["operating_points"] == {}
    assert said["input"]["age_band"] == "60-64"
    assert said["input"]["tensor_sha256"] == scored.prepared.digest
    assert len(said["input"]["geometry_sha256"]) == 64
    seconds = said["timing_seconds"]
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=3e-3)
    for secret in ("CANARY", PATIENT_ID, SERIES_UID, "2.25.", "20210304", "063Y", "63.0", folder.name):
        assert secret not in written
        assert secret not in repr(scored)


@pytest.mark.parametrize(
    ("attributes", "name", "code"),
    [
        ({"PatientAge": ""}, "age", "W_AGE_MISSING"),
        ({"PatientAge": "017Y"}, "age", "W_NOT_ADULT"),
        ({"PatientSex": "O"}, "sex", "W_SEX_MISSING"),
        ({"ContrastBolusAgent": "Iodine"}, "reader", "W_CONTRAST"),
        ({"PixelSpacing": [4.1, 4.1]}, "pixel_spacing", "W_COARSE"),
    ],
)
def test_header_values_are_flagged(
    attributes: dict[str, object], name: str, code: str, release: Release, tmp_path: Path
) -> None:
    write_series(tmp_path, chest(), spacing_mm=SPACING_MM, edit=edited(**attributes))
    assert flags(score(tmp_path, release)) == {name: code}


@pytest.mark.parametrize(("cut", "value"), [({"above_mm": -5.0}, "highest"), ({"below_mm": -15.0}, "lowest")], ids=str)
def test_lungs_that_are_cut_off_are_flagged(
    cut: dict[str, float], value: str, release: Release, tmp_path: Path
) -> None:
    write_series(tmp_path, chest(**cut), spacing_mm=SPACING_MM)
    scored = score(tmp_path, release)
    assert flags(scored) == {"lungs_cut": "W_LUNGS_CUT"}
    assert values(scored)["lungs_cut"] == value


@pytest.mark.parametrize(("lung_hu", "flagged"), [(-700.0, True), (-850.0, False), (-955.0, False)])
def test_lungs_of_unusual_density_are_flagged(lung_hu: float, flagged: bool, release: Release, tmp_path: Path) -> None:
    write_series(tmp_path, chest(lung_hu=lung_hu), spacing_mm=SPACING_MM)
    assert ("hu_shift" in flags(score(tmp_path, release))) is flagged


@pytest.mark.parametrize(
    ("cut", "expected"), [({"above_mm": -30.0}, "E_LUNGS_CUT"), ({"lung_hu": -970.0}, "E_NOT_LUNG")]
)
def test_incomplete_chest_gets_no_score(cut: dict[str, float], expected: str, release: Release, tmp_path: Path) -> None:
    write_series(tmp_path, chest(**cut), spacing_mm=SPACING_MM)
    assert refused(tmp_path, release).code == expected


def test_single_lung_and_metal_are_flagged(release: Release, tmp_path: Path) -> None:
    hu = chest()
    # Denser than solid lung: at 40 HU, the segmenter takes a part of it for a lung that is consolidated as a whole.
    hu[:, :, 46:] = np.where(hu[:, :, 46:] < -800, np.where(hu[:, :, 46:] > -900, 100.0, -1000.0), hu[:, :, 46:])
    hu[20:24, 28:32, 39:43] = 3000.0  # 5 mL
    write_series(tmp_path, hu, spacing_mm=SPACING_MM)
    found = flags(score(tmp_path, release))
    assert (found["smaller_lung"], found["metal"]) == ("W_ONE_LUNG", "W_METAL")


def test_unreadable_file_is_flagged(folder: Path, release: Release, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "051.dcm").write_bytes(b"torn")  # the last slice, so that no gap in the geometry is detected
    assert flags(score(tmp_path, release)) == {"unreadable_files": "W_FILES_UNREADABLE"}


def test_report_shows_every_flag(release: Release, tmp_path: Path) -> None:
    edit = edited(PatientAge="", PatientSex="", ContrastBolusAgent="Iodine")
    write_series(tmp_path / "scan", chest(above_mm=-5.0), spacing_mm=SPACING_MM, edit=edit)
    scored = score(tmp_path / "scan", release)
    page = write_report(scored, tmp_path / "out").read_text()
    assert len(flags(scored)) == 4
    for code in flags(scored).values():
        assert code in page


def test_two_patients_are_never_scored(folder: Path, release: Release, tmp_path: Path) -> None:
    write_series(tmp_path, chest(), spacing_mm=SPACING_MM, edit=edited(PatientID="CANARY-0043"))
    with pytest.raises(Refusal) as caught:
        score([folder, tmp_path], release)
    assert caught.value.code == "E_MIXED_PATIENT"


def test_of_two_series_one_must_be_chosen(folder: Path, scored: Score, release: Release, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    edit = edited(SeriesInstanceUID="2.25.99", SOPInstanceUID="2.25.98")
    write_series(tmp_path / "b", chest(lung_hu=-800.0), spacing_mm=SPACING_MM, edit=edit)
    refusal = refused(tmp_path, release)
    assert refusal.code == "E_MIXED_SERIES"
    assert "2 CT series" in refusal.says
    assert refused(tmp_path, release, series_uid="2.25.1").code == "E_UNKNOWN_SERIES"
    chosen = score(tmp_path, release, series_uid=SERIES_UID)
    assert chosen.hu_sha256 == scored.hu_sha256
    assert values(chosen)["other_series"] == 1


def test_copies_under_other_uids_are_one_scan(folder: Path, scored: Score, release: Release, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    write_series(tmp_path / "b", chest(), spacing_mm=SPACING_MM, edit=edited(SeriesInstanceUID="2.25.99"))
    together = score(tmp_path, release)
    assert together.hu_sha256 == scored.hu_sha256
    assert {check.name: check.reason and check.reason.code for check in together.checks}["other_series"] == (
        "W_SERIES_TWICE"
    )


@pytest.mark.parametrize("twice", ["a", "b"])
def test_scan_that_was_exported_twice_is_one_scan_with_its_copy(
    folder: Path, scored: Score, release: Release, tmp_path: Path, twice: str
) -> None:
    shutil.copytree(folder, tmp_path / "a")
    write_series(tmp_path / "b", chest(), spacing_mm=SPACING_MM, edit=edited(SeriesInstanceUID="2.25.99"))
    shutil.copytree(tmp_path / twice, tmp_path / "again")
    together = score(tmp_path, release)
    assert together.hu_sha256 == scored.hu_sha256
    assert flags(together)["other_series"] == "W_SERIES_TWICE"


def test_series_with_fewer_images_is_no_copy(folder: Path, release: Release, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    write_series(tmp_path / "b", chest()[:-1], spacing_mm=SPACING_MM, edit=edited(SeriesInstanceUID="2.25.99"))
    assert refused(tmp_path, release).code == "E_MIXED_SERIES"


def test_multi_frame_image_has_the_score_of_its_single_frames(
    folder: Path, scored: Score, release: Release, tmp_path: Path
) -> None:
    images = single_frames(sorted(folder.glob("*.dcm")))
    for name, image in (("legacy", legacy_converted(images)), ("enhanced", enhanced(images))):
        save_frames(image, tmp_path / name / "1.dcm")
        again = score(tmp_path / name / "1.dcm", release)
        assert again.hu_sha256 == scored.hu_sha256
        assert again.probabilities == scored.probabilities


def test_a_scout_and_a_report_beside_the_scan_are_left_out(
    folder: Path, scored: Score, release: Release, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "scan")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "2.25.7"}
    save(ct_slice(body()[0], position_mm=(0, 0, 0), **scout), tmp_path / "scout.dcm")
    report = {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "SeriesInstanceUID": "2.25.8"}
    save(ct_slice(body()[0], position_mm=(0, 0, 0), **report), tmp_path / "report.dcm")
    together = score(tmp_path, release)
    assert together.probabilities == scored.probabilities
    assert values(together)["other_series"] == 2


def test_broken_series_still_counts_as_a_second_series(folder: Path, release: Release, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    edit = edited(SeriesInstanceUID="2.25.99", RescaleSlope=None)
    write_series(tmp_path / "b", chest(), spacing_mm=SPACING_MM, edit=edit)
    assert refused(tmp_path, release).code == "E_MIXED_SERIES"


def test_what_is_no_scan_is_refused(release: Release, tmp_path: Path) -> None:
    empty, torn, scout, phantom = (tmp_path / name for name in ("empty", "torn", "scout", "phantom"))
    empty.mkdir()
    torn.mkdir()
    (torn / "a.dcm").write_bytes(b"not DICOM")
    save(
        ct_slice(body()[0], position_mm=(0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        scout / "a.dcm",
    )
    write_series(phantom, body())
    codes = [refused(source, release).code for source in (empty, torn, scout, phantom, tmp_path / "nowhere")]
    assert codes == ["E_NO_IMAGES", "E_NOT_DICOM", "E_LOCALIZER", "E_FIELD_OF_VIEW", "E_NO_IMAGES"]


def test_release_with_an_invalid_description_is_refused(folder: Path, make_release: Callable[..., Release]) -> None:
    for wrong in ({"calibration": {"other": Platt()}}, {"preprocessing": {"shape": "large"}}):
        assert refused(folder, make_release(**wrong)).code == "E_MODEL_FORMAT"


def test_model_that_outputs_nan_gives_no_score(folder: Path, release: Release) -> None:
    network = build_network(NetworkSettings(), seed=3)
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    assert refused(folder, Release(network, release.description, release.sha256)).code == "E_NO_PROBABILITY"


@pytest.mark.parametrize(
    ("years", "band"),
    [(None, None), (0.5, "0-4"), (59.9, "55-59"), (60.0, "60-64"), (89.0, "85-89"), (90.0, "90+"), (104.0, "90+")],
)
def test_age_band(years: float | None, band: str | None) -> None:
    assert age_band(years) == band


def test_real_thorax_is_scored_and_its_lungs_match_the_label_map(real_data: Path, release: Release) -> None:
    """The segmented lungs overlap with those of the data set's own label map (Dice over 0.96)."""
    scored = score(real_data / "real-thorax-64" / "ct-64Dicom", release)
    assert values(scored)["slices"] == 79
    assert flags(scored) == {"pixel_spacing": "W_COARSE", "age": "W_AGE_MISSING"}
    packed = (real_data / "real-thorax-64" / "lm-64.nrrd").read_bytes().split(b"\n\n", 1)[1]
    # The low byte is the lung region. The label map is on the scan's grid, with slices starting at the feet.
    labelled = np.frombuffer(gzip.decompress(packed), dtype="<u2").reshape(79, 64, 64) & 255 > 0
    shape = scored.prepared.lungs.shape
    nearest = np.ix_(*((np.arange(n) + 0.5) * old // n for n, old in zip(shape, labelled.shape, strict=True)))
    truth = labelled[tuple(axis.astype(int) for axis in nearest)]
    found = scored.prepared.lungs
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.96


def test_real_abdomen_is_refused(real_data: Path, release: Release) -> None:
    refusal = refused(real_data / "abdomen-ct" / "example_ct_dicom", release)
    assert refusal.code in {"E_NO_LUNGS", "E_NOT_A_WHOLE_CHEST"}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_dicom_is_refused(name: str, real_data: Path, release: Release) -> None:
    assert refused(real_data / "awkward-dicom" / name, release).code == AWKWARD[name]
