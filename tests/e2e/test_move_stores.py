"""Experiments move from SQLite and files to PostgreSQL and S3, and back. The metrics are invented."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from federation.cli.console import progress_bar
from federation.migration.experiments import Experiment, read_experiment
from federation.migration.export import export_server
from federation.migration.import_archive import import_server
from federation.runs.tracking import WHERE, tracking_uri
from federation.server.start import init_server
from federation.system.process import free_port
from tests.e2e.test_mlflow_stores import Stores, as_user, run_folder, stores, track, users  # noqa: F401

pytestmark = pytest.mark.e2e


def experiment(server: Path) -> Experiment:
    uri = tracking_uri(server)
    found = read_experiment(MlflowClient(uri, uri), "trial")
    assert found is not None
    return found


def figures(found: Experiment) -> dict[str, object]:
    """Return the content of each run by run name: the run id differs between stores."""
    return {run.name: (run.figures, run.parameters, run.artifacts, run.status, run.start_ms) for run in found.runs}


def moved(old: Path, new: Path, come: object) -> None:
    export_server(old, new.with_suffix(".tar"), say=lambda _: None, bar=progress_bar)
    come()  # type: ignore[operator]
    import_server(new.with_suffix(".tar"), new, bar=progress_bar)


def test_experiments_move_from_sqlite_to_postgresql_and_back(
    stores: Stores,  # noqa: F811
    as_user,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here() -> None:
        for name in ("URI", "USERNAME", "PASSWORD"):
            monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)

    here()
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    init_server(first, port=free_port())
    run_folder(first, "trial-1")
    assert track(first, "trial-1", [])
    before = experiment(first)

    moved(first, second, lambda: as_user("study"))
    there = experiment(second)
    assert figures(there) == figures(before)
    assert json.loads((second / "runs" / "trial-1" / WHERE).read_text())["uri"] == stores.uri
    assert not (second / "mlflow.db").exists()
    assert (there.amount().runs, there.amount().versions) == (2, 1)

    moved(second, third, here)
    back = experiment(third)
    assert figures(back) == figures(before)
    assert back.model is not None and before.model is not None
    assert back.model.aliases == before.model.aliases
    group = {run.id: run.name for run in back.runs}
    assert {group.get(run.tags.get("mlflow.parentRunId", "")) for run in back.runs} == {None, "seeds"}
    assert [path.read_text() for path in (third / "mlartifacts").rglob("card.md")] == ["a card"]
