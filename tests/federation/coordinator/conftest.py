"""Hospitals that several files of tests share."""

from pathlib import Path

import pytest

from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess import Preprocessing

SMALL = Preprocessing(method=1, shape=(16, 16, 16))


@pytest.fixture(scope="session")
def two_hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two hospitals, north and south, with forty patients each, prepared as SMALL says. Tests must not change them."""
    place, made = tmp_path_factory.mktemp("two"), []
    for hospital in HOSPITALS[:2]:
        site = synthetic_site(place / hospital.name, hospital.name, seed=1, min_patients=3)
        write_cohort(site, hospital, patients=40, seed=1, settings=SMALL, anatomy="template")
        made.append(site.folder)
    return made
