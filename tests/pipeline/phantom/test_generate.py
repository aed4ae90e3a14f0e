"""Tests of synthetic hospitals: the same seed writes the same bytes, valid DICOM files and a correct truth file."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from scipy.special import expit

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.defects import DEFECTS
from pipeline.phantom.generate import Order, make_hospitals, make_patient
from pipeline.phantom.hospitals import HOSPITALS, Hospital, hospital
from pipeline.phantom.lesions import add_lesions
from pipeline.phantom.patients import draw_patient, probability_severe
from pipeline.preprocessing.preprocess import orient, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records.laboratory import read_pcr
from pipeline.records.outcomes import read_outcomes
from pipeline.site.folder import init_site
from pipeline.system.codes import BY_CODE
from tests.helpers import phantoms

NAMES = [each.name for each in HOSPITALS]


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    """One patient in each of the four dialects, so that each transfer syntax is written."""
    first, again, other = (
        hashes(
            make_hospitals(tmp_path / name, patients=[1, 1, 1, 1], seed=seed, defects=False, anatomy="template")[
                0
            ].parent
        )
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again
    scans = {name for name in first if name.endswith(".dcm")}
    assert len(scans) == sum(each.scanner.grid.shape[0] for each in HOSPITALS)
    assert not any(first[name] == other[name] for name in scans)


@pytest.mark.usefixtures("in_this_process")
def test_folder_with_files_is_refused_and_kept(tmp_path: Path) -> None:
    """The names are those that a hospital's folder has."""
    real = tmp_path / "north" / "laboratory.csv"
    real.parent.mkdir()
    real.write_text("results of patients")
    with pytest.raises(Refusal, match="E_PHANTOM_FOLDER"):
        make_hospitals(tmp_path, patients=[1], seed=1, defects=False, anatomy="template")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [real]
    assert real.read_text() == "results of patients"


@pytest.mark.parametrize("out", ["file", "file/below", "link"])
@pytest.mark.usefixtures("in_this_process")
def test_file_instead_of_the_folder_is_refused_and_kept(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("something else")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(Refusal, match="E_PHANTOM_FOLDER"):
        make_hospitals(tmp_path / out, patients=[1], seed=1, defects=False, anatomy="template")
    assert (tmp_path / "file").read_text() == "something else"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_interrupted_hospitals_of_the_demo_are_completed(tmp_path: Path) -> None:
    """Only a caller that owns the folder asks for it."""
    (tmp_path / "north" / "ct").mkdir(parents=True)
    (folder,) = make_hospitals(tmp_path, patients=[1], seed=1, defects=False, anatomy="template", replaces=True)
    assert (folder / "truth.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_nothing_is_left_of_earlier_patients_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier hospital had more patients, and a defect where the later one has a patient without one."""
    monkeypatch.setattr("pipeline.phantom.generate.DEFECTS", {"E_DUPLICATE_SLICE": DEFECTS["E_DUPLICATE_SLICE"]})
    for name, numbers in (("again", [1, 2]), ("fresh", [2])):
        (tmp_path / name / "north" / "ct" / "other").mkdir(parents=True)
        for count in numbers:
            make_hospitals(tmp_path / name, patients=[count], seed=1, anatomy="template", replaces=True)
    (tmp_path / "again" / "north" / "ct" / "other").rmdir()  # not of a synthetic patient
    assert hashes(tmp_path / "again") == hashes(tmp_path / "fresh")
    make_hospitals(tmp_path / "again", patients=[1], seed=1, anatomy="template", defects=False, replaces=True)
    assert [scan.name for scan in (tmp_path / "again" / "north" / "ct").iterdir()] == ["N0-000001"]


@pytest.mark.parametrize(
    "code", [None, "E_DUPLICATE_SLICE", "W_SEVERAL_SERIES", "E_MODALITY", "E_NO_LUNGS", "E_DUPLICATE_SCAN"]
)
def test_another_process_writes_the_same_bytes(small_hospital: Path, tmp_path: Path, code: str | None) -> None:
    """Worker processes wrote the small hospital, each of them several patients in sequence."""
    number = 3 if code is None else 9 + list(DEFECTS).index(code)
    truth, _, _ = make_patient(Order(tmp_path, 0, number, 1, code, anatomy="template"))
    for folder in (tmp_path / "ct").iterdir():
        assert hashes(folder) == hashes(small_hospital / "ct" / folder.name)
    assert truth.patient_id in {folder.name for folder in (tmp_path / "ct").iterdir()}


@pytest.mark.parametrize("hospital_index", range(len(HOSPITALS)), ids=NAMES)
def test_mr_image_has_the_same_bytes_again(tmp_path: Path, hospital_index: int) -> None:
    """The scanners of most hospitals write compressed pixels."""
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, again):
        make_patient(Order(folder, hospital_index, 1, 1, "E_MODALITY", anatomy="template"))
    assert hashes(first) == hashes(again)


def test_image_added_to_a_scan_has_a_uid_of_its_own(tmp_path: Path) -> None:
    """In each hospital and with each seed, although its file has the same name."""
    uids = []
    for seed, hospital_index in ((1, 1), (2, 1), (1, 3)):
        folder = tmp_path / f"{seed}-{hospital_index}"
        make_patient(Order(folder, hospital_index, 1, seed, "E_DUPLICATE_SLICE", anatomy="template"))
        (added,) = folder.rglob("again-*.dcm")
        images = [dcmread(path, stop_before_pixels=True) for path in folder.rglob("*.dcm")]
        assert all(image.SOPInstanceUID == image.file_meta.MediaStorageSOPInstanceUID for image in images)
        uids += [image.SOPInstanceUID for image in images]
        assert added.name == "again-2-0021.dcm"
    assert len(set(uids)) == len(uids)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_random_bodies_and_appearances_are_in_the_truth_and_reproducible(tmp_path: Path) -> None:
    first, again = (
        make_hospitals(tmp_path / name, patients=[1], seed=3, defects=False, randomise=True)[0]
        for name in ("first", "again")
    )
    assert hashes(first) == hashes(again)
    truth = json.loads((first / "truth.json").read_text())
    assert (truth["anatomy"], truth["randomised"]) == ("random", True)
    (series,), findings = find_series(first / "ct")
    assert findings == []
    volume = read_series(series)
    assert volume.hu.shape == HOSPITALS[0].scanner.grid.shape
    assert volume.spacing_mm[1] != HOSPITALS[0].scanner.grid.spacing_mm[1], "another field of view"


@pytest.mark.slow
@pytest.mark.parametrize("code", ["W_SEVERAL_SERIES", "E_NO_LUNGS", "E_TILT", "E_TRUNCATED", "E_DUPLICATE_SCAN"])
def test_defects_are_planted_in_random_bodies(tmp_path: Path, code: str) -> None:
    truth, _, _ = make_patient(Order(tmp_path, 0, 1, 1, code))
    assert truth.defect == code
    series, findings = find_series(tmp_path / "ct")
    found = {finding.reason.code for finding in findings}
    for each in series:
        try:
            prepare(orient(read_series(each)), Preprocessing())
        except Refusal as refusal:
            found.add(refusal.code)
    if code in ("E_NO_LUNGS", "E_TILT", "E_TRUNCATED"):
        assert code in found
    else:
        assert len(series) == 2


@pytest.mark.parametrize("at", HOSPITALS, ids=NAMES)
def test_files_are_read_back_with_the_geometry_of_the_grid(tmp_path: Path, at: Hospital) -> None:
    volume, hu = phantoms.scan(at, tmp_path)
    grid = at.scanner.grid
    assert volume.hu.shape == grid.shape
    assert volume.spacing_mm == pytest.approx(grid.spacing_mm)
    # Stored as whole HU, otherwise unchanged. Row 0 and column 0 of the grid may be stored last.
    upright = orient(volume)
    np.testing.assert_allclose(upright.hu, np.clip(hu, -1024, 3071), atol=0.5 + 1e-3)
    np.testing.assert_allclose(upright.affine, phantoms.volume(hu, grid).affine, atol=1e-3)


def test_one_hospital_stores_rows_and_columns_in_reverse(tmp_path: Path) -> None:
    """This proves that the test above reads the direction from the header."""
    volume, hu = phantoms.scan(HOSPITALS[NAMES.index("west")], tmp_path)
    np.testing.assert_allclose(volume.hu[:, ::-1, ::-1], np.clip(hu, -1024, 3071), atol=0.5 + 1e-3)


@pytest.mark.parametrize("name", ["north", "west"])
def test_heart_is_on_the_left_and_spine_at_the_back(tmp_path: Path, name: str) -> None:
    at = HOSPITALS[NAMES.index(name)]
    upright = orient(phantoms.scan(at, tmp_path)[0])

    def mean_hu(right: float, anterior: float, superior: float) -> float:
        """Mean over a small box around a point in RAS millimetres; the origin is the middle of the chest."""
        centre = np.linalg.inv(upright.affine) @ (right, anterior, superior, 1)
        box = tuple(slice(round(c) - 1, round(c) + 2) for c in centre[:3])
        return float(upright.hu[box].mean())

    heart, opposite = mean_hu(-45, 28, -30), mean_hu(45, 28, -30)
    assert -60 < heart < 140
    assert opposite < -600, "lung on the right side"
    spine, front = mean_hu(0, -78, 0), mean_hu(0, 78, 0)
    assert spine > 150 > front
    apex, base = mean_hu(-70, 0, 100), mean_hu(60, 0, -130)
    assert apex < -500, "lung at the cranial end"
    assert base > -60, "liver at the caudal end"


@pytest.mark.slow
def test_sop_instance_uids_of_a_hospital_are_unique(small_hospital: Path) -> None:
    """Except for the scan that is stored twice."""
    images = [
        dcmread(path, stop_before_pixels=True).SOPInstanceUID
        for path in small_hospital.rglob("*.dcm")
        if not path.parent.name.endswith("-B")
    ]
    assert len(set(images)) == len(images) > 1000


def test_truth_lists_every_planted_defect(small_hospital: Path) -> None:
    truth = json.loads((small_hospital / "truth.json").read_text())
    assert truth["synthetic"] is True
    assert (truth["anatomy"], truth["randomised"]) == ("template", False)
    spoilt = [each for each in truth["patients"] if each["defect"] is not None]
    assert [each["defect"] for each in spoilt] == list(DEFECTS)
    told = [(each["code"], each["patient_id"]) for each in truth["defects"]]
    assert {(each["defect"], each["patient_id"]) for each in spoilt} < set(told)
    assert set(DEFECTS) <= set(BY_CODE)
    assert len(truth["patients"]) == 8 + len(DEFECTS)
    assert sum(each["defect"] is None for each in truth["patients"]) == 8


def test_planted_probability_follows_the_published_formula(small_hospital: Path) -> None:
    for each in json.loads((small_hospital / "truth.json").read_text())["patients"]:
        logit = -4.4 + 16 * each["load"] + 20 * each["consolidation"] + 0.055 * (each["age_years"] - 60)
        assert each["p_severe"] == pytest.approx(expit(logit), abs=2e-4)
        assert 0 <= each["consolidation"] <= each["load"] <= 0.8
        assert (each["load"] > 0) == (each["pattern"] != "none")


def test_outcome_file_contains_the_drawn_outcomes(small_hospital: Path) -> None:
    with (small_hospital / "outcomes.csv").open(encoding="utf-8") as file:
        events = {row["patient_id"]: bool(row["intubated"] or row["died"]) for row in csv.DictReader(file)}
    for each in json.loads((small_hospital / "truth.json").read_text())["patients"]:
        assert events[each["patient_id"]] == each["severe"]


@pytest.mark.slow
@pytest.mark.parametrize("at", HOSPITALS, ids=NAMES)
def test_severity_among_positives_is_between_10_and_50_percent(at: Hospital) -> None:
    """200 patients on a coarse body, without scans."""
    grid = Grid((30, 32, 32), (10.0, 12.0, 12.0))
    body = phantoms.thorax(grid)
    severe, ages_of_severe, ages = [], [], []
    for number in range(200):
        rng = np.random.default_rng([1, number])
        patient = draw_patient("SYNTHETIC", "SYNTHETIC", at.mix, rng)
        if not patient.pcr_positive:
            continue
        lesions = add_lesions(
            body, grid, pattern=patient.pattern, load=patient.load, consolidated=patient.consolidated, rng=rng
        )
        severe.append(rng.random() < probability_severe(lesions, patient.age_years))
        ages.append(patient.age_years)
        ages_of_severe += [patient.age_years] if severe[-1] else []
    assert len(severe) / 200 == pytest.approx(at.mix.pcr_prevalence, abs=0.08)
    assert 0.1 < np.mean(severe) < 0.5
    assert np.mean(ages_of_severe) > np.mean(ages), "older patients have worse outcomes"


def test_faint_lesions_have_the_same_load_and_add_half_of_the_density() -> None:
    grid = Grid((60, 64, 64), (5.0, 5.5, 5.5))
    thorax = phantoms.thorax(grid)
    usual, faint = (
        add_lesions(
            thorax,
            grid,
            pattern="covid",
            load=0.2,
            consolidated=0.0,
            rng=np.random.default_rng(2),
            density=density,
        )
        for density in (1.0, 0.5)
    )
    assert (faint.load, faint.consolidation) == (usual.load, usual.consolidation)
    added, added_faint = usual.hu - thorax.hu, faint.hu - thorax.hu
    glass = added > 100
    assert glass.sum() > 1000
    assert np.median(added_faint[glass] / added[glass]) == pytest.approx(0.5, abs=0.02)


def test_lesions_are_located_according_to_their_cause() -> None:
    """Covid-19: both lungs, more at the back. Other pneumonia: one lung."""
    grid = Grid((60, 64, 64), (5.0, 5.5, 5.5))
    body = phantoms.thorax(grid)
    _, y, x = np.broadcast_arrays(*grid.axes_mm())
    behind = []
    for seed in range(6):
        added = {
            pattern: add_lesions(
                body, grid, pattern=pattern, load=0.15, consolidated=0.3, rng=np.random.default_rng(seed)
            ).hu
            - body.hu
            > 100
            for pattern in ("covid", "other")
        }
        left = {pattern: (where & (x > 0)).sum() / where.sum() for pattern, where in added.items()}
        assert 0.05 < left["covid"] < 0.95
        assert left["other"] in (0, 1)
        behind.append(y[added["covid"]].mean() - y[body.lungs].mean())
        for where in added.values():
            assert not (where & ~body.lungs).any()
    assert np.mean(behind) > 10, "in millimetres"


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_settings_of_each_hospital_let_a_node_read_it(tmp_path: Path) -> None:
    """The fifth hospital is the second one with the first dialect."""
    folders = make_hospitals(tmp_path, patients=[1, 1, 1, 1, 1], seed=1, defects=False, anatomy="template")
    assert [folder.name for folder in folders] == [*NAMES, "north-2"]
    for folder in folders:
        site = init_site(folder, (folder / "site.toml").rename(folder / "text").read_text())
        (patient,) = json.loads((folder / "truth.json").read_text())["patients"]
        results, findings = read_pcr(site.settings.laboratory)
        assert findings == []
        assert any(result.positive is patient["pcr_positive"] for result in results)
        outcomes, findings = read_outcomes(site.settings.outcomes)
        assert findings == []
        assert list(outcomes) == [patient["patient_id"]]
        assert [series.patient_id for series in find_series(site.settings.ct.folder)[0]] == [patient["patient_id"]]


def test_dialects_repeat_under_new_names_after_the_named_hospitals() -> None:
    names = [hospital(index).name for index in range(12)]
    assert names[:4] == NAMES
    assert len(set(names)) == 12
    assert hospital(6).scanner == HOSPITALS[2].scanner


def test_planted_slice_is_the_only_defect_of_its_scan(small_hospital: Path, tmp_path: Path) -> None:
    truth = json.loads((small_hospital / "truth.json").read_text())
    patient = next(each["patient_id"] for each in truth["defects"] if each["code"] == "E_DUPLICATE_SLICE")
    shutil.copytree(small_hospital / "ct" / patient, tmp_path / "ct")
    (extra,) = (tmp_path / "ct").glob("again-*")
    extra.unlink()
    (series,), _ = find_series(tmp_path / "ct")
    assert read_series(series).hu.shape == HOSPITALS[0].scanner.grid.shape
