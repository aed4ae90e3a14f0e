"""Trainings of a study with summed answers in one process: the model of one without, and figures only of all sites."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from federation.coordinator import summed_figures
from federation.coordinator.inprocess import InProcessGrid, sites_here
from federation.coordinator.rounds import Training
from federation.protocol.masked_replies import MASKED
from federation.protocol.metric_allowlist import EXAMPLES
from federation.protocol.study_config import AggregationTable, Study
from federation.strategy.checkpoint import State
from federation.strategy.round_report import RoundReport
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from tests.federation.coordinator.test_inprocess import ROUNDS, coarse, study


def study_of(sites: int, *, summed: bool, strategy: str = "CenteredClip") -> Study:
    plain = study(strategy)
    table = plain.study.model_copy(update={"sites": sites, "quorum": sites - 1})
    aggregation = AggregationTable(summed_answers=summed)
    return plain.model_copy(update={"study": table, "aggregation": aggregation})


def trained(what: Study, at: list[Path], out: Path) -> tuple[State, list[RoundReport]]:
    """Train; return the last checkpoint and the rounds' reports."""
    reports: list[RoundReport] = []
    training = Training(what, out, "run", lambda report, *_: reports.append(report))
    training.execute(sites_here(what, at))
    return training.state, reports


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sites with enough patients for figures. Tests must not change them."""
    root = tmp_path_factory.mktemp("sites")
    for at in HOSPITALS[:3]:
        site = synthetic_site(root / at.name, at.name, seed=1, min_patients=2, tables="[training]\nthreads = 1")
        write_cohort(site, coarse(at), patients=70, seed=1, settings=study().preprocessing, anatomy="template")
    return [root / at.name for at in HOSPITALS[:3]]


@pytest.fixture(scope="module")
def plain(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[State, list[RoundReport]]:
    return trained(study_of(3, summed=False), folders, tmp_path_factory.mktemp("plain"))


def weighted(report: RoundReport, figure: str) -> float:
    """The mean of a figure over the sites of a round, weighted by their training patients."""
    known = [(site[figure], site[EXAMPLES]) for site in report.metrics.values()]
    return sum(value * patients for value, patients in known) / sum(patients for _, patients in known)


@pytest.mark.slow
def test_weights_are_the_same_to_the_bit_and_figures_only_of_all_sites(
    folders: list[Path],
    plain: tuple[State, list[RoundReport]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    send = InProcessGrid.send_and_receive

    def kept(grid: InProcessGrid, messages: list[Message], **more: float) -> Iterator[Message]:
        for reply in send(grid, messages, **more):
            seen.append((set(reply.content), set(reply.content.metric_records["metrics"])))
            yield reply

    monkeypatch.setattr(InProcessGrid, "send_and_receive", kept)
    state, reports = trained(study_of(3, summed=True), folders, tmp_path)
    for record in ("arrays", "buffers"):
        for name, array in getattr(plain[0], record).items():
            assert getattr(state, record)[name].tobytes() == array.tobytes()
    assert seen == [({"arrays", "buffers", "metrics", MASKED, "ledger"}, {EXAMPLES})] * 3 * ROUNDS
    for report, before in zip(reports, plain[1], strict=True):
        assert [set(site) for site in report.metrics.values()] == [{EXAMPLES}] * 3
        of_three = set.intersection(*(set(site) for site in before.metrics.values())) - {EXAMPLES}
        assert set(report.aggregated) == of_three == {"train_loss", "loss_pcr_positive", "auroc_pcr_positive"}
        assert "auroc_severe" in before.aggregated, "of two hospitals, so in no sum"
        for figure in report.aggregated:
            assert report.aggregated[figure] == pytest.approx(weighted(before, figure), abs=1e-5)


@pytest.mark.slow
def test_round_counts_without_its_figures_if_a_site_is_missing(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three hospitals, all are needed for a sum. The update of the other two counts nevertheless."""
    monkeypatch.setattr(summed_figures, "WAIT_SECONDS", 0.2)
    send = InProcessGrid.send_and_receive

    def without_the_last(grid: InProcessGrid, messages: list[Message], **more: float) -> Iterator[Message]:
        return iter(list(send(grid, list(messages)[:-1], **more)))

    what, at = study_of(3, summed=True), folders
    what = what.model_copy(update={"study": what.study.model_copy(update={"rounds": 1, "round_timeout_s": 4.0})})
    monkeypatch.setattr(InProcessGrid, "send_and_receive", without_the_last)
    state, (report,) = trained(what, at, tmp_path)
    assert state.round == 1 and not report.lost
    assert len(report.valid) == 2 and not report.aggregated
    assert np.isfinite(next(iter(state.arrays.values()))).all()
