"""Tests of the command `fedthorax study report`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.study import app
from federation.runs.results import RESULTS
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


@pytest.mark.parametrize(("run", "code"), [("begun", "E_RESULTS"), ("never", "E_RUN_UNKNOWN")])
def test_run_without_results_or_unknown_run_is_refused(server, run, code):
    with pytest.raises(Refusal, match=code):
        invoke(run, "--server", server)
