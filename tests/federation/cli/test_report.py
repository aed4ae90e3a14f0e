"""Tests of the command `fedthorax study report`."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from federation.cli.study import app
from federation.protocol.study_config import Study
from federation.runs.results import RESULTS
from federation.runs.run_folder import RunNote, write_note
from federation.runs.tracking import WHERE, Tracker, tracking_uri
from models.refusal import Refusal
from tests.helpers.results_factory import make_results


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A server folder with one finished run, "done", and one run without results, "begun"."""
    results = make_results(1, audit=False, models=[])
    for run in ("done", "begun"):
        folder = tmp_path / "server" / "runs" / run
        folder.mkdir(parents=True)
        (folder / "study.json").write_text(results.study.model_dump_json())
    (tmp_path / "server" / "runs" / "done" / RESULTS).write_text(results.model_dump_json())
    return tmp_path / "server"


def invoke(*arguments: str | Path) -> str:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False).stdout


@pytest.mark.slow
def test_report_is_written_to_the_run_folder(server):
    told = json.loads(invoke("done", "--server", server, "--json"))
    assert Path(told["page"]) == server / "runs" / "done" / "report" / "report.html"
    assert json.loads(Path(told["numbers"]).read_text())["about"]["study"] == "severe-covid"


def test_report_is_written_to_the_out_folder(server, tmp_path):
    invoke("done", "--server", server, "--out", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not (server / "runs" / "done" / "report").exists()


def test_recorded_run_has_the_report_among_its_artifacts_and_nothing_else(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = server / "runs" / "done"
    write_note(run, RunNote(begun=datetime(2026, 3, 1, tzinfo=UTC)))
    study = Study.model_validate_json((run / "study.json").read_text())
    Tracker(server, study, "done", print).begin({})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "private.txt").write_text("another file of the user")

    told = json.loads(invoke("done", "--server", server, "--out", tmp_path / "mine", "--json"))
    assert told["mlflow"] == "report"
    client = MlflowClient(tracking_uri(server), tracking_uri(server))
    run_id = json.loads((run / WHERE).read_text())["run"]
    assert sorted(each.path for each in client.list_artifacts(run_id, "report")) == [
        "report/report.html",
        "report/report.json",
    ]


def test_run_recorded_elsewhere_is_not_recorded_again(server, tmp_path):
    where = {"uri": "https://mlflow.example", "experiment": "1", "run": "2"}
    (server / "runs" / "done" / WHERE).write_text(json.dumps(where))
    told = json.loads(invoke("done", "--server", server, "--json"))
    assert told["mlflow"] is None
    assert not (server / "mlflow.db").exists()


def test_file_in_place_of_the_out_folder_is_named_without_a_number(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="E_REPORT_WRITE") as refused:
        invoke("done", "--server", server, "--out", tmp_path / "file")
    assert refused.value.private == f"File exists: '{tmp_path / 'file'}'"


@pytest.mark.parametrize(("run", "code"), [("begun", "E_RESULTS"), ("never", "E_RUN_UNKNOWN")])
def test_run_without_results_or_unknown_run_is_refused(server, run, code):
    with pytest.raises(Refusal, match=code):
        invoke(run, "--server", server)
