"""Tests of the demo's parts that need no processes; `make demo` runs all of it."""

from pathlib import Path

from configs import preset_files
from federation.approval.studies import study_digest
from federation.cli.demo import Folders, study_of_run
from federation.protocol.study_config import Study
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
