"""`fedthorax score` in the terminal, with a model that has only seen phantoms."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset

from federation.cli.scoring import score_series
from models.calibration import Platt
from models.network import LABELS, NetworkSettings, build_network
from models.release import save_release
from pipeline.imaging.phantom_marker import mark
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import write_series
from tests.pipeline.scoring.test_score import SPACING_MM, chest

SYNTHETIC = "This model was trained on synthetic data. Its result is not valid for patients."


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Standard output of one score, in one line."""
    monkeypatch.setenv("COLUMNS", "200")

    def tell(*, edit: Callable[[Dataset, int], None] | None = None, synthetic: bool = True, spread: float = 0.0) -> str:
        calibration = {label: Platt(slope=0.05, covariance=(0.0, 0.0, spread)) for label in LABELS}
        points = {label: {"rule_out": 0.7, "rule_in": 0.8} for label in LABELS}
        described = description(calibration=calibration, operating_points=points, trained_on_synthetic_data=synthetic)
        save_release(tmp_path / "model", build_network(NetworkSettings(), seed=3), described)
        write_series(tmp_path / "scan", chest(), spacing_mm=SPACING_MM, edit=edit)
        score_series([tmp_path / "scan"], model=tmp_path / "model", out=None, as_json=False)
        said = capsys.readouterr()
        return " ".join((said.out + said.err).split())

    return tell


def test_a_patient_gets_no_level(told: Callable[..., str]) -> None:
    said = told()
    assert SYNTHETIC in said
    assert said.count("not valid │") == 2
    assert " low " not in said and "70.0 %" not in said


def test_a_phantom_has_levels_and_the_warning_all_the_same(told: Callable[..., str]) -> None:
    said = told(edit=lambda image, _: mark(image))
    assert SYNTHETIC in said
    assert said.count(" low ") == 2 and "70.0 %" in said


@pytest.mark.slow
def test_a_band_across_a_threshold_is_uncertain(told: Callable[..., str]) -> None:
    said = told(synthetic=False, spread=0.5)
    assert said.count(" uncertain ") == 2
    assert "the 95 % band crosses a threshold" in said
    assert SYNTHETIC not in said
