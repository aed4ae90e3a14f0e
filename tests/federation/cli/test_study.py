"""Tests of the commands `fedthorax study ...`, without a server. All metrics are invented."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import configs
from federation.cli.study import app
from federation.protocol.study_config import Study
from federation.runs.launch import plan
from models.refusal import Refusal
from models.settings import load_settings
from tests.helpers.results_factory import make_results
from tests.helpers.run_files import entry, write_run

PRESETS = sorted((Path(configs.__file__).parent / "presets").glob("*.toml"))


def typed(*arguments: str | Path) -> str:
    """Run a command and return its standard output. Raises its refusal."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_valid_study(preset):
    assert plan([preset])
    assert preset.read_text().startswith("# "), "a preset starts with a comment that states its purpose"


def test_presets_for_comparison_differ_only_in_their_seeds_and_mask():
    found = [load_settings(PRESETS[0].with_name(f"{name}.toml"), Study) for name in ("fedavg", "fedprox", "fedavgm")]
    fedavg, *others = (study.with_seed(0).study for study in found)
    assert all(other == fedavg for other in others)
    assert all(study.aggregation.secure and len(study.study.seeds) == 5 for study in found)


def test_masked_presets_share_no_seed():
    """A hospital sums the updates of a first model once, so two masked runs of one seed cannot both run there."""
    masked = [study for study in plan(PRESETS) if study.aggregation.secure]
    seeds = [study.study.seed for study in masked]
    assert len(seeds) == len(set(seeds)) > 15


def test_init_writes_a_preset_and_never_overwrites_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    typed("init", path, "--preset", "fedprox")
    assert load_settings(path, Study).strategy.name == "FedProx"
    with pytest.raises(Refusal, match="E_STUDY_EXISTS"):
        typed("init", path)
    typed("init", tmp_path / "whole.toml")
    assert (tmp_path / "whole.toml").read_text() == (PRESETS[0].parents[1] / "study.toml").read_text()
    wrong = CliRunner().invoke(app, ["init", str(tmp_path / "x.toml"), "--preset", "none"])
    assert wrong.exit_code == 2
    assert "fedavg" in wrong.output


def test_group_name_unsafe_for_files_and_tags_is_a_usage_error(tmp_path):
    done = CliRunner().invoke(app, ["run", str(PRESETS[0]), "--group", "Ünser/../x", "--server", str(tmp_path)])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_list_prints_runs_as_text_and_json(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "a-study-with-a-name-of-some-length-0a1b2c3d"
    write_run(tmp_path, name, history=[entry(1)], ended="stopped")
    assert name in typed("list", "--server", tmp_path), "run names are not truncated, because users type them again"
    (run,) = json.loads(typed("list", "--server", tmp_path, "--json"))
    assert (run["run"], run["state"], run["round"], run["rounds"]) == (name, "stopped", 1, 4)
    assert run["means"]["auroc_severe"] == 0.65
    assert json.loads(typed("list", "--server", tmp_path / "empty", "--json")) == []


def test_show_prints_a_run_as_text_and_json(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    results = make_results(2)
    history = [entry(1, refused={"south": "E_SITE_MISSING"})]
    write_run(tmp_path, "trial-a", of=results.study, history=history, results=results)
    text = typed("show", "trial-a", "--server", tmp_path)
    assert "south: E_SITE_MISSING" in text
    assert "mean over sites" in text
    assert "mlflow: " in text
    told = json.loads(typed("show", "trial-a", "--server", tmp_path, "--json"))
    assert told["final"]["models"][0]["figures"]["north"]["auroc_severe"]
    assert told["history"][0]["refused"] == {"south": "E_SITE_MISSING"}


def test_compare_prints_runs_as_text_and_json(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for seed in (1, 2):
        results = make_results(2, seed=seed)
        study = results.study.with_seed(seed)
        write_run(tmp_path, f"trial-{seed}", of=study, results=results, group="seeds", number=seed)
    text = typed("compare", "seeds", "--server", tmp_path)
    assert "CenteredClip, 2 seeds" in text
    assert "±" in text
    told = json.loads(typed("compare", "seeds", "--server", tmp_path, "--json"))
    assert told["columns"][0]["runs"] == ["trial-1", "trial-2"]
    assert told["columns"][0]["figures"]["auroc_severe"]["mean over sites"]["deviation"] > 0


@pytest.mark.parametrize("command", ["show", "follow", "stop", "resume", "compare"])
def test_unknown_run_is_refused_by_every_command(tmp_path, command):
    write_run(tmp_path, "trial-a")
    with pytest.raises(Refusal, match="E_RUN_UNKNOWN"):
        typed(command, "trial-x", "--server", tmp_path)
