"""Fixtures of the tests of pipeline."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.site.folder import Site
from tests.helpers.own import Own


@pytest.fixture
def own(small_hospital: Path, make_site: Callable[[Path, Path], Site], tmp_path: Path, in_this_process: None) -> Own:
    folder = tmp_path / "hospital"
    (folder / "ct").mkdir(parents=True)
    for name in ("laboratory.csv", "outcomes.csv", "site.toml"):
        shutil.copy(small_hospital / name, folder)
    return Own(small_hospital, folder, make_site(tmp_path / "site", folder))
