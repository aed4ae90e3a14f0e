"""A study in Flower's simulation, with local site folders of synthetic hospitals."""

import json
from pathlib import Path

import pytest

from models.release import load_release
from tests.e2e.conftest import run_command
from tests.e2e.test_federation import STUDY

pytestmark = pytest.mark.e2e


def test_study_runs_in_simulation(two_sites: Path, tmp_path: Path) -> None:
    options = [option for name in ("north", "south") for option in ("--simulate", two_sites / name)]
    study = tmp_path / "study.toml"
    study.write_text(STUDY.replace("sites = 3", "sites = 2").replace("rounds = 4", "rounds = 2"))
    done = run_command("study", "run", study, "--server", tmp_path / "simulation", *options, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2 of 2 · 2 of 2 sites" in done.stderr
    release = load_release(Path(json.loads(done.stdout)["release"]))
    assert release.description.sites == 2


def test_unknown_key_in_study_file_is_refused_with_its_name(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY.replace("quorum = 2", "quorum = 9\nquroum = 2"))
    done = run_command("study", "run", study, "--server", tmp_path, "--json")
    refused = json.loads(done.stdout)["refused"]
    assert done.returncode == 1
    assert refused["code"] == "E_SETTINGS_KEY"
    assert "study.quroum" in refused["says"]
