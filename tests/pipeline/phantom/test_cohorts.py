"""Synthetic cohorts without DICOM: what an ingest of the same scans would have left, the same each time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator

from pipeline.cohort.store import Cohort, PatientRow
from pipeline.phantom.anatomy import MUSCLE_HU, Field, Grid
from pipeline.phantom.cohorts import Body, plain, synthetic_site, volume_of, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Hospital, Scanner
from pipeline.preprocessing.preprocess import Preprocessing, prepare, settings_digest
from pipeline.site.folder import Site
from tests.conftest import OneThread
from tests.helpers import phantoms

NORTH = HOSPITALS[0]
COARSE = replace(NORTH, scanner=replace(NORTH.scanner, grid=Grid((36, 56, 56), (8.0, 6.6, 6.6))))  # in less time


def site(folder: Path, name: str = "north") -> Site:
    return synthetic_site(folder, name, seed=1)


def contents(at: Site) -> tuple[list[PatientRow], dict[str, bytes]]:
    with Cohort.read(at) as cohort:
        return cohort.patients(), {path.name: path.read_bytes() for path in cohort.tensors.iterdir()}


@pytest.mark.parametrize("at", HOSPITALS, ids=[each.name for each in HOSPITALS])
def test_a_scan_is_prepared_as_if_it_had_been_written_and_read(tmp_path: Path, at: Hospital) -> None:
    read, hu = phantoms.scan(at, tmp_path)
    direct = prepare(volume_of(hu, at.scanner.grid), Preprocessing())
    assert np.ptp(direct.tensor[0]) > 1  # there is something in it
    assert direct.digest == prepare(read, Preprocessing()).digest


@pytest.mark.slow
def test_a_cohort_has_what_a_study_and_the_data_contract_need(tmp_path: Path) -> None:
    truth = write_cohort(site(tmp_path), COARSE, patients=12, seed=1)
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
def test_the_same_seed_writes_the_same_cohort_and_another_name_others(tmp_path: Path) -> None:
    for folder, name, seed in (("a", "north", 1), ("b", "north", 1), ("c", "south", 1), ("d", "north", 2)):
        write_cohort(site(tmp_path / folder, name), COARSE, patients=3, seed=seed)
    first, again, *others = (contents(Site.open(tmp_path / folder)) for folder in "abcd")
    assert first == again
    for other in others:
        assert not set(first[1].values()) & set(other[1].values())


@pytest.mark.slow
def test_random_bodies_make_a_cohort_too(tmp_path: Path) -> None:
    truth = write_cohort(site(tmp_path / "a"), NORTH, patients=3, seed=1, anatomy="random", randomise=True)
    write_cohort(site(tmp_path / "b"), NORTH, patients=3, seed=1, anatomy="random")
    patients, tensors = contents(Site.open(tmp_path / "a"))
    assert len(patients) == len(truth) == 3
    assert not set(tensors.values()) & set(contents(Site.open(tmp_path / "b"))[1].values())


def test_a_second_cohort_takes_the_place_of_the_first(tmp_path: Path) -> None:
    write_cohort(site(tmp_path), COARSE, patients=3, seed=1)
    write_cohort(Site.open(tmp_path), COARSE, patients=2, seed=2)
    patients, tensors = contents(Site.open(tmp_path))
    assert len(patients) == 2
    assert set(tensors) == {patient.tensor for patient in patients}


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.phantom.cohorts.ProcessPoolExecutor", OneThread)
    for folder, workers in (("a", 1), ("b", 2)):
        write_cohort(site(tmp_path / folder), COARSE, patients=3, seed=1, workers=workers)
    assert contents(Site.open(tmp_path / "a")) == contents(Site.open(tmp_path / "b"))


def test_a_hospital_s_intercept_makes_more_of_its_patients_severe(tmp_path: Path) -> None:
    """The same patients: only what becomes of them differs."""
    harsh = replace(COARSE, mix=replace(COARSE.mix, severe_intercept=3.0))
    usual, worse = (
        write_cohort(site(tmp_path / str(k)), at, patients=6, seed=1) for k, at in enumerate((COARSE, harsh))
    )
    assert [t.load for t in usual] == [t.load for t in worse]
    assert all(a.p_severe < b.p_severe for a, b in zip(usual, worse, strict=True))
    assert sum(t.severe for t in usual) < sum(t.severe for t in worse)


def marked(body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
    """Another kernel for whoever fares badly."""
    return plain(body, replace(scanner, kernel="LUNG") if body.severe else scanner, rng)


def solid(body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
    """No lungs in women."""
    hu, scanner = plain(body, scanner, rng)
    return (np.full_like(hu, MUSCLE_HU) if body.patient.sex == "F" else hu), scanner


def test_an_acquisition_can_plant_a_shortcut(tmp_path: Path) -> None:
    harsh = replace(COARSE, mix=replace(COARSE.mix, severe_intercept=-1.0))
    truth = write_cohort(site(tmp_path), harsh, patients=8, seed=1, acquisition=marked)
    with Cohort.read(Site.open(tmp_path)) as cohort:
        scans = cohort.scans(settings_digest(Preprocessing())).values()
    kernels = [scan.measures.kernel for scan in scans if scan.measures]
    assert 0 < kernels.count("LUNG") == sum(t.severe for t in truth) < 8


def test_a_scan_that_cannot_be_used_is_refused_as_at_an_ingest(tmp_path: Path) -> None:
    truth = write_cohort(site(tmp_path), COARSE, patients=6, seed=1, acquisition=solid)
    women = sum(t.sex == "F" for t in truth)
    with Cohort.read(Site.open(tmp_path)) as cohort:
        codes = [scan.code for scan in cohort.scans(settings_digest(Preprocessing())).values()]
        patients = cohort.patients()
    assert 0 < women < 6
    assert codes.count("E_NO_LUNGS") == women
    assert [p.sex for p in patients] == ["M"] * (6 - women)
