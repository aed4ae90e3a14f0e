"""Tests of MLflow tracking: what is recorded, and what happens while MLflow does not respond."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED
from requests.utils import get_environ_proxies

from federation.protocol.reply_validation import LedgerHead
from federation.protocol.study_config import StrategyTable, Study
from federation.runs import tracking_queue
from federation.runs.run_folder import RunNote, write_note
from federation.runs.tracking import (
    CANDIDATE,
    GROUP,
    Tracker,
    attach,
    hand_over_rest,
    how_to_see,
    params,
    tracking_uri,
)
from federation.runs.tracking_queue import SPOOL
from federation.strategy.round_report import RoundReport
from federation.system.process import QUIET
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal

STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2}})

BEGUN = datetime(2026, 3, 1, tzinfo=UTC)


def report(number: int) -> RoundReport:
    return RoundReport(
        round=number,
        sampled=(1, 2),
        valid=(1,),
        refused={2: "E_SITE_MISSING"},
        metrics={1: {"train_loss": 0.5 / number, "num-examples": 77}},
        capped=(),
        aggregated={"train_loss": 0.5 / number},
        lost_for=None,
        ledger={1: LedgerHead("0a" * 32, number)},
        seconds=1.5,
        bytes_up=10,
        bytes_down=20,
    )


class Outage:
    """Makes MLflow fail while `is_on` is true."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_on = False
        for name in ("get_experiment_by_name", "log_batch", "log_artifact", "log_artifacts", "set_terminated"):
            patch.setattr(MlflowClient, name, self.watched(getattr(MlflowClient, name)))

    def watched(self, real):
        def call(*args, **kwargs):
            if self.is_on:
                raise MlflowException("the connection was refused")
            return real(*args, **kwargs)

        return call


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty experiment store, created once: this takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    folder = tmp_path / "runs" / "trial-1"
    (folder / "release").mkdir(parents=True)
    (folder / "study.json").write_text(STUDY.model_dump_json())
    write_note(folder, RunNote(begun=BEGUN))
    (folder / "release" / "card.md").write_text("a card")
    return tmp_path


def a_study(
    server: Path,
    said: list[str],
    outage: Outage,
    off: set[int] = frozenset(),
    clock: Callable[[], float] = time.time,
) -> str | None:
    """Track three rounds and a candidate. MLflow fails in the rounds in `off` (0: the start, 4: the end)."""
    tracker = Tracker(server, STUDY, "trial-1", said.append, clock=clock)
    outage.is_on = 0 in off
    tracker.begin({"synthetic": "false"})
    for number in (1, 2, 3):
        outage.is_on = number in off
        tracker.log_round(report(number), {1: "north"})
    outage.is_on = 4 in off
    tracker.log_final({"mean_auroc_severe": 0.8})
    version = tracker.register(server / "runs" / "trial-1" / "release", "ab" * 32)
    tracker.end(completed=True)
    return version


def recorded(server: Path):
    client = MlflowClient(tracking_uri(server), tracking_uri(server))
    experiment = client.get_experiment_by_name("trial")
    (run,) = client.search_runs([experiment.experiment_id])
    losses = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "north/train_loss")}
    return client, run, losses


def assert_all_is_recorded(server: Path):
    client, run, losses = recorded(server)
    assert losses == {1: 0.5, 2: 0.25, 3: 0.5 / 3}
    assert run.info.status == "FINISHED"
    assert run.data.params["study.rounds"] == "3"
    assert run.data.tags["synthetic"] == "false"
    assert run.data.tags["mlflow.user"] == "fedthorax"
    assert run.data.tags["ledger.north"] == f"3 {'0a' * 32}"
    assert run.data.metrics["final/mean_auroc_severe"] == 0.8
    assert "77" not in str(run.data.metrics)  # no site's number of patients is recorded
    version = client.get_model_version_by_alias("trial", CANDIDATE)
    assert "model.json" in version.description and "severe" in version.description
    experiment = client.get_experiment_by_name("trial")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert version.tags["sha256"] == "ab" * 32
    assert [f.path for f in client.list_artifacts(run.info.run_id, "model")] == ["model/MLmodel", "model/card.md"]
    assert not (server / "runs" / "trial-1" / SPOOL).exists()


def test_study_is_recorded(server, monkeypatch):
    said: list[str] = []
    assert a_study(server, said, Outage(monkeypatch)) == "1"
    assert_all_is_recorded(server)
    assert said == []


@pytest.mark.slow
@pytest.mark.parametrize("off", [{0}, {0, 1}, {2}, {1, 2, 3}, {0, 1, 2, 3}])
def test_data_queued_during_an_outage_is_uploaded_afterwards(server, monkeypatch, off):
    said: list[str] = []
    assert a_study(server, said, Outage(monkeypatch), off) == "1"
    assert_all_is_recorded(server)
    assert [line[:17] for line in said] == ["W_TRACKING_SILENT", "MLflow responds a"]


def test_charts_of_final_figures_are_bars_and_those_of_rounds_are_curves(server, monkeypatch):
    """MLflow's page chooses a curve for a metric whose last step is 1 or more, and otherwise a bar."""
    a_study(server, [], Outage(monkeypatch))
    client, run, _ = recorded(server)
    steps = {name: [m.step for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    assert {tuple(found) for name, found in steps.items() if name.startswith("final/")} == {(0,)}
    assert {tuple(found) for name, found in steps.items() if not name.startswith("final/")} == {(1, 2, 3)}


def test_registered_version_has_the_schema_of_the_networks_inputs_and_outputs(server, monkeypatch):
    a_study(server, [], Outage(monkeypatch))
    client, run, _ = recorded(server)
    found = Model.load(client.download_artifacts(run.info.run_id, "model/MLmodel", str(server)))
    taken = {each.name: each.shape for each in found.signature.inputs.inputs}
    network = build_network(NetworkSettings(), seed=1)
    values = {name: torch.zeros(1, *shape[1:]) for name, shape in taken.items()}
    logits = network(values["image"], values["tabular"])
    assert taken["image"][2:] == STUDY.preprocessing.shape
    assert found.signature.outputs.inputs[0].shape == (-1, *logits.shape[1:])
    assert found.metadata["outputs"] == ["pcr_positive", "severe"]
    assert found.flavors == {}  # MLflow cannot open it: it cannot prepare a scan


def test_data_still_queued_at_the_end_is_uploaded_later(server, monkeypatch):
    said: list[str] = []
    outage = Outage(monkeypatch)
    assert a_study(server, said, outage, {3, 4}) is None
    spool = server / "runs" / "trial-1" / SPOOL
    assert [json.loads(line)["what"] for line in spool.read_text().splitlines()] == [
        *("figures", "figures", "version", "end")
    ]
    outage.is_on = False
    hand_over_rest(server, said.append)
    assert_all_is_recorded(server)
    assert said[-1] == "MLflow responds again; the queued data is uploaded"


def test_metric_times_are_those_of_the_rounds_not_of_the_upload(server, monkeypatch):
    seconds = itertools.count(1)
    a_study(server, [], Outage(monkeypatch), {1, 2}, clock=lambda: next(seconds))
    client, run, _ = recorded(server)
    history = client.get_metric_history(run.info.run_id, "round_sites")
    assert {m.step: m.timestamp for m in history} == {1: 1000, 2: 2000, 3: 3000}


@pytest.mark.slow
def test_damaged_database_is_treated_as_an_outage(server, monkeypatch):
    """SQLite raises its own error. The study continues, and restoring the file is enough."""
    database = server / "mlflow.db"
    intact = database.read_bytes()
    database.write_bytes(b"this is no database" * 100)
    said: list[str] = []
    tracker = Tracker(server, STUDY, "trial-1", said.append)
    tracker.begin({"synthetic": "false"})
    tracker.log_round(report(1), {1: "north"})
    assert [line[:17] for line in said] == ["W_TRACKING_SILENT"]
    database.write_bytes(intact)
    tracker.log_round(report(2), {1: "north"})
    _, _, losses = recorded(server)
    assert losses == {1: 0.5, 2: 0.25}


def test_data_that_mlflow_rejects_stays_queued_and_the_study_goes_on(server):
    said: list[str] = []
    tracker = Tracker(server, STUDY, "trial-1", said.append)
    tracker.log_final({"a name\nthat cannot be": 1.0})
    tracker.log_round(report(1), {1: "north"})
    assert [line[:18] for line in said] == ["W_TRACKING_REFUSED"]
    assert len((server / "runs" / "trial-1" / SPOOL).read_text().splitlines()) == 2


def other_run(server: Path) -> Path:
    folder = server / "runs" / "trial-2"
    shutil.copytree(server / "runs" / "trial-1", folder)
    (folder / SPOOL).unlink(missing_ok=True)
    return folder


def test_run_deleted_in_mlflow_ends_no_study_and_is_continued_when_it_is_restored(server):
    said: list[str] = []
    tracker = Tracker(server, STUDY, "trial-1", said.append)
    tracker.begin({})
    client, run, _ = recorded(server)
    client.delete_run(run.info.run_id)
    tracker.log_round(report(1), {1: "north"})
    tracker.log_round(report(2), {1: "north"})
    assert [line[:18] for line in said] == ["W_TRACKING_REFUSED"]
    client.restore_run(run.info.run_id)
    tracker.log_round(report(3), {1: "north"})
    assert said[-1] == "MLflow responds again; the queued data is uploaded"
    assert recorded(server)[2] == {1: 0.5, 2: 0.25, 3: 0.5 / 3}


def test_deleted_experiment_ends_no_study(server):
    Tracker(server, STUDY, "trial-1", print).begin({})
    client = MlflowClient(tracking_uri(server), tracking_uri(server))
    experiment = client.get_experiment_by_name("trial").experiment_id
    client.delete_experiment(experiment)
    other_run(server)
    said: list[str] = []
    other = Tracker(server, STUDY, "trial-2", said.append)
    other.begin({})
    hand_over_rest(server, said.append)
    assert said[0].startswith("W_TRACKING_REFUSED: ") and "trial-2" in said[0]
    client.restore_experiment(experiment)
    other.log_round(report(1), {1: "north"})
    assert not (server / "runs" / "trial-2" / SPOOL).exists()


@pytest.mark.parametrize("end", [b'{"what": "fig', b"\0" * 40, b'["figures"]\n'], ids=["half", "zeros", "list"])
def test_damaged_line_of_the_queue_is_left_out_and_said(server, monkeypatch, end):
    outage = Outage(monkeypatch)
    a_study(server, [], outage, {4})
    with (server / "runs" / "trial-1" / SPOOL).open("ab") as spool:
        spool.write(end)
    other_run(server)
    outage.is_on = False
    said: list[str] = []
    hand_over_rest(server, said.append)
    assert [line.split(":")[0] for line in said] == [
        "W_TRACKING_DAMAGED",
        "MLflow responds again; the queued data is uploaded",
    ]
    assert_all_is_recorded(server)


def test_damaged_study_of_an_earlier_run_does_not_hinder_others(server, monkeypatch):
    outage = Outage(monkeypatch)
    a_study(server, [], outage, {4})
    broken = other_run(server)
    shutil.copy(server / "runs" / "trial-1" / SPOOL, broken / SPOOL)
    (broken / "study.json").write_text("{}")
    (server / "runs" / "trial-2").rename(server / "runs" / "a-first")
    outage.is_on = False
    said: list[str] = []
    hand_over_rest(server, said.append)
    assert said[0].startswith("a-first: E_RUN_FILES")
    assert_all_is_recorded(server)


def test_disk_without_space_for_the_queue_ends_no_study(server, monkeypatch):
    """What does not fit is kept in memory, in order, and nothing is uploaded twice."""
    outage = Outage(monkeypatch)
    said: list[str] = []
    tracker = Tracker(server, STUDY, "trial-1", said.append)
    tracker.begin({"synthetic": "false"})
    outage.is_on = True
    tracker.log_round(report(1), {1: "north"})

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as disk:
        disk.setattr(tracking_queue, "write_durably", full)
        tracker.log_round(report(2), {1: "north"})
        tracker.log_round(report(3), {1: "north"})
    outage.is_on = False
    tracker.end(completed=True)
    client, run, losses = recorded(server)
    assert losses == {1: 0.5, 2: 0.25, 3: 0.5 / 3}
    assert len(client.get_metric_history(run.info.run_id, "north/train_loss")) == 3
    assert [line.split(":")[0] for line in said] == [
        "W_TRACKING_SILENT",
        "MLflow responds again; the queued data is uploaded",
    ]


def test_what_another_process_uploaded_is_not_uploaded_again(server, monkeypatch):
    """The next run on this server, a release and an export upload what runs have queued, also of a live run."""
    outage, said = Outage(monkeypatch), []
    live = Tracker(server, STUDY, "trial-1", said.append)
    live.begin({"synthetic": "false"})
    outage.is_on = True
    live.log_round(report(1), {1: "north"})
    live.register(server / "runs" / "trial-1" / "release", "ab" * 32)
    outage.is_on = False
    hand_over_rest(server, print)
    live.log_round(report(2), {1: "north"})
    live.register(server / "runs" / "trial-1" / "release", "ab" * 32)
    client, run, _ = recorded(server)
    assert [version.version for version in client.search_model_versions("name = 'trial'")] == [1]
    assert len(client.get_metric_history(run.info.run_id, "north/train_loss")) == 2


def test_queued_model_is_registered_after_the_server_folder_was_moved(server, monkeypatch, tmp_path_factory):
    outage = Outage(monkeypatch)
    a_study(server, [], outage, {0, 1, 2, 3, 4})
    moved = tmp_path_factory.mktemp("moved") / "server"
    server.rename(moved)
    outage.is_on = False
    hand_over_rest(moved, print)
    assert_all_is_recorded(moved)


def test_model_without_its_folder_is_not_registered_until_the_folder_is_back(server, monkeypatch):
    outage = Outage(monkeypatch)
    a_study(server, [], outage, {4})
    release = server / "runs" / "trial-1" / "release"
    release.rename(server / "away")
    outage.is_on = False
    said: list[str] = []
    hand_over_rest(server, said.append)
    assert [line.split(":")[0] for line in said] == ["W_TRACKING_NO_MODEL"]
    (server / "away").rename(release)
    hand_over_rest(server, said.append)
    assert_all_is_recorded(server)


def test_resumed_study_continues_the_same_mlflow_run(server, monkeypatch):
    outage = Outage(monkeypatch)
    first = Tracker(server, STUDY, "trial-1", lambda _: None)
    first.begin({"synthetic": "false"})
    first.log_round(report(1), {1: "north"})
    first.end(completed=False)
    _, run, _ = recorded(server)
    assert run.info.status == "FAILED"
    a_study(server, [], outage)
    assert_all_is_recorded(server)


def test_wrong_password_is_distinguished_from_an_outage(server, monkeypatch):
    """Queued data is not lost: it is uploaded with the correct password."""
    said: list[str] = []
    tracker = Tracker(server, STUDY, "trial-1", said.append)
    real = MlflowClient.get_experiment_by_name
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", _unauthenticated)
    tracker.begin({})
    assert said[0].startswith("W_TRACKING_ACCESS: ")
    assert "MLFLOW_TRACKING_PASSWORD" in said[0]
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", real)
    tracker.log_round(report(1), {1: "north"})
    _, run, losses = recorded(server)
    assert losses == {1: 0.5}
    assert run.data.params["study.rounds"] == "3"


def _unauthenticated(*_):
    raise MlflowException("error code 401", error_code=UNAUTHENTICATED)


def test_runs_of_a_group_have_one_parent_run(server):
    for seed in (1, 2):
        name = f"trial-seed-{seed}"
        study = STUDY.with_seed(seed)
        folder = server / "runs" / name
        folder.mkdir()
        write_note(folder, RunNote(begun=BEGUN, group="seeds"))
        tracker = Tracker(server, study, name, lambda _: None)
        tracker.begin({})
        tracker.end(completed=True)
    client = MlflowClient(tracking_uri(server), tracking_uri(server))
    runs = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "seeds"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.data.params["study.seed"] for run in children} == {"1", "2"}
    assert {run.data.tags[GROUP] for run in runs} == {"seeds"}
    assert parent.info.status == "FINISHED"


def test_tracking_server_on_this_machine_is_reached_without_the_proxy(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "mlflow.example")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    Tracker(server, STUDY, "trial-1", lambda _: None).begin({})
    for uri in ("http://127.0.0.1:5000", "http://localhost:5000", "https://mlflow.example"):
        assert get_environ_proxies(uri) == {}
    assert get_environ_proxies("https://other.example")


def test_parameters_are_flat_and_comparable():
    study = STUDY.model_copy(update={"strategy": StrategyTable(name="FedProx", options={"proximal_mu": 0.1})})
    found = params(study)
    assert found["strategy.name"] == "FedProx"
    assert found["strategy.options.proximal_mu"] == "0.1"
    assert found["study.seed"] == "1"
    assert found["preprocessing.method"] == "segmenter"
    assert "study.seeds" not in found


def test_subgroup_figures_are_recorded_in_mlflow(server):
    tracker = Tracker(server, STUDY, "trial-1", lambda _: None)
    tracker.log_final({"north/auroc_severe@female": 0.7})
    _, run, _ = recorded(server)
    assert run.data.metrics["final/north/auroc_severe/female"] == 0.7


def test_how_to_see_gives_the_address_of_a_run(tmp_path, server, monkeypatch):
    run = server / "runs" / "trial-1"
    Tracker(server, STUDY, "trial-1", lambda _: None).begin({})
    command, _, page = how_to_see(server, run).partition(", then ")
    assert command.endswith(f"mlflow ui --backend-store-uri sqlite:///{server}/mlflow.db")
    assert page.startswith("http://127.0.0.1:5000/#/experiments/1/runs/")
    assert page.endswith("?workflowType=machine_learning")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:secret@mlflow.example/tracking/")
    assert "sqlite" in how_to_see(server, run), "the run was recorded there, whatever the current setting is"
    assert how_to_see(server, tmp_path) == "https://mlflow.example/tracking"
    (run / "mlflow.json").write_text('{"uri": "https://mlflow.example/tracking/", "experiment": "3", "run": "0a"}')
    assert (
        how_to_see(server, run)
        == "https://mlflow.example/tracking/#/experiments/3/runs/0a?workflowType=machine_learning"
    )
    for damaged in ("", "[1]", '{"uri": 1}', "{}", "[" * 100_000):
        (run / "mlflow.json").write_text(damaged)
        for use in (lambda: how_to_see(server, run), lambda: attach(server, "trial-1", [], "report", lambda _: None)):
            with pytest.raises(Refusal, match=r"E_RUN_FILES: mlflow\.json"):
                use()


WATCHED = """
import sys
from pathlib import Path
from federation.runs.tracking import Tracker
from federation.protocol.study_config import Study

def hook(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        print("CALLS", event, arguments[-1 if event == "socket.connect" else 0], flush=True)

sys.addaudithook(hook)
server = Path(sys.argv[1])
study = Study.model_validate_json((server / "runs" / "trial-1" / "study.json").read_text())
tracker = Tracker(server, study, "trial-1", print)
tracker.begin({})
tracker.log_final({"mean_auroc_severe": 0.8})
tracker.register(server / "runs" / "trial-1" / "release", "ab" * 32)
tracker.end(completed=True)
import mlflow.telemetry.client as telemetry
import mlflow.telemetry.utils as utils
print("CLIENT", telemetry.get_telemetry_client(), utils.is_telemetry_disabled())
"""


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [True, False])
def test_mlflow_sends_no_telemetry(server, quiet):
    """Runs in a separate process: under pytest or in continuous integration, MLflow disables its telemetry itself."""
    own = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "OMP_NUM_THREADS")}
    # The control only reads MLflow's own setting. It must not send anything either.
    code = WATCHED if quiet else "import mlflow.telemetry.utils as u; print('DISABLED', u.is_telemetry_disabled())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(server)],
        capture_output=True,
        text=True,
        check=True,
        env={**own, **(QUIET if quiet else {})},
    )
    if quiet:
        assert "CLIENT None True" in done.stdout
        assert "CALLS" not in done.stdout
    else:
        assert "DISABLED False" in done.stdout, "without our settings, MLflow sends telemetry"
