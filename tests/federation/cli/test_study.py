"""Tests of the commands `fedthorax study ...`, without a server. All metrics are invented."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import configs
from federation.approval.presets import names_of
from federation.approval.studies import is_listed, study_digest
from federation.cli.study import app
from federation.coordinator.reasons import HANDSHAKE_QUORUM
from federation.protocol.study_config import Study
from federation.runs.failure import write_failure
from federation.runs.launch import plan
from models.refusal import Refusal
from models.settings import load_settings
from tests.helpers.results_factory import make_results, trained_too_long
from tests.helpers.run_files import entry, write_run
from tests.helpers.summed_results import make_secure_results

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


@pytest.mark.parametrize(
    ("name", "says"), [("", "is a folder"), ("new/", "is a folder"), ("nowhere/study.toml", "does not exist")]
)
def test_init_names_what_is_wrong_with_the_path(tmp_path, name, says):
    wrong = CliRunner().invoke(app, ["init", f"{tmp_path}/{name}"])
    assert wrong.exit_code == 2
    assert says in " ".join(wrong.output.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_init_writes_a_preset_and_never_overwrites_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    typed("init", path, "--preset", "fedprox")
    assert load_settings(path, Study).strategy.name == "FedProx"
    (tmp_path / "link.toml").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link.toml"):
        with pytest.raises(Refusal, match="E_STUDY_EXISTS"):
            typed("init", taken)
    typed("init", tmp_path / "whole.toml")
    assert (tmp_path / "whole.toml").read_text() == (PRESETS[0].parents[1] / "study.toml").read_text()
    wrong = CliRunner().invoke(app, ["init", str(tmp_path / "x.toml"), "--preset", "none"])
    assert wrong.exit_code == 2
    assert "fedavg" in wrong.output


TEMPLATE = PRESETS[0].parents[1] / "study.toml"


def told(*arguments: str | Path) -> str:
    """Run a command and return what it says to people, in one line."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("sites", "quorum", "groups", "says"),
    [
        (3, 2, None, "set quorum = 3 to lose such rounds"),
        (4, 3, None, "of their figures and answers only sums"),
        (8, 6, None, "--preset masked --sites 8"),
        (9, 7, 0, "one masked sum"),
        (11, 8, 0, "set groups = 3"),
        (12, 9, 3, "masked sums of 3 groups"),
        (19, 13, 3, "--preset masked --sites 19"),
        (20, 14, 5, "masked sums of 5 groups"),
        (100, 67, 5, "no single update"),
    ],
)
def test_init_for_a_number_of_hospitals_chooses_the_protection_of_the_page(tmp_path, sites, quorum, groups, says):
    path = tmp_path / "study.toml"
    text = told("init", path, "--sites", sites)
    study = load_settings(path, Study)
    assert (study.study.sites, study.study.quorum) == (sites, quorum)
    if groups is None:
        assert not study.aggregation.secure and study.strategy.name == "CenteredClip"
    else:
        assert study.aggregation.secure and (study.aggregation.groups, study.strategy.name) == (groups, "FedAvg")
    assert study.study.rounds == 20 + study.aggregation.secure, "the last masked round only judges the model"
    assert says in text and "docs/choosing-protection.md" in text
    assert plan([path])


def test_init_for_a_number_of_hospitals_keeps_the_comments(tmp_path):
    told("init", tmp_path / "study.toml", "--sites", "12")
    lines = (tmp_path / "study.toml").read_text().splitlines()
    before = TEMPLATE.read_text().splitlines()
    assert len(lines) == len(before) + 1, "a comment that says what was set"
    comments = [line.partition("#")[2] for line in before]
    assert [line.partition("#")[2] for line in lines if "--sites 12" not in line] == comments


@pytest.mark.parametrize(("sites", "preset"), [(9, "masked"), (12, "masked-groups")])
def test_recommended_masked_study_is_one_that_hospitals_approve_by_name(tmp_path, sites, preset):
    told("init", tmp_path / "a.toml", "--sites", sites)
    told("init", tmp_path / "b.toml", "--sites", sites, "--preset", preset)
    one, other = (study_digest(load_settings(tmp_path / f, Study).model_dump_json()) for f in ("a.toml", "b.toml"))
    assert one == other


@pytest.mark.parametrize(("sites", "is_warned"), [(3, False), (4, True)])
def test_init_warns_of_a_study_that_asks_for_more_than_hospitals_allow(tmp_path, sites, is_warned):
    text = told("init", tmp_path / "study.toml", "--sites", sites, "--preset", "baselines")
    assert ("W_SITE_LIMITS" in text) == is_warned


def test_init_with_a_preset_sets_only_sites_and_quorum(tmp_path):
    told("init", tmp_path / "study.toml", "--sites", "7", "--preset", "fedprox")
    preset = load_settings(TEMPLATE.parent / "presets" / "fedprox.toml", Study)
    study = load_settings(tmp_path / "study.toml", Study)
    assert (study.study.sites, study.study.quorum) == (7, 5)
    table = study.study.model_copy(update={"sites": 3, "quorum": 3})
    assert study.model_copy(update={"study": table}) == preset


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--sites", "2"], "E_FEW_HOSPITALS", "fewer than three"),
        (["--sites", "1"], "E_FEW_HOSPITALS", "fewer than three"),
        (["--sites", "101"], "E_STUDY_SITES", "at most 100 sites"),
        (["--sites", "2", "--preset", "masked"], "E_STUDY_SITES", "the preset masked .* at least 3"),
        (["--sites", "8", "--preset", "masked-groups"], "E_STUDY_SITES", "at least 9 sites"),
        (["--sites", "200", "--preset", "fedavg"], "E_STUDY_SITES", "at most 100 sites"),
    ],
)
def test_number_of_hospitals_that_a_protection_does_not_allow_is_refused(tmp_path, arguments, code, says):
    with pytest.raises(Refusal, match=f"{code}: .*{says}"):
        typed("init", tmp_path / "study.toml", *arguments)
    assert list(tmp_path.iterdir()) == []


# --- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", configs.SIZES)
def test_init_writes_a_size_and_says_that_scans_are_prepared_in_it_first(tmp_path, size):
    path = tmp_path / "study.toml"
    text = told("init", path, "--preset", size)
    assert path.read_text() == PRESETS[0].with_name(f"{size}.toml").read_text()
    assert "node ingest SITE_DIR --study study.toml" in text and "docs/study-sizes.md" in text
    assert "choose a new seed" not in text


@pytest.mark.parametrize(("sites", "protection"), [(5, ""), (9, "masked+"), (12, "masked-groups+")])
def test_size_for_a_number_of_hospitals_has_the_recommended_protection_and_is_approved_by_name(
    tmp_path, sites, protection
):
    path = tmp_path / "study.toml"
    text = told("init", path, "--preset", "standard-gpu", "--sites", sites)
    study = load_settings(path, Study)
    assert (study.study.sites, study.study.rounds) == (sites, 20 + study.aggregation.secure)
    names = names_of(study_digest(study.model_dump_json()))
    assert f"{protection}standard-gpu" in names and is_listed(names, configs.usual_studies())
    assert ("choose a new seed" in text) == study.aggregation.secure
    if not protection:
        assert "--preset masked --preset standard-gpu --sites 5" in text
    assert plan([path])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("size", configs.SIZES)
@pytest.mark.parametrize("purpose", ["study", *(path.stem for path in PRESETS if path.stem not in configs.SIZES)])
def test_purpose_at_a_size_is_the_purpose_with_another_grid(tmp_path, purpose, size, order):
    path = tmp_path / "study.toml"
    presets = [f"--preset={name}" for name in (purpose, size)[::order]]
    told("init", path, *presets)
    found = load_settings(path, Study)
    usual, grid = (load_settings(file, Study) for file in (configs.preset_files()[name] for name in (purpose, size)))
    assert found == usual.model_copy(update={"preprocessing": grid.preprocessing})
    assert f"the preset {purpose} at the size {size}" in path.read_text()
    assert names_of(study_digest(found.model_dump_json())), "a study of this release"


@pytest.mark.parametrize(
    ("presets", "says"),
    [
        (["small-cpu", "large-gpu"], "small-cpu and large-gpu are both sizes"),
        (["masked", "private"], "masked and private are both purposes"),
        (["standard-gpu", "masked", "large-gpu"], "standard-gpu and large-gpu are both sizes"),
        (["masked", "standard"], "the presets are study"),
        (["masked+standard-gpu"], "the presets are study"),
    ],
)
def test_wrong_combination_of_presets_is_a_usage_error(tmp_path, presets, says):
    done = CliRunner().invoke(
        app, ["init", str(tmp_path / "study.toml"), *(f"--preset={name}" for name in presets)], env={"COLUMNS": "300"}
    )
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_size_of_a_purpose_for_too_few_hospitals_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"E_STUDY_SITES: .*at least 9 sites"):
        typed("init", tmp_path / "a.toml", "--preset=masked-groups", "--preset=large-gpu", "--sites=8")
    with pytest.raises(Refusal, match="E_FEW_HOSPITALS"):
        typed("init", tmp_path / "a.toml", "--preset=large-gpu", "--sites=2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sites", ["0", "-3", "three", "3.5", "", "1001", "9" * 30])
def test_number_of_hospitals_that_is_none_is_a_usage_error(tmp_path, sites):
    done = CliRunner().invoke(app, ["init", str(tmp_path / "study.toml"), "--sites", sites])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_group_name_unsafe_for_files_and_tags_is_a_usage_error(tmp_path):
    done = CliRunner().invoke(app, ["run", str(PRESETS[0]), "--group", "Ünser/../x", "--server", str(tmp_path)])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_list_refuses_a_folder_without_a_server(tmp_path):
    with pytest.raises(Refusal, match="E_NO_SERVER"):
        typed("list", "--server", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_list_prints_runs_as_text_and_json(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "a-study-with-a-name-of-some-length-0a1b2c3d"
    write_run(tmp_path, name, history=[entry(1)], ended="stopped")
    assert name in typed("list", "--server", tmp_path), "run names are not truncated, because users type them again"
    (run,) = json.loads(typed("list", "--server", tmp_path, "--json"))
    assert (run["run"], run["state"], run["round"], run["rounds"]) == (name, "stopped", 1, 4)
    assert run["means"]["auroc_severe"] == 0.65
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    assert json.loads(typed("list", "--server", tmp_path / "empty", "--json")) == []


def test_list_breaks_no_word_of_a_usual_run_in_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    write_run(tmp_path, "severe-covid-0a1b2c3d", history=[entry(1)], ended="stopped")
    (run,) = json.loads(typed("list", "--server", tmp_path, "--json"))
    told = typed("list", "--server", tmp_path).split()
    assert {"severe-covid-0a1b2c3d", run["strategy"], run["state"], "validation", run["begun"][:10]} <= set(told)


def test_show_prints_a_run_as_text_and_json(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    results = make_results(2)
    history = [entry(1, refused={"south": "E_SITE_MISSING"})]
    write_run(tmp_path, "trial-a", of=results.study, history=history, results=results)
    text = typed("show", "trial-a", "--server", tmp_path)
    assert "south: E_SITE_MISSING" in text
    assert "mean by patients" in text
    assert "mlflow: " in text
    told = json.loads(typed("show", "trial-a", "--server", tmp_path, "--json"))
    assert told["final"]["models"][0]["figures"]["north"]["auroc_severe"]
    assert told["history"][0]["refused"] == {"south": "E_SITE_MISSING"}


def test_show_says_why_a_run_failed_before_its_first_round(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    folder = write_run(tmp_path, "trial-a", ended="failed")
    write_failure(folder, Refusal(HANDSHAKE_QUORUM, quorum=3, present=1, others="south: E_SITE_MISSING"))
    done = CliRunner().invoke(app, ["show", "trial-a", "--server", str(tmp_path)])
    shown = " ".join(done.output.split())
    assert "E_HANDSHAKE_QUORUM" in shown and "south: E_SITE_MISSING" in shown
    assert HANDSHAKE_QUORUM.remedy.split(".")[0] in shown
    assert "ended before round 1" in shown and "waiting" not in shown
    told = json.loads(typed("show", "trial-a", "--server", tmp_path, "--json"))
    assert (told["standing"], told["failure"]["code"]) == ("ended before round 1", "E_HANDSHAKE_QUORUM")


def test_show_names_the_log_if_why_a_run_failed_is_not_known(tmp_path):
    write_run(tmp_path, "trial-a", ended="failed", history=[entry(1)])
    done = CliRunner().invoke(app, ["show", "trial-a", "--server", str(tmp_path)])
    assert "logs" in done.output
    told = json.loads(typed("show", "trial-a", "--server", tmp_path, "--json"))
    assert told["failure"] is None
    assert "left" not in told["standing"], "no time is left of a run that has ended"


def test_show_warns_of_a_study_that_trained_too_long(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    results = trained_too_long(make_results(2))
    write_run(tmp_path, "trial-a", of=results.study, history=results.history, results=results)
    done = CliRunner().invoke(app, ["show", "trial-a", "--server", str(tmp_path)])
    assert "W_TRAINED_LONG: the validation loss of severe was lowest near round" in done.stderr
    (warning,) = json.loads(typed("show", "trial-a", "--server", tmp_path, "--json"))["warnings"]
    assert warning["code"] == "W_TRAINED_LONG"


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
    assert told["columns"][0]["figures"]["auroc_severe"]["mean by patients"]["deviation"] > 0


def test_compare_says_why_a_masked_run_has_no_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    results = make_secure_results(3, of_sum={"counts": {}, "means": {}, "known": {}})
    write_run(tmp_path, "trial-a", of=results.study, results=results)
    done = CliRunner().invoke(app, ["compare", "trial-a", "--server", str(tmp_path)])
    shown = " ".join(done.output.split())
    assert "W_RUN_NO_FIGURES: trial-a" in shown and "enough patients of both classes" in shown
    assert "figure and site" not in shown, "no table without a line"
    assert "Where there is an interval over patients" in shown


@pytest.mark.parametrize("command", ["show", "follow", "stop", "resume", "compare"])
def test_unknown_run_is_refused_by_every_command(tmp_path, command):
    write_run(tmp_path, "trial-a")
    with pytest.raises(Refusal, match="E_RUN_UNKNOWN"):
        typed(command, "trial-x", "--server", tmp_path)
