"""Tests of the demo's parts that need no processes; `make demo` runs all of it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs import preset_files
from federation.approval.studies import study_digest
from federation.cli.demo import Folders, require_enough, study_of_run
from federation.cli.main import app
from federation.protocol.study_config import Study
from models.refusal import Refusal
from models.settings import load_settings


def demo() -> Study:
    return load_settings(preset_files()["demo"], Study)


def test_first_run_is_the_released_study(tmp_path: Path) -> None:
    assert study_of_run(Folders(tmp_path)) == demo()


def test_each_further_run_in_a_folder_has_a_seed_of_its_own(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    for run in ("demo-00000001", "demo-00000002"):
        (folders.server / "runs" / run).mkdir(parents=True)
    study = study_of_run(folders)
    assert study.study.seed == demo().study.seed + 2
    assert study_digest(study.model_dump_json()) == study_digest(demo().model_dump_json())  # hospitals approved it


def test_too_few_patients_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path / "demo"), "--patients", "30"])
    assert isinstance(done.exception, Refusal)
    assert done.exception.code == "E_DEMO_PATIENTS"
    assert list(tmp_path.iterdir()) == []


def test_least_number_of_patients_is_named_and_works() -> None:
    with pytest.raises(Refusal) as refused:
        require_enough(1)
    least = int(refused.value.numbers["least"])
    require_enough(least)
    require_enough(120)
    with pytest.raises(Refusal, match=f"the least number is {least}"):
        require_enough(least - 1)
