"""The files that `fedthorax score --out` writes, with a score and after a refusal."""

import errno
import json
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from federation.cli.scoring import score_series
from models.familiarity import APPEARANCE_SIZE, Familiarity
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import save_release
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.chests import THICK, write_chest
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import PATIENT_ID
from tests.helpers.lung_masks import write_nifti
from tests.helpers.phantoms import thorax


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "chest.nii.gz"
    write_chest(path)
    return path


def release(folder: Path, *, limit: float | None = None) -> Path:
    known = limit and Familiarity(
        mean=(0.0,) * APPEARANCE_SIZE, variance=(1.0,) * APPEARANCE_SIZE, limit=limit, sites=3
    )
    save_release(folder, build_network(NetworkSettings(), seed=1), description(familiarity=known or None))
    return folder


@pytest.mark.slow
def test_score_is_written_with_label_maps(chest: Path, tmp_path: Path) -> None:
    score_series([chest], model=release(tmp_path / "model"), out=tmp_path / "out", as_json=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"score.json", "score.html", "lungs.nii.gz", "opacities.nii.gz"}
    lungs = nib.load(tmp_path / "out" / "lungs.nii.gz")
    assert sorted(lungs.shape) == sorted(THICK.shape)
    assert set(np.unique(np.asarray(lungs.dataobj))) == {0, 1, 2}
    told = json.loads((tmp_path / "out" / "score.json").read_text())["lungs"]["regions"]["both"]["whole"]["ml"]
    voxel_ml = abs(np.linalg.det(lungs.affine[:3, :3])) / 1000
    assert np.count_nonzero(lungs.dataobj) * voxel_ml == pytest.approx(told, rel=0.03)


@pytest.mark.slow
def test_lungs_are_measured_even_if_the_score_is_refused(chest: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        score_series([chest], model=release(tmp_path / "model", limit=1e-3), out=tmp_path / "out", as_json=False)
    assert refused.value.code == "E_UNFAMILIAR"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"lungs.json", "lungs.html", "lungs.nii.gz", "opacities.nii.gz"}
    page = (tmp_path / "out" / "lungs.html").read_text()
    assert "(E_UNFAMILIAR)" in page and refused.value.remedy in unescape(page)
    assert page.count("<figure") == 3 and "Upper third" in page
    assert f"Made on {datetime.now().astimezone():%Y-}" in page
    assert str(chest) not in page and "http://" not in page and "https://" not in page
    regions = json.loads((tmp_path / "out" / "lungs.json").read_text())["regions"]
    assert regions["both"]["whole"]["ml"] > 1500


def test_nothing_is_written_for_a_volume_without_a_chest(tmp_path: Path) -> None:
    water = tmp_path / "water.nii.gz"
    nib.save(nib.Nifti1Image(np.full((60, 60, 40), 40, np.int16), np.diag([4.0, 4.0, 5.0, 1.0])), water)
    with pytest.raises(Refusal):
        score_series([water], model=release(tmp_path / "model"), out=tmp_path / "out", as_json=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_lungs_without_a_score_have_the_flags_of_their_checks(
    chest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slices of 8 mm, and a mask that is not where the lungs are: a score would show both flags."""
    model, shifted = release(tmp_path / "model", limit=1e-3), mask(tmp_path, shift_mm=20)
    with pytest.raises(Refusal, match="E_UNFAMILIAR"):
        score_series([chest], model=model, lungs=shifted, out=tmp_path / "out", as_json=False)
    expected = {"W_THICK", "W_LUNGS_UNSURE"}
    told = json.loads((tmp_path / "out" / "lungs.json").read_text())["quality"]
    assert expected <= {check["code"] for check in told}
    assert all({"name", "value", "unit", "verdict", "says", "remedy"} <= check.keys() for check in told)
    page, said = unescape((tmp_path / "out" / "lungs.html").read_text()), capsys.readouterr().err
    for check in told:
        if check["code"]:
            for shown in (page, said):
                assert check["says"] in shown and check["remedy"] in shown and f"({check['code']})" in shown
    assert "Agreement of two methods" in page and "Lung volume" in page


# --- the folder of the answer ---------------------------------------------------------------------------------

SCORED = {"score.json", "score.html", "lungs.nii.gz", "opacities.nii.gz"}
UNSCORED = {"lungs.json", "lungs.html", "lungs.nii.gz", "opacities.nii.gz"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_answer_never_replaces_the_scan_or_its_mask(chest: Path, tmp_path: Path) -> None:
    """The codes come before anything is read: there is no model."""
    out = tmp_path / "out"
    out.mkdir()
    ours = out / "lungs.nii.gz"
    ours.write_bytes(b"the lungs, corrected by hand")
    (tmp_path / "link").symlink_to(out)
    for into in (out, tmp_path / "link"):
        for series, lungs in (([chest], ours), ([ours], None)):
            with pytest.raises(Refusal, match="E_OUT_IS_INPUT"):
                score_series(series, model=tmp_path, lungs=lungs, out=into, as_json=True)
    assert names(out) == {"lungs.nii.gz"} and ours.read_bytes() == b"the lungs, corrected by hand"


def test_folder_holds_the_answer_of_one_scan(chest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, notes = tmp_path / "out", {"notes.txt"}
    trusting, doubting = release(tmp_path / "model"), release(tmp_path / "doubting", limit=1e-3)
    water = tmp_path / "water.nii.gz"
    nib.save(nib.Nifti1Image(np.full((60, 60, 40), 40, np.int16), np.diag([4.0, 4.0, 5.0, 1.0])), water)
    score_series([chest], model=trusting, out=out, as_json=False)
    (out / "notes.txt").write_text("ours")
    with pytest.raises(Refusal, match="E_UNFAMILIAR"):
        score_series([chest], model=doubting, out=out, as_json=False)
    assert names(out) == UNSCORED | notes
    score_series([chest], model=trusting, out=out, as_json=False)
    assert names(out) == SCORED | notes
    assert "were removed" not in capsys.readouterr().err
    with pytest.raises(Refusal):
        score_series([water], model=trusting, out=out, as_json=False)
    assert names(out) == notes and (out / "notes.txt").read_text() == "ours"
    assert "earlier answer were removed" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["model", "device"])
def test_answer_of_another_patient_does_not_stay_if_the_model_or_processor_cannot_be_used(
    chest: Path, tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (*SCORED, "notes.txt"):
        (out / name).write_text("of another patient")
    options = {"model": tmp_path / "no-model"} if wrong == "model" else {"model": tmp_path, "device": "cuda:99"}
    with pytest.raises(Refusal):
        score_series([chest], out=out, as_json=True, **options)
    assert names(out) == {"notes.txt"}
    assert "earlier answer were removed" in capsys.readouterr().err


@pytest.mark.parametrize("earlier", [[], ["score.html"]])
def test_only_files_that_may_be_there_are_reported_if_a_folder_cannot_be_used(
    chest: Path, tmp_path: Path, earlier: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pipeline.scoring.answer_folder.folder_in_turn", fail)
    for name in (*earlier, "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(Refusal, match="E_NO_MODEL"):
        score_series([chest], model=tmp_path / "no-model", out=tmp_path, as_json=True)
    assert ("earlier answer may still be in" in capsys.readouterr().err) == bool(earlier)


def test_failed_write_leaves_no_part_of_an_answer(chest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = release(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    for name in (*SCORED, "notes.txt"):
        (out / name).write_text("of another patient")

    def save(image: Any, path: Path) -> None:
        if path.name == "opacities.nii.gz":
            raise OSError("the disk is full")
        Path(path).write_bytes(b"lungs")

    monkeypatch.setattr(nib, "save", save)
    with pytest.raises(Refusal, match="E_REPORT_WRITE"):
        score_series([chest], model=model, out=out, as_json=True)
    assert names(out) == {"notes.txt"}


# --- with the hospital's own lung mask ----------------------------------------------------------------------


def mask(folder: Path, *, shift_mm: float = 0.0) -> Path:
    """Write the true lungs of the phantom in another orientation. The file name is a patient ID."""
    lungs = thorax(THICK).lungs
    sides = np.where(np.arange(THICK.shape[2]) < THICK.shape[2] / 2, 1, 2)
    up, back, left = THICK.spacing_mm
    affine = np.array([[0, 0, -left, 8 + shift_mm], [0, -back, 0, 4], [up, 0, 0, 100], [0, 0, 0, 1]])
    return write_nifti(folder / f"{PATIENT_ID}.nii.gz", (lungs * sides).astype(np.uint8), affine, "PIR")


def by_external_masks(folder: Path) -> Path:
    settings = Preprocessing(method=3).model_dump(mode="json")
    save_release(folder, build_network(NetworkSettings(), seed=1), description(preprocessing=settings))
    return folder


@pytest.mark.slow
def test_external_mask_determines_lung_measures_but_not_the_score(chest: Path, tmp_path: Path) -> None:
    model = release(tmp_path / "model")
    score_series([chest], model=model, out=tmp_path / "without", as_json=True)
    score_series([chest], model=model, lungs=mask(tmp_path), out=tmp_path / "with", as_json=True)
    before, after = (json.loads((tmp_path / name / "score.json").read_text()) for name in ("without", "with"))
    assert (before["lungs"]["lungs_from"], after["lungs"]["lungs_from"]) == ("segmenter", "external mask")
    assert before["probability"] == after["probability"]
    assert before["input"]["tensor_sha256"] == after["input"]["tensor_sha256"]
    true_ml = np.count_nonzero(thorax(THICK).lungs) * np.prod(THICK.spacing_mm) / 1000
    assert after["lungs"]["regions"]["both"]["whole"]["ml"] == pytest.approx(true_ml, rel=0.02)
    assert "external mask" in (tmp_path / "with" / "score.html").read_text()
    assert "external mask" not in (tmp_path / "without" / "score.html").read_text()
    assert PATIENT_ID not in "".join(path.read_text() for path in (tmp_path / "with").glob("score.*"))


def test_release_trained_with_masks_requires_a_mask(
    chest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = by_external_masks(tmp_path / "model")
    score_series([chest], model=model, lungs=mask(tmp_path), out=None, as_json=False)
    assert "Lungs: external mask" in capsys.readouterr().err
    with pytest.raises(Refusal) as refused:
        score_series([chest], model=model, out=tmp_path / "out", as_json=False)
    assert refused.value.code == "E_MASK_MISSING"
    assert json.loads((tmp_path / "out" / "lungs.json").read_text())["lungs_from"] == "segmenter"


def test_distant_mask_is_refused_and_shifted_mask_is_flagged(chest: Path, tmp_path: Path) -> None:
    model = release(tmp_path / "model")
    with pytest.raises(Refusal) as refused:
        score_series([chest], model=model, lungs=mask(tmp_path, shift_mm=300), out=tmp_path / "out", as_json=True)
    assert refused.value.code == "E_MASK_GRID"
    assert PATIENT_ID not in str(refused.value)
    assert not (tmp_path / "out").exists()
    score_series([chest], model=model, lungs=mask(tmp_path, shift_mm=40), out=tmp_path / "out", as_json=True)
    quality = json.loads((tmp_path / "out" / "score.json").read_text())["quality"]
    assert "W_LUNGS_UNSURE" in {check["code"] for check in quality}
