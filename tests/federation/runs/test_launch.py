"""Tests of launching runs: planning from study files, run notes, and the end of a run. No server is started."""

import json
from pathlib import Path

import pytest

from federation.runs import launch
from federation.runs.launch import follow, launch_all, plan, resume, stop_run
from federation.runs.run_folder import read_note, run_names, unfinished, write_note
from federation.superlink import reasons
from models.refusal import Refusal
from tests.helpers.run_files import entry, study, write_run

STUDY = '[study]\nname = "trial"\nrounds = 2\nsites = 3\nquorum = 2\nseeds = [3, 4]\n[strategy]\nname = "FedAvgM"\n'


class Server:
    """A stand-in for the server: accepts every run and ends it as `ends` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.submitted, self.stopped = folder, [], []
        self.ends: list[str | BaseException] = []
        (folder / "server.toml").write_text("port = 1\nsimulated_sites = 2\n")
        for name in ("require_reachable", "submit", "wait", "stop"):
            monkeypatch.setattr(launch, name, getattr(self, name))

    def require_reachable(self, folder):
        """It answers."""

    def submit(self, folder, config):
        self.submitted.append((config["run"], json.loads(config["study"])["study"]["seed"]))
        return 70 + len(self.submitted)

    def wait(self, folder, run_id, on_line):
        on_line("INFO :      not for people")
        on_line("INFO :      fedthorax: round 1 of 2")
        end = self.ends.pop(0) if self.ends else "finished:completed"
        if isinstance(end, BaseException):
            raise end
        return end

    def stop(self, folder, run_id):
        self.stopped.append(run_id)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Server:
    return Server(monkeypatch, tmp_path)


def study_file(folder: Path, text: str = STUDY, name: str = "study.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_one_run_is_planned_for_each_file_and_seed(tmp_path):
    plain = study_file(tmp_path, STUDY.replace("seeds = [3, 4]", "seed = 9"), "plain.toml")
    planned = plan([study_file(tmp_path), plain])
    assert [each.study.seed for each in planned] == [3, 4, 9]
    assert all(each.study.seeds == () for each in planned)


@pytest.mark.parametrize(
    ("right", "wrong", "code", "says"),
    [
        ("rounds = 2", "rounds = 2\nruonds = 3", "E_SETTINGS_KEY", "study.toml.*study.ruonds"),
        ("[3, 4]", "[3, 4, 3]", "E_SETTINGS_KEY", "study.toml.*study.seeds"),
        ("FedAvgM", "FedAgvM", "E_STRATEGY", "FedAvg"),
        ('name = "FedAvgM"', 'name = "FedAvgM"\noptions = {mu = 1}', "E_STRATEGY_OPTION", "server_momentum"),
        ('name = "FedAvgM"', 'name = "FedProx"', "E_STRATEGY_OPTION", "proximal_mu"),
        ('"FedAvgM"', '"Bulyan"\noptions = {num_malicious_nodes = 1}', "E_STRATEGY_SITES", "7"),
    ],
)
def test_every_file_is_checked_before_a_run_starts(tmp_path, server, right, wrong, code, says):
    good, bad = study_file(tmp_path, name="good.toml"), study_file(tmp_path, STUDY.replace(right, wrong))
    with pytest.raises(Refusal, match=f"{code}: .*{says}"):
        launch_all(plan([good, bad]), tmp_path, print)
    assert server.submitted == []


def test_unknown_strategy_is_refused_with_the_name_of_its_file(tmp_path):
    with pytest.raises(Refusal) as caught:
        plan([study_file(tmp_path, STUDY.replace("FedAvgM", "FedAgvM"))])
    assert str(tmp_path / "study.toml") in caught.value.private


def test_strategy_minimum_is_checked_against_sites_per_round(tmp_path):
    text = STUDY.replace("sites = 3\n", "sites = 9\nsites_per_round = 4\n").replace('"FedAvgM"', '"Krum"')
    wrong = study_file(tmp_path, text + "options = { num_malicious_nodes = 1 }\n")
    with pytest.raises(Refusal, match="E_STRATEGY_SITES"):
        plan([wrong])
    assert plan([study_file(tmp_path, wrong.read_text().replace("round = 4", "round = 5"))])


def test_folder_of_sites_is_expanded_to_its_sites(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(launch, "simulation_server", lambda server, sites: played.append(sites))
    for name in ("b", "a"):
        (tmp_path / "sites" / name).mkdir(parents=True)
        (tmp_path / "sites" / name / "site.toml").touch()
    one = tmp_path / "sites" / "a"
    launch.server_of(tmp_path / "server", [tmp_path / "sites"])
    launch.server_of(tmp_path / "server", [one, tmp_path / "absent"])
    assert played == [[one, tmp_path / "sites" / "b"], [one, tmp_path / "absent"]]


def test_runs_of_one_command_form_a_group(tmp_path, server):
    said, began = [], []
    done = launch_all(plan([study_file(tmp_path)]), tmp_path, said.append, began=began.append)
    assert [seed for _, seed in server.submitted] == [3, 4]
    assert began == run_names(tmp_path) == [each.run for each in done]
    notes = [read_note(tmp_path / "runs" / name) for name in began]
    assert {note.ended for note in notes} == {"completed"}
    assert [note.run_id for note in notes] == [71, 72]
    (group,) = {note.group for note in notes}
    assert group.startswith("trial-")
    assert f"group {group}" in said[0]
    assert "round 1 of 2" in said
    assert not any("not for people" in line for line in said)


def test_single_run_has_only_the_group_that_is_given(tmp_path, server):
    for group in ("", "mine"):
        (done,) = launch_all([study()], tmp_path, print, group=group)
        assert read_note(tmp_path / "runs" / done.run).group == group


def test_failed_run_ends_its_group(tmp_path, server):
    server.ends, said = ["finished:failed"], []
    with pytest.raises(Refusal, match="E_RUN_FAILED") as caught:
        launch_all(plan([study_file(tmp_path)]), tmp_path, said.append)
    assert "not for people" in caught.value.private, "the operator of the server sees the end of its log"
    assert len(server.submitted) == 1
    assert said[-1] == "not started of the group's 2 runs: 1"
    (name,) = run_names(tmp_path)
    assert read_note(tmp_path / "runs" / name).ended == "failed"


def test_refusal_of_a_run_is_shown_without_a_stack_trace(tmp_path, server, monkeypatch):
    def wait(folder, run_id, on_line):
        on_line("INFO :      fedthorax: E_SITES_UNLIKE: sites differ in version: north 0.1, south 0.2. Install one.")
        on_line("Traceback (most recent call last):")
        return "finished:failed"

    monkeypatch.setattr(launch, "wait", wait)
    said = []
    with pytest.raises(Refusal, match="E_RUN_FAILED") as caught:
        launch_all([study()], tmp_path, said.append)
    assert any("E_SITES_UNLIKE" in line for line in said)
    assert "Traceback" not in caught.value.private


def test_run_that_a_colleague_stopped_did_not_fail(tmp_path, server):
    server.ends = ["finished:stopped"]
    with pytest.raises(Refusal, match="E_RUN_STOPPED"):
        launch_all([study()], tmp_path, print)
    (name,) = run_names(tmp_path)
    assert read_note(tmp_path / "runs" / name).ended == "stopped"


def test_ctrl_c_stops_the_run_and_shows_how_to_resume(tmp_path, server):
    server.ends, said = [KeyboardInterrupt()], []
    with pytest.raises(KeyboardInterrupt):
        launch_all([study()], tmp_path, said.append)
    (name,) = run_names(tmp_path)
    assert server.stopped == [71]
    assert f"fedthorax study resume {name} --server {tmp_path}` with the same --simulate" in said[-1]
    assert read_note(tmp_path / "runs" / name).ended == "stopped"


def test_resumed_run_keeps_its_name(tmp_path, server):
    write_run(tmp_path, "trial-a", ended="stopped", group="seeds", run_id=5)
    assert resume("trial-a", tmp_path, print).run == "trial-a"
    assert server.submitted == [("trial-a", 1)]
    note = read_note(tmp_path / "runs" / "trial-a")
    assert (note.run_id, note.ended, note.group) == (71, "completed", "seeds")


def test_running_run_is_not_resumed(tmp_path, server, monkeypatch):
    write_run(tmp_path, "trial-a", ended=None, run_id=5)
    monkeypatch.setattr(launch, "state", lambda *_: "running")
    with pytest.raises(Refusal, match="E_RUN_UNDER_WAY"):
        resume("trial-a", tmp_path, print)
    assert server.submitted == []


def test_complete_run_is_not_resumed(tmp_path, server):
    """Its hospitals would answer the last questions again, and MLflow would get a second version of the same model."""
    write_run(tmp_path, "trial-a", ended="completed", run_id=5)
    with pytest.raises(Refusal, match="E_RUN_COMPLETE"):
        resume("trial-a", tmp_path, print)
    assert server.submitted == []


def test_only_runs_that_are_not_complete_are_unfinished(tmp_path):
    for name, ended in (("a", "completed"), ("b", None), ("c", "stopped"), ("d", "failed")):
        write_run(tmp_path, name, ended=ended, run_id=5)
    assert sorted(unfinished(tmp_path)) == ["b", "c", "d"]


def test_follow_waits_for_the_end_or_reports_how_the_run_ended(tmp_path, server, monkeypatch):
    write_run(tmp_path, "trial-a", ended=None, run_id=5)
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(launch, "state", lambda *_: "running")
        assert follow("trial-a", tmp_path, said.append).run == "trial-a"
    assert said == ["round 1 of 2"]
    assert follow("trial-a", tmp_path, said.append).run == "trial-a", "the run has already ended"
    assert len(said) == 1
    write_run(tmp_path, "trial-b", ended="stopped")
    with pytest.raises(Refusal, match="E_RUN_STOPPED"):
        follow("trial-b", tmp_path, said.append)


def test_follow_reads_the_note_when_the_simulation_server_is_gone(tmp_path, server, monkeypatch):
    folder = write_run(tmp_path, "trial-a", ended=None, run_id=5)
    states = iter(["running", "completed"])
    monkeypatch.setattr(launch, "state", lambda *_: next(states))

    def wait(*_):
        write_note(folder, read_note(folder).model_copy(update={"ended": "completed"}))
        raise Refusal(reasons.SERVER_UNREACHABLE, port=1)

    monkeypatch.setattr(launch, "wait", wait)
    assert follow("trial-a", tmp_path, print).run == "trial-a"


def test_server_that_does_not_answer_leaves_no_run(tmp_path):
    (tmp_path / "server.toml").write_text("port = 1\nsimulated_sites = 2\n")
    with pytest.raises(Refusal, match="E_SERVER_UNREACHABLE") as refused:
        launch_all(plan([study_file(tmp_path)])[:1], tmp_path, print)
    assert str(tmp_path) in refused.value.private, "the remedy names this folder DIR"
    assert run_names(tmp_path) == [] and not (tmp_path / "runs").exists()


def test_follow_reports_an_unreachable_server(tmp_path, server, monkeypatch):
    write_run(tmp_path, "trial-a", ended=None, run_id=5)
    monkeypatch.setattr(launch, "state", lambda *_: "running")
    server.ends = [Refusal(reasons.SERVER_UNREACHABLE, port=1)]
    with pytest.raises(Refusal, match="E_SERVER_UNREACHABLE"):
        follow("trial-a", tmp_path, print)


def test_only_a_running_run_can_be_stopped(tmp_path, server, monkeypatch):
    write_run(tmp_path, "trial-a", ended="completed")
    with pytest.raises(Refusal, match=r"E_RUN_ENDED: .*completed"):
        stop_run("trial-a", tmp_path)
    write_run(tmp_path, "trial-b", ended=None, run_id=5)
    monkeypatch.setattr(launch, "state", lambda *_: "running")
    stop_run("trial-b", tmp_path)
    assert server.stopped == [5]
    assert read_note(tmp_path / "runs" / "trial-b").ended == "stopped"


# --- on a server of hospitals -----------------------------------------------------------------------------

MEAN = '[study]\nname = "trial"\nrounds = 3\nsites = 3\nquorum = 3\nseed = 5\n[strategy]\nname = "FedAvg"\n'
TOO_MANY = MEAN.replace("rounds = 3", "rounds = 167").replace("seed = 5", "seeds = [1, 2, 3]")
MASKED = MEAN + "[aggregation]\nsecure = true\n"


@pytest.fixture
def hospitals(server) -> Server:
    (server.folder / "server.toml").write_text("port = 1\n")
    return server


def warned(folder: Path, text: str, code: str = "W_UPDATES_SEEN") -> list[str]:
    said: list[str] = []
    launch_all(plan([study_file(folder, text)]), folder, said.append)
    return [line for line in said if line.startswith(code)]


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedYogi", "FedAdagrad"])
def test_mean_without_masks_brings_a_warning(tmp_path, hospitals, name):
    options = "options = { proximal_mu = 0.1 }" if name == "FedProx" else ""
    (line,) = warned(tmp_path, MEAN.replace('"FedAvg"', f'"{name}"\n{options}'))
    assert name in line and "the server sees each hospital's update" in line
    assert "docs/choosing-protection.md" in line


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("FedAvg", "CenteredClip"),
        ("FedAvg", "FedMedian"),
        ("sites = 3\nquorum = 3", "sites = 2\nquorum = 2"),
        ("sites = 3", "sites = 3\nsynthetic = true"),
        ("sites = 3", "sites = 5\nsites_per_round = 3"),
        ('"FedAvg"', '"FedAvg"\n[evaluation]\nlocal_models = true'),
        ('"FedAvg"', '"FedAvg"\n[evaluation]\nleave_one_out = true'),
        ('"FedAvg"', '"FedAvg"\n[evaluation]\nfine_tune = true'),
        ('"FedAvg"', '"FedAvg"\n[wire]\nprecision = "float16"'),
        ('"FedAvg"', '"FedAvg"\n[aggregation]\nsecure = true'),
    ],
)
def test_study_that_cannot_mask_or_need_not_brings_no_warning(tmp_path, hospitals, right, wrong):
    assert warned(tmp_path, MEAN.replace(right, wrong)) == []


def test_simulation_brings_no_warning(tmp_path, server):
    assert warned(tmp_path, MEAN) == []
    assert warned(tmp_path, TOO_MANY, "W_SITE_LIMITS") == []


def test_runs_that_ask_for_more_than_hospitals_allow_bring_one_warning(tmp_path, hospitals):
    (line,) = warned(tmp_path, TOO_MANY, "W_SITE_LIMITS")
    assert "501 training rounds (max_rounds_a_day = 500)" in line
    assert warned(tmp_path, MEAN, "W_SITE_LIMITS") == []


@pytest.mark.parametrize("change", [("FedAvg", "FedAvgM"), ("rounds = 3", "rounds = 9"), ("trial", "other")])
def test_masked_runs_of_one_seed_are_refused_before_any_starts(tmp_path, hospitals, change):
    files = [study_file(tmp_path, MASKED), study_file(tmp_path, MASKED.replace(*change), "other.toml")]
    with pytest.raises(Refusal, match=r"E_SEED_USED: .*seed 5.*another run of this command"):
        launch_all(plan(files), tmp_path, print)
    assert hospitals.submitted == []
    launch_all(
        plan([files[0], study_file(tmp_path, MASKED.replace("seed = 5", "seed = 6"), "c.toml")]), tmp_path, print
    )


def test_seed_of_an_earlier_masked_run_is_refused(tmp_path, hospitals):
    (masked,) = plan([study_file(tmp_path, MASKED)])
    write_run(tmp_path, "lost", of=masked, history=[entry(1, lost=True, lost_for="E_SECAGG_TOO_FEW")], ended="failed")
    (plain,) = plan([study_file(tmp_path, MEAN)])
    write_run(tmp_path, "plain", of=plain, history=[entry(1)])
    launch_all([masked], tmp_path, print)
    write_run(tmp_path, "summed", of=masked, history=[entry(1)], ended="stopped")
    with pytest.raises(Refusal, match=r"E_SEED_USED: .*the run summed"):
        launch_all([masked], tmp_path, print)
    wider = masked.model_copy(update={"network": masked.network.model_copy(update={"widen_factor": 0.5})})
    launch_all([wider, plain], tmp_path, print)


SUMMED = MASKED.replace("FedAvg", "CenteredClip").replace("secure = true", "summed_answers = true")


def test_study_whose_answers_are_summed_is_repeated_with_another_seed_only(tmp_path, hospitals):
    (summed,) = plan([study_file(tmp_path, SUMMED)])
    said = []
    launch_all([summed], tmp_path, said.append)
    assert any("approved the list of hospitals" in line for line in said)
    write_run(tmp_path, "earlier", of=summed, history=[entry(1)])
    with pytest.raises(Refusal, match=r"E_SEED_USED: .*seed 5.*the run earlier"):
        launch_all(plan([study_file(tmp_path, SUMMED.replace("trial", "other"))]), tmp_path, print)
    launch_all(plan([study_file(tmp_path, SUMMED.replace("seed = 5", "seed = 6"))]), tmp_path, print)
    # Another study begins with the same model, and goes on with others.
    launch_all(plan([study_file(tmp_path, SUMMED.replace("rounds = 3", "rounds = 9"))]), tmp_path, print)


def test_release_is_the_first_model_of_one_masked_run_whatever_the_seed(tmp_path, hospitals):
    text = MASKED.replace("seed = 5", f'seeds = [5, 6]\nbegin_from = "{"a" * 64}"')
    with pytest.raises(Refusal, match="E_SEED_USED"):
        launch_all(plan([study_file(tmp_path, text)]), tmp_path, print)


def test_masked_runs_of_one_seed_can_be_simulated(tmp_path, server):
    launch_all(plan([study_file(tmp_path, MASKED), study_file(tmp_path, MASKED, "b.toml")]), tmp_path, print)
    assert len(server.submitted) == 2
