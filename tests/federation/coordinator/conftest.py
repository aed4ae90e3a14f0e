"""Hospitals that several files of tests share."""

import shutil
from pathlib import Path

import pytest

from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.shared_folder import shared_folder

SMALL = Preprocessing(method=1, shape=(16, 16, 16))


@pytest.fixture(scope="session")
def two_hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two hospitals, north and south, with forty patients each, prepared as SMALL says. Tests must not change them."""

    def make(folder: Path) -> None:
        for hospital in HOSPITALS[:2]:
            site = synthetic_site(folder / hospital.name, hospital.name, seed=1, min_patients=3)
            write_cohort(site, hospital, patients=40, seed=1, settings=SMALL, anatomy="template")

    made, place = shared_folder(tmp_path_factory, "two_hospitals", make), tmp_path_factory.mktemp("two")
    # A run locks a site's folder, so each worker has a copy.
    return [shutil.copytree(made / hospital.name, place / hospital.name) for hospital in HOSPITALS[:2]]
