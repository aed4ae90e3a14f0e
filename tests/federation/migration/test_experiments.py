"""Tests of copying MLflow experiments between stores: metrics, nested runs, artifacts and the registered model."""

import json
import math
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from federation.migration.experiments import Experiment, answering, connect, read_experiment, save_experiment
from federation.migration.mlflow_restore import is_there, load_experiments, restoring
from models.refusal import Refusal

pytestmark = pytest.mark.slow

LOSSES = [1 / 3, math.nan, math.inf, -1e-300, 0.1 + 0.2]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty experiment store, created once: this takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


def store(folder: Path, empty_database: Path) -> MlflowClient:
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return connect(f"sqlite:///{folder / 'mlflow.db'}")


def fill(client: MlflowClient, folder: Path) -> None:
    """Create a group of two runs and an unrelated experiment. One run is completed and has three model versions."""
    number = client.create_experiment("trial", (folder / "artifacts").as_uri(), {"note": "é"})
    group = client.create_run(number, run_name="seeds", tags={"mlflow.user": "fedthorax"}).info.run_id
    runs = []
    for name in ("trial-1", "trial-2"):
        run = client.create_run(number, 1_000, {"mlflow.parentRunId": group, "ledger.north": "3 0a0a"}, name)
        runs.append(run.info.run_id)
        values = [Metric("north/loss", value, 2_000 + step, step) for step, value in enumerate(LOSSES)]
        values += [Metric("mean_loss", k / 7, 3_000 + k, k) for k in range(1_200)]
        client.log_batch(runs[-1], metrics=values[:1000], params=[Param("study.rounds", "3")])
        client.log_batch(runs[-1], metrics=values[1000:], params=[Param(f"p{k}", str(k)) for k in range(90)])
        client.log_batch(runs[-1], params=[Param(f"q{k}", "x" * 500) for k in range(90)])
    files = folder / "files" / "model" / "of two words"
    files.mkdir(parents=True)
    (files / "weights").write_bytes(bytes(range(256)))
    client.log_artifacts(runs[0], str(folder / "files"))
    client.set_terminated(runs[0], "FINISHED", 9_000)
    client.create_registered_model("trial", {"kind": "research"}, "a model")
    for sha256 in ("aa", "bb", "cc", "dd"):
        client.create_model_version("trial", f"runs:/{runs[0]}/model", runs[0], {"sha256": sha256}, description=sha256)
    client.delete_model_version("trial", "2")
    client.set_registered_model_alias("trial", "candidate", "4")
    client.set_registered_model_alias("trial", "released", "1")
    other = client.create_experiment("somebody-elses", (folder / "artifacts").as_uri())
    client.create_run(other, run_name="trial-1")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> MlflowClient:
    """A store with a study. Tests must not change it."""
    folder = tmp_path_factory.mktemp("stores") / "old"
    client = store(folder, empty_database)
    fill(client, folder)
    return client


@pytest.fixture(scope="module")
def saved(old: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of the old store as files. Tests must not change them."""
    folder = tmp_path_factory.mktemp("saved")
    experiment = read_experiment(old, "trial")
    assert experiment is not None
    save_experiment(old, experiment, folder / "trial")
    return folder


@pytest.fixture
def new(tmp_path: Path, empty_database: Path) -> MlflowClient:
    return store(tmp_path / "new", empty_database)


def test_only_the_studys_own_experiment_is_read(old: MlflowClient, saved: Path):
    (experiment,) = load_experiments(saved)
    assert sorted(run.name for run in experiment.runs) == ["seeds", "trial-1", "trial-2"]
    assert experiment.amount().model_dump() == {
        **{"runs": 3, "parameters": 2 * 181, "figures": 2 * (1_200 + len(LOSSES)), "artifacts": 1, "versions": 3}
    }
    assert read_experiment(old, "never-run") is None


def test_import_restores_runs_metrics_artifacts_and_model_versions(saved: Path, new: MlflowClient, tmp_path: Path):
    (experiment,) = load_experiments(saved)
    with restoring(new, [experiment], saved, (tmp_path / "kept").as_uri()) as made:
        pass
    number = made.experiments["trial"]
    assert new.get_experiment(number).tags["note"] == "é"
    runs = {run.info.run_name: run for run in new.search_runs([number])}
    assert set(runs) == {"seeds", "trial-1", "trial-2"}
    assert {run.info.run_id for run in runs.values()} == set(made.runs.values())
    one, two = runs["trial-1"], runs["trial-2"]
    assert (one.info.status, one.info.start_time, one.info.end_time) == ("FINISHED", 1_000, 9_000)
    assert (two.info.status, two.info.end_time) == ("RUNNING", None)
    for run in (one, two):
        assert run.data.tags["mlflow.parentRunId"] == runs["seeds"].info.run_id
        assert run.data.tags["ledger.north"] == "3 0a0a"
        history = new.get_metric_history(run.info.run_id, "north/loss")
        back = {m.step: (m.timestamp, m.value) for m in history}
        assert back[0] == (2_000, 1 / 3)
        assert math.isnan(back[1][1])
        assert back[3] == (2_003, -1e-300)
        assert back[4] == (2_004, 0.1 + 0.2)
        assert run.data.metrics["mean_loss"] == 1199 / 7
        assert len(new.get_metric_history(run.info.run_id, "mean_loss")) == 1_200
        assert len(run.data.params) == 181

    versions = {int(v.version): v for v in new.search_model_versions("name = 'trial'")}
    assert {number: v.tags["sha256"] for number, v in versions.items()} == {1: "aa", 3: "cc", 4: "dd"}
    assert versions[3].description == "cc"
    assert new.get_model_version_by_alias("trial", "candidate").version == 4
    released = new.get_model_version_by_alias("trial", "released")
    assert (released.version, released.run_id) == (1, one.info.run_id)
    model = new.get_registered_model("trial")
    assert (model.tags, model.description) == ({"kind": "research"}, "a model")
    (weights,) = (tmp_path / "kept").rglob("model/of two words/weights")
    assert weights.read_bytes() == bytes(range(256))
    assert Path(new.download_artifacts(one.info.run_id, "model/of two words/weights")).read_bytes() == bytes(range(256))
    assert not new.get_experiment_by_name("somebody-elses")


def test_later_failure_removes_the_import_and_a_second_try_succeeds(saved: Path, new: MlflowClient, tmp_path: Path):
    experiments = load_experiments(saved)
    with pytest.raises(KeyboardInterrupt), restoring(new, experiments, saved, (tmp_path / "kept").as_uri()):
        raise KeyboardInterrupt
    assert new.get_experiment_by_name("trial") is None
    assert new.search_registered_models() == []
    assert [e.name for e in new.search_experiments()] == ["Default"]
    with restoring(new, experiments, saved, (tmp_path / "kept").as_uri()):
        pass
    back = read_experiment(new, "trial")
    assert back is not None and back.amount() == experiments[0].amount()


def test_metric_value_that_the_store_changes_is_detected(
    saved: Path, new: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """For example, a store that keeps fewer digits."""
    experiments = load_experiments(saved)
    real = MlflowClient.get_metric_history

    def rounded(self: MlflowClient, run_id: str, key: str):
        found = real(self, run_id, key)
        return [Metric(m.key, float(f"{m.value:.15g}"), m.timestamp, m.step) for m in found]

    monkeypatch.setattr(MlflowClient, "get_metric_history", rounded)
    place = (tmp_path / "kept").as_uri()
    with pytest.raises(Refusal, match="E_MOVE_LOST"), restoring(new, experiments, saved, place):
        raise AssertionError("it is not handed on")
    assert new.get_experiment_by_name("trial") is None


def test_mlflow_shared_by_both_servers_is_detected(old: MlflowClient, saved: Path, new: MlflowClient):
    (experiment,) = load_experiments(saved)
    assert is_there(old, experiment)
    assert not is_there(new, experiment)


@pytest.mark.parametrize("other", ["experiment", "deleted experiment", "model"])
def test_existing_experiment_or_model_of_the_same_name_is_refused(saved: Path, new: MlflowClient, other: str):
    if other == "model":
        new.create_registered_model("trial")
    else:
        number = new.create_experiment("trial")
        if "deleted" in other:
            new.delete_experiment(number)
    (experiment,) = load_experiments(saved)
    with pytest.raises(Refusal, match="E_MLFLOW_TAKEN"):
        is_there(new, experiment)


def test_model_version_stored_outside_the_runs_is_refused(new: MlflowClient, tmp_path: Path):
    number = new.create_experiment("trial", (tmp_path / "a").as_uri())
    run = new.create_run(number).info
    new.create_registered_model("trial")
    (tmp_path / "a" / run.run_id / "artifacts" / "model").mkdir(parents=True)
    new.create_model_version("trial", f"{run.artifact_uri}/model", run.run_id)  # a source in the run's artifacts
    experiment = read_experiment(new, "trial")
    assert experiment is not None and experiment.model is not None
    assert (experiment.model.versions[0].run, experiment.model.versions[0].path) == (run.run_id, "model")
    (tmp_path / "b").mkdir()
    new.create_model_version("trial", (tmp_path / "b").as_uri())
    with pytest.raises(Refusal, match="E_MLFLOW_SOURCE") as refused:
        read_experiment(new, "trial")
    assert "version 2 of the model trial" in str(refused.value)


def test_altered_artifact_is_reported_as_damage(saved: Path, tmp_path: Path):
    shutil.copytree(saved, tmp_path / "saved")
    (weights,) = (tmp_path / "saved").rglob("weights")
    weights.write_bytes(b"fewer")
    with pytest.raises(Refusal, match="E_ARCHIVE_DAMAGED"):
        load_experiments(tmp_path / "saved")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "../evil", "tags": {}, "runs": [], "model": null}'])
def test_invalid_experiment_file_is_reported_as_damage(tmp_path: Path, text: str):
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "experiment.json").write_text(text)
    with pytest.raises(Refusal, match="E_ARCHIVE_DAMAGED"):
        load_experiments(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value"), [("run", "status", "WEIRD"), ("run", "start_ms", 10**30), ("version", "run", "unknown")]
)
def test_experiment_that_no_mlflow_can_hold_is_reported_as_damage(
    saved: Path, tmp_path: Path, part: str, field: str, value: object
):
    shutil.copytree(saved, tmp_path / "saved")
    file = tmp_path / "saved" / "trial" / "experiment.json"
    found = json.loads(file.read_text())
    (found["runs"] if part == "run" else found["model"]["versions"])[0][field] = value
    file.write_text(json.dumps(found))
    with pytest.raises(Refusal, match="E_ARCHIVE_DAMAGED"):
        load_experiments(tmp_path / "saved")


def test_mlflow_error_becomes_a_refusal():
    with pytest.raises(Refusal, match="E_MLFLOW_SILENT"), answering():
        raise MlflowException("the connection was refused")


def test_json_keeps_every_digit_of_a_metric():
    run = {"id": "a", "name": "r", "status": "RUNNING", "start_ms": 1, "end_ms": None, "parameters": {}, "tags": {}}
    figures = {"x": [(1, 2, 0.1 + 0.2), (2, 2, 5e-324)]}
    whole = Experiment.model_validate(
        {"name": "t", "tags": {}, "runs": [{**run, "figures": figures, "artifacts": {}}], "model": None}
    )
    assert Experiment.model_validate_json(whole.text()) == whole
