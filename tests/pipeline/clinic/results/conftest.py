"""One synthetic scan and its score, shared by all tests of results. Tests must not change them."""

from pathlib import Path

import pytest

from pipeline.scoring.score import Score
from tests.helpers import scored_answers as answers


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    answers.write_scan(folder)
    return folder


@pytest.fixture(scope="session")
def score(scan: Path) -> Score:
    return answers.score_of(scan)
