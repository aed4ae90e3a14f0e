"""A whole run with synthetic sites in one process: training, evaluation and audit as for real patients."""

import logging
from pathlib import Path
from typing import Any

import pytest

from federation.coordinator.baselines import train_together
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import Study
from federation.runs.results import Results, read_results
from models.network import SeverityNetwork
from pipeline.site.folder import Site
from tests.federation.coordinator.conftest import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sites(two_hospitals: list[Path]) -> list[Site]:
    return [Site.open(folder) for folder in two_hospitals]


@pytest.fixture(scope="module")
def results(sites: list[Site], tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = Study.model_validate(
        {
            "study": {"name": "rehearsal", "rounds": 2, "local_steps": 3, "sites": 2, "quorum": 2, "synthetic": True},
            "network": {"architecture": "resnet10", "widen_factor": 0.0625},
            "preprocessing": SMALL.model_dump(),
            "wire": {"precision": "float16"},
            "evaluation": {"fine_tune": True, "local_models": True, "pooled": True},
        }
    )
    return read_results(rehearse(study, tmp_path_factory.mktemp("server"), [site.folder for site in sites]))


def test_every_model_has_figures_at_every_site_by_site_name(results: Results) -> None:
    names = [model.name for model in results.models]
    assert sorted(names) == sorted(
        ["federated", "north alone", "south alone", "north fine-tuned", "south fine-tuned", "pooled"]
    )
    for model in results.models:
        assert set(model.figures) == {"north", "south"}
        for figures in model.figures.values():
            assert figures["auroc_pcr_positive_low"] <= figures["auroc_pcr_positive"]


def test_pooled_model_is_trained_as_long_as_a_federation_that_stops_early(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SeverityNetwork] = []

    def kept(*arguments: Any, **options: Any) -> SeverityNetwork:
        made.append(train_together(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("federation.coordinator.baselines.train_together", kept)
    table = {"name": "early", "rounds": 8, "local_steps": 2, "sites": 2, "quorum": 2, "synthetic": True}
    study = Study.model_validate(
        {
            "study": table,
            "network": {"architecture": "resnet10", "widen_factor": 0.0625},
            "preprocessing": SMALL.model_dump(),
            "stopping": {"figure": "auroc_pcr_positive", "patience_rounds": 1, "least_gain": 1.0},
            "evaluation": {"pooled": True, "shortcut_audit": False},
        }
    )
    results = read_results(rehearse(study, tmp_path / "server", [site.folder for site in sites]))
    rounds = len([entry for entry in results.history if "round" in entry])
    assert results.stopped_early and rounds < 8
    steps = {int(count) for name, count in made[0].named_buffers() if name.endswith("num_batches_tracked")}
    assert steps == {rounds * 2 * len(sites)}


def test_audit_covers_only_the_federated_model(results: Results) -> None:
    assert results.audit is not None
    assert set(results.audit.sites) == {"north", "south"}
    for model in results.models:
        audited = any("outside" in name for figures in model.figures.values() for name in figures)
        assert not audited or model.name == "federated"


def test_every_figure_has_a_name_that_the_gateway_allows(results: Results) -> None:
    from federation.protocol.metric_allowlist import FIGURES

    known = {*FIGURES["evaluate.test"], "num-examples"}
    assert all(set(figures) <= known for model in results.models for figures in model.figures.values())


def test_relative_folders_work_and_progress_lines_stay_out(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook paths are often relative, and Flower's lines would fill the cell."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    study = Study.model_validate(
        {
            "study": {"name": "near", "rounds": 1, "local_steps": 1, "sites": 2, "quorum": 2, "synthetic": True},
            "network": {"architecture": "resnet10", "widen_factor": 0.0625},
            "preprocessing": SMALL.model_dump(),
            "evaluation": {"shortcut_audit": False},
        }
    )
    (tmp_path / "sites").symlink_to(sites[0].folder.parent)
    monkeypatch.chdir(tmp_path)
    collector = Collector()
    for name in ("flwr", "mlflow"):
        logging.getLogger(name).addHandler(collector)
    try:
        run = rehearse(study, Path("server"), [Path("sites") / site.folder.name for site in sites])
    finally:
        for name in ("flwr", "mlflow"):
            logging.getLogger(name).removeHandler(collector)
    assert run.is_relative_to(tmp_path / "server" / "runs")
    assert read_results(run).model("federated") is not None
    assert said == []
