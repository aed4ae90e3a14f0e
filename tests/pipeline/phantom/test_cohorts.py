"""Tests of synthetic cohorts written without DICOM: same result as an ingest of the same scans, and reproducible."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator

from pipeline.cohort.store import Cohort, PatientRow
from pipeline.phantom.anatomy import MUSCLE_HU, Field, Grid
from pipeline.phantom.cohorts import Body, plain, synthetic_site, volume_of, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Hospital, Scanner
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site
from tests.conftest import OneThread
from tests.helpers import phantoms

NORTH = HOSPITALS[0]
COARSE = replace(NORTH, scanner=replace(NORTH.scanner, grid=Grid((36, 56, 56), (8.0, 6.6, 6.6))))  # to save time


def site(folder: Path, name: str = "north") -> Site:
    return synthetic_site(folder, name, seed=1)


def contents(at: Site) -> tuple[list[PatientRow], dict[str, bytes]]:
    with Cohort.read(at) as cohort:
        return cohort.patients(), {path.name: path.read_bytes() for path in cohort.tensors.iterdir()}


@pytest.mark.parametrize("at", HOSPITALS, ids=[each.name for each in HOSPITALS])
def test_direct_preparation_equals_written_and_read_scan(tmp_path: Path, at: Hospital) -> None:
    read, hu = phantoms.scan(at, tmp_path)
    direct = prepare(volume_of(hu, at.scanner.grid), Preprocessing())
    assert np.ptp(direct.tensor[0]) > 1  # the tensor is not empty
    assert direct.digest == prepare(read, Preprocessing()).digest


@pytest.mark.slow
def test_cohort_has_the_data_that_a_study_needs(tmp_path: Path) -> None:
    truth = write_cohort(site(tmp_path), COARSE, patients=12, seed=1, anatomy="template")
    with Cohort.read(Site.open(tmp_path)) as cohort:
        assert cohort.settings() == {settings_digest(Preprocessing())}
        patients, examples = cohort.patients(), cohort.examples("train", "validation", "test")
        scans = cohort.scans(settings_digest(Preprocessing())).values()
    assert {np.load(example.tensor).shape for example in examples} == {(2, *Preprocessing().shape)}
    assert {scan.measures.position for scan in scans if scan.measures} == {"HFS"}
    assert {scan.measures.kernel for scan in scans if scan.measures} == {"B30F"}
    by_pseudonym = {Site.open(tmp_path).pseudonym(t.patient_id): t for t in truth}
    assert len(patients) == len(by_pseudonym) == 12
    for patient in patients:
        known = by_pseudonym[patient.pseudonym]
        assert (patient.age_years, patient.sex) == (known.age_years, known.sex)
        assert patient.pcr_positive == known.pcr_positive
        assert patient.severe in (known.severe, None)  # some are lost to follow-up


@pytest.mark.slow
def test_seed_and_site_name_determine_the_cohort(tmp_path: Path) -> None:
    for folder, name, seed in (("a", "north", 1), ("b", "north", 1), ("c", "south", 1), ("d", "north", 2)):
        write_cohort(site(tmp_path / folder, name), COARSE, patients=3, seed=seed, anatomy="template")
    first, again, *others = (contents(Site.open(tmp_path / folder)) for folder in "abcd")
    assert first == again
    for other in others:
        assert not set(first[1].values()) & set(other[1].values())


@pytest.mark.slow
def test_cohort_can_use_random_bodies(tmp_path: Path) -> None:
    truth = write_cohort(site(tmp_path / "a"), NORTH, patients=2, seed=1, randomise=True)
    write_cohort(site(tmp_path / "b"), NORTH, patients=1, seed=1)
    patients, tensors = contents(Site.open(tmp_path / "a"))
    assert len(patients) == len(truth) == 2
    assert not set(tensors.values()) & set(contents(Site.open(tmp_path / "b"))[1].values())


def test_second_cohort_replaces_the_first(tmp_path: Path) -> None:
    write_cohort(site(tmp_path), COARSE, patients=3, seed=1, anatomy="template")
    write_cohort(Site.open(tmp_path), COARSE, patients=2, seed=2, anatomy="template")
    patients, tensors = contents(Site.open(tmp_path))
    assert len(patients) == 2
    assert set(tensors) == {patient.tensor for patient in patients}


def test_number_of_workers_does_not_change_the_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.phantom.cohorts.WorkerPool", OneThread)
    for folder, workers in (("a", 1), ("b", 2)):
        write_cohort(site(tmp_path / folder), COARSE, patients=3, seed=1, workers=workers, anatomy="template")
    assert contents(Site.open(tmp_path / "a")) == contents(Site.open(tmp_path / "b"))


def test_severe_intercept_makes_more_patients_severe(tmp_path: Path) -> None:
    """The patients are the same; only their outcomes differ."""
    harsh = replace(COARSE, mix=replace(COARSE.mix, severe_intercept=3.0))
    usual, worse = (
        write_cohort(site(tmp_path / str(k)), at, patients=6, seed=1, anatomy="template")
        for k, at in enumerate((COARSE, harsh))
    )
    assert [t.load for t in usual] == [t.load for t in worse]
    assert all(a.p_severe < b.p_severe for a, b in zip(usual, worse, strict=True))
    assert sum(t.severe for t in usual) < sum(t.severe for t in worse)


def marked(body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
    """Another kernel for patients with a severe outcome."""
    return plain(body, replace(scanner, kernel="LUNG") if body.severe else scanner, rng)


def solid(body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
    """Volumes without lungs for women."""
    hu, scanner = plain(body, scanner, rng)
    return (np.full_like(hu, MUSCLE_HU) if body.patient.sex == "F" else hu), scanner


def test_acquisition_can_plant_a_shortcut(tmp_path: Path) -> None:
    harsh = replace(COARSE, mix=replace(COARSE.mix, severe_intercept=-1.0))
    truth = write_cohort(site(tmp_path), harsh, patients=8, seed=1, acquisition=marked, anatomy="template")
    with Cohort.read(Site.open(tmp_path)) as cohort:
        scans = cohort.scans(settings_digest(Preprocessing())).values()
    kernels = [scan.measures.kernel for scan in scans if scan.measures]
    assert 0 < kernels.count("LUNG") == sum(t.severe for t in truth) < 8


def test_unusable_scan_is_refused_as_in_an_ingest(tmp_path: Path) -> None:
    truth = write_cohort(site(tmp_path), COARSE, patients=6, seed=1, acquisition=solid, anatomy="template")
    women = sum(t.sex == "F" for t in truth)
    with Cohort.read(Site.open(tmp_path)) as cohort:
        codes = [scan.code for scan in cohort.scans(settings_digest(Preprocessing())).values()]
        patients = cohort.patients()
    assert 0 < women < 6
    assert codes.count("E_NO_AIR") == women
    assert [p.sex for p in patients] == ["M"] * (6 - women)
