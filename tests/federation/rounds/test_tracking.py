"""What goes to MLflow, and what becomes of it while MLflow does not answer."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from federation.rounds.replies import LedgerHead
from federation.rounds.reports import RoundReport
from federation.rounds.tracking import CANDIDATE, SPOOL, Tracker, hand_over_rest, tracking_uri
from federation.study import Study

STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2}})


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
    """MLflow as it does not answer, from when it is begun until it is ended."""

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
    """An experiment store with nothing in it: to make one takes seconds."""
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
    (folder / "release" / "card.md").write_text("a card")
    return tmp_path


def a_study(server: Path, said: list[str], outage: Outage, off: set[int] = frozenset()) -> str | None:
    """Three rounds and a candidate; in the rounds of `off` (4: the end) MLflow does not answer."""
    tracker = Tracker(server, STUDY, "trial-1", said.append)
    outage.is_on = 0 in off
    tracker.begin({"synthetic": "false"})
    for number in (1, 2, 3):
        outage.is_on = number in off
        tracker.log_round(report(number), {1: "north"})
    outage.is_on = 4 in off
    tracker.log_final({"mean_auroc_severe": 0.8}, 3)
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
    assert "77" not in str(run.data.metrics)  # no site's number of patients
    version = client.get_model_version_by_alias("trial", CANDIDATE)
    assert version.tags["sha256"] == "ab" * 32
    assert [f.path for f in client.list_artifacts(run.info.run_id, "model")] == ["model/card.md"]
    assert not (server / "runs" / "trial-1" / SPOOL).exists()


def test_a_study_is_recorded(server, monkeypatch):
    said: list[str] = []
    assert a_study(server, said, Outage(monkeypatch)) == "1"
    assert_all_is_recorded(server)
    assert said == []


@pytest.mark.parametrize("off", [{0}, {0, 1}, {2}, {1, 2, 3}, {0, 1, 2, 3}])
def test_what_an_outage_held_back_is_handed_over_after_it(server, monkeypatch, off):
    said: list[str] = []
    assert a_study(server, said, Outage(monkeypatch), off) == "1"
    assert_all_is_recorded(server)
    assert said == ["MLflow does not answer; what it is to have waits", "MLflow answers again and has what waited"]


def test_what_still_waits_at_the_end_goes_with_the_next_run(server, monkeypatch):
    said: list[str] = []
    outage = Outage(monkeypatch)
    assert a_study(server, said, outage, {3, 4}) is None
    spool = server / "runs" / "trial-1" / SPOOL
    assert [json.loads(line)["what"] for line in spool.read_text().splitlines()] == [
        *("figures", "figures", "artifacts", "version", "end")
    ]
    outage.is_on = False
    hand_over_rest(server, said.append)
    assert_all_is_recorded(server)
    assert said[-1] == "MLflow answers again and has what waited"


def test_times_are_those_of_the_rounds_and_not_of_the_hand_over(server, monkeypatch):
    outage, clock = Outage(monkeypatch), iter(range(1000, 9000, 1000))
    monkeypatch.setattr("federation.rounds.tracking._now_ms", lambda: next(clock))
    a_study(server, [], outage, {1, 2})
    client, run, _ = recorded(server)
    history = client.get_metric_history(run.info.run_id, "round_sites")
    assert {m.step: m.timestamp for m in history} == {1: 1000, 2: 2000, 3: 3000}


def test_a_damaged_database_is_an_outage(server, monkeypatch):
    """SQLite says so in its own words; the study goes on, and restoring the file is enough."""
    database = server / "mlflow.db"
    intact = database.read_bytes()
    database.write_bytes(b"this is no database" * 100)
    said: list[str] = []
    tracker = Tracker(server, STUDY, "trial-1", said.append)
    tracker.begin({"synthetic": "false"})
    tracker.log_round(report(1), {1: "north"})
    assert said == ["MLflow does not answer; what it is to have waits"]
    database.write_bytes(intact)
    tracker.log_round(report(2), {1: "north"})
    _, _, losses = recorded(server)
    assert losses == {1: 0.5, 2: 0.25}


def test_what_mlflow_will_never_take_is_not_kept_for_ever(server, monkeypatch):
    tracker = Tracker(server, STUDY, "trial-1", lambda _: None)
    with pytest.raises(MlflowException):
        tracker.log_final({"a name\nthat cannot be": 1.0}, 3)


def test_a_resumed_study_goes_on_in_the_same_run(server, monkeypatch):
    outage = Outage(monkeypatch)
    first = Tracker(server, STUDY, "trial-1", lambda _: None)
    first.begin({"synthetic": "false"})
    first.log_round(report(1), {1: "north"})
    first.end(completed=False)
    _, run, _ = recorded(server)
    assert run.info.status == "FAILED"
    a_study(server, [], outage)
    assert_all_is_recorded(server)
