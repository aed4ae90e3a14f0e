"""Terminal output of `fedthorax score`, with a model trained on phantoms only."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset
from typer.testing import CliRunner

from federation.cli.main import app
from federation.cli.scoring import score_series
from models.calibration import Platt
from models.description import NOT_JUDGED
from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from models.refusal import Refusal
from models.release import save_release
from pipeline.imaging.phantom_marker import mark
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import write_series
from tests.pipeline.scoring.test_score import SPACING_MM, chest

SYNTHETIC = "This model was trained on synthetic data. Its result is not valid for patients."


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Function that scores one scan and returns the terminal output as one line."""
    monkeypatch.setenv("COLUMNS", "200")

    def tell(
        *,
        edit: Callable[[Dataset, int], None] | None = None,
        synthetic: bool = True,
        spread: float = 0.0,
        intercept: float = 0.0,
    ) -> str:
        calibrated = Platt(slope=0.05, intercept=intercept, covariance=(0.0, 0.0, spread))
        calibration = dict.fromkeys(LABELS, calibrated)
        points = {label: {"rule_out": 0.7, "rule_in": 0.8} for label in LABELS}
        described = description(calibration=calibration, operating_points=points, trained_on_synthetic_data=synthetic)
        save_release(tmp_path / "model", build_network(NetworkSettings(), seed=3), described)
        write_series(tmp_path / "scan", chest(), spacing_mm=SPACING_MM, edit=edit)
        score_series([tmp_path / "scan"], model=tmp_path / "model", out=None, as_json=False)
        said = capsys.readouterr()
        return " ".join((said.out + said.err).split())

    return tell


@pytest.mark.slow
def test_one_of_several_series_is_selected_by_its_uid(tmp_path: Path) -> None:
    save_release(tmp_path / "model", build_network(NetworkSettings(), seed=3), description())
    for name, other in (("first", "1"), ("second", "2")):

        def edit(image: Dataset, index: int, other: str = other) -> None:
            image.SeriesInstanceUID = f"2.25.{other}"
            image.SOPInstanceUID = f"2.25.{other}.{index + 1}"

        write_series(tmp_path / "scans" / name, chest() + int(other), spacing_mm=SPACING_MM, edit=edit)
    command = ["score", str(tmp_path / "scans"), "--model", str(tmp_path / "model"), "--json"]
    several = CliRunner().invoke(app, command).exception
    assert isinstance(several, Refusal) and several.code == "E_MIXED_SERIES" and "--series-uid" in several.remedy
    unknown = CliRunner().invoke(app, [*command, "--series-uid", "2.25.3"]).exception
    assert isinstance(unknown, Refusal) and unknown.code == "E_UNKNOWN_SERIES"
    assert CliRunner().invoke(app, [*command, "--series-uid", "2.25.2"]).exit_code == 0


def test_synthetic_model_gives_no_level_for_a_patient(told: Callable[..., str]) -> None:
    said = told()
    assert SYNTHETIC in said
    assert said.count("not valid │") == 2
    assert " low " not in said and "70.0 %" not in said


def test_synthetic_model_gives_levels_and_a_warning_for_a_phantom(told: Callable[..., str]) -> None:
    said = told(edit=lambda image, _: mark(image))
    assert SYNTHETIC in said
    assert said.count(" low ") == 2 and "70.0 %" in said


@pytest.mark.slow
def test_band_across_a_threshold_is_uncertain(told: Callable[..., str]) -> None:
    said = told(synthetic=False, spread=0.5)
    assert said.count(" uncertain ") == 2
    assert "the 95 % band crosses a threshold" in said
    assert SYNTHETIC not in said


@pytest.mark.parametrize(("intercept", "shown"), [(-30.0, "< 0.1 %"), (100.0, "> 99.9 %")])
def test_probability_is_never_shown_as_0_or_100_percent(intercept: float, shown: str, told: Callable[..., str]) -> None:
    said = told(synthetic=False, intercept=intercept, spread=0.01)
    for label in LABELS:
        assert f"│ {label} │ {shown} │ {shown} to {shown} │" in said


def test_label_that_was_not_judged_has_no_number_and_the_terminal_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    described = description(metrics={"mean_auroc_pcr_positive": 0.8}, trained_on_synthetic_data=False)
    network = build_network(NetworkSettings(), seed=3)
    save_release(tmp_path / "model", network, described)
    write_series(tmp_path / "scan", chest(), spacing_mm=SPACING_MM)
    score_series([tmp_path / "scan"], model=tmp_path / "model", out=None, as_json=False)
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert f"severe: {NOT_JUDGED}" in said
    assert "Reason to doubt it: it is not known whether" in said
    assert "│ severe" not in said and "pcr_positive" in said
    save_release(tmp_path / "none", network, description(metrics={}, trained_on_synthetic_data=False))
    with pytest.raises(Refusal) as refused:
        score_series([tmp_path / "scan"], model=tmp_path / "none", out=None, as_json=False)
    assert refused.value.code == "E_LABELS_NOT_JUDGED"


def test_device_must_be_one_that_exists(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["score", str(tmp_path), "--device", "cuda:31"]).exception
    assert isinstance(refused, Refusal) and refused.code == "E_SCORE_DEVICE"
    assert "cuda:31 of --device" in refused.says and "--device" in refused.remedy
    assert "[compute]" not in refused.says + refused.remedy
    done = CliRunner().invoke(app, ["score", str(tmp_path), "--device", "gpu"])
    assert done.exit_code == 2 and "cuda:N" in done.output
