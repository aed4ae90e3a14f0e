"""A whole study with secure aggregation in this process: the server ends with a candidate, from sums alone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from federation.client.site_tasks import load_examples
from federation.coordinator.connected_sites import Sites
from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.inprocess import InProcessGrid
from federation.coordinator.rehearsal import rehearse
from federation.coordinator.rounds import Model
from federation.coordinator.summed_evaluation import SummedExamination
from federation.coordinator.summed_questions import PlainSums
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import FIGURES, LABELS
from federation.protocol.study_config import Study
from federation.protocol.summed_answers import SUMMED, Summed, load_counts, logit_counts, sites_with
from federation.runs.results import Results, read_results
from models.calibration import fit_platt
from models.network import build_network
from models.operating_points import MissingPoint
from models.release import load_release
from pipeline.evaluation.histograms import exact_histograms
from pipeline.evaluation.ladder import RUNGS
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.site.folder import Site, Split
from pipeline.training.privacy_budget import spent_epsilon
from pipeline.training.train import predict

pytestmark = pytest.mark.slow
STUDY = Study.model_validate(
    {
        "study": {"name": "masked", "rounds": 2, "local_epochs": 1, "sites": 3, "quorum": 3, "synthetic": True},
        "strategy": {"name": "FedAvg"},
        "aggregation": {"secure": True},
        "network": {"architecture": "resnet10", "widen_factor": 0.0625},
        "preprocessing": {"method": 1, "shape": (16, 16, 16), "working_spacing_mm": 8.0},
    }
)
Sample = tuple[NDArray[np.float32], NDArray[np.float32]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sites with cohorts. Tests must not change them."""
    root, made = tmp_path_factory.mktemp("sites"), []
    for number, name in enumerate(("north", "south", "west")):
        site = synthetic_site(root / name, name, seed=1 + number, min_patients=3, tables="[training]\nthreads = 1")
        at = replace(HOSPITALS[0], scanner=replace(HOSPITALS[0].scanner, grid=Grid((30, 48, 48), (9.6, 7.8, 7.8))))
        at = replace(at, mix=replace(at.mix, pcr_prevalence=0.7, severe_intercept=-2.5))
        write_cohort(site, at, patients=110, seed=1 + number, settings=STUDY.preprocessing, anatomy="template")
        made.append(site.folder)
    return made


@pytest.fixture(scope="module")
def run(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rehearse(STUDY, tmp_path_factory.mktemp("server"), folders)


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    return read_results(run)


def summed_of(results: Results) -> Summed:
    summed = results.models[0].summed
    assert summed is not None
    return summed


def raw(run: Path, folders: list[Path], label: str, split: Split) -> Sample:
    """The raw logits and labels of all sites' patients, which the server never sees."""
    network, column = load_release(run / "release").network, LABELS.index(label)
    logits, targets = [], []
    for folder in folders:
        examples = load_examples(Site.open(folder), STUDY, split)
        known = ~np.isnan(examples.targets[:, column])
        logits.append(predict(network, examples)[known, column])
        targets.append(examples.targets[known, column])
    return np.concatenate(logits), np.concatenate(targets)


def table(summed: Summed, label: str) -> NDArray[np.int64]:
    names = logit_counts(label)
    return np.array([[summed.counts[names[value, bin]] for bin in range(len(RUNGS) - 1)] for value in (False, True)])


def auroc(counts: NDArray[np.int64]) -> tuple[float, float]:
    """The AUROC of counts with ties by halves, and the share of tied pairs."""
    negative, positive = counts
    below = np.concatenate([[0], np.cumsum(negative)[:-1]])
    pairs, ties = negative.sum() * positive.sum(), float((negative * positive).sum())
    return (float((positive * below).sum()) + ties / 2) / pairs, ties / pairs


def test_server_keeps_sums_and_no_figure_of_a_single_site(run: Path, results: Results) -> None:
    (model,) = results.models
    assert (model.name, model.figures, model.withheld) == ("federated", {}, {})
    summed = summed_of(results)
    assert summed.sites == 3
    assert set(summed.counts) == set(SUMMED["evaluate.test"].counts)
    assert set(summed.means) <= set(SUMMED["evaluate.test"].means)
    steps = [entry["step"] for entry in results.history if "step" in entry]
    assert steps == ["handshake", "features of training patients", "calibration", "test"]
    description = load_release(run / "release").description
    assert description.metrics == {f"mean_auroc_{label}": summed.means[f"auroc_{label}"] for label in LABELS}


@pytest.mark.parametrize("label", LABELS)
def test_pooled_counts_are_those_of_all_patients_together(
    run: Path, results: Results, folders: list[Path], label: str
) -> None:
    logits, targets = raw(run, folders, label, "test")
    found = table(summed_of(results), label)
    assert (found == exact_histograms(logits.astype(np.float64), targets.astype(np.int64), RUNGS)).all()
    counted = sum(summed_of(results).counts[name] for name in load_counts(label).values())
    assert counted == len(targets)
    value, ties = auroc(found)
    positive, negative = logits[targets == 1], logits[targets == 0]
    exact = float(np.mean(positive[:, None] > negative) + 0.5 * np.mean(positive[:, None] == negative))
    assert abs(value - exact) <= ties / 2 + 1e-9, "the bins' resolution"


@pytest.mark.parametrize("label", LABELS)
def test_calibration_is_that_of_all_patients_together(
    run: Path, results: Results, folders: list[Path], label: str
) -> None:
    expected = fit_platt(*raw(run, folders, label, "validation"))
    assert expected.covariance is not None
    found = results.calibration[label]
    assert abs(found.slope - expected.slope) < 0.5 * expected.covariance[0] ** 0.5
    assert abs(found.intercept - expected.intercept) < 0.25 * expected.covariance[2] ** 0.5


def test_each_threshold_is_there_or_says_why_not(run: Path, results: Results, folders: list[Path]) -> None:
    description = load_release(run / "release").description
    assert description.operating_points == results.operating_points
    for label in LABELS:
        _, targets = raw(run, folders, label, "validation")
        counted = (int((targets == 1).sum()), int((targets == 0).sum()), 3)
        points, missing = results.operating_points[label], results.missing_points[label]
        assert set(points) | set(missing) == {"rule_out", "rule_in"}
        for each in (*(point.evidence for point in points.values()), *missing.values()):
            assert each is not None
            assert (each.positives, each.negatives, each.sites) == counted, "exact numbers"


def test_familiarity_and_audit_come_from_sums(results: Results, run: Path) -> None:
    familiarity = load_release(run / "release").description.familiarity
    assert familiarity is not None
    assert familiarity.sites == 3
    assert 0.5 < familiarity.limit < 20
    assert results.audit is not None
    assert results.audit.probe is None
    assert "only sums" in results.audit.no_probe
    assert "auroc_severe_outside" in results.audit.means
    assert set(results.audit.means) <= set(FIGURES["evaluate.test"])


def test_private_study_states_each_hospitals_epsilon_and_asks_nothing_of_training_patients(
    folders: list[Path], tmp_path: Path
) -> None:
    """ε of the card is what the hospitals' own budgets say, as without secure aggregation."""
    tables = STUDY.model_dump(mode="json")
    tables["network"]["norm"] = "group"
    tables["privacy"] = {"noise_multiplier": 4.0, "sample_rate": 0.1, "max_grad_norm": 1.0, "delta": 1e-5}
    stated = {}
    for secure in (True, False):
        own = [shutil.copytree(folder, tmp_path / str(secure) / folder.name) for folder in folders]
        tables["aggregation"]["secure"] = secure
        finished = rehearse(Study.model_validate(tables), tmp_path / f"server-{secure}", own)
        description = load_release(finished / "release").description
        assert description.privacy is not None
        stated[secure] = description.privacy.epsilon
        run_name = read_results(finished).run
        assert stated[secure] == {
            site.name: spent_epsilon(site, delta=1e-5, run=run_name) for site in map(Site.open, own)
        }
        assert description.familiarity is None and read_results(finished).audit is None
    assert stated[True] == stated[False]


# --- hospitals that are missing ---------------------------------------------------------------------------


def examined(folders: list[Path]) -> tuple[SummedExamination, Any, list[str]]:
    """Examine the first model of the study at these sites."""
    said: list[str] = []
    network = build_network(STUDY.network, seed=1)
    grid = cast(EagerGrid, InProcessGrid(STUDY, folders, "plain"))  # without masks, as in Flower's simulation
    names = {node: Site.open(folder).name for node, folder in enumerate(folders, start=1)}
    sums = PlainSums(Sites(grid, names, {}, {}), [], said.append, features=network.features, timeout_s=60)
    examination = SummedExamination(STUDY, sums, said.append)
    return examination, examination.examine(Model(*pack(network)), ["north"], 2), said


def test_label_with_two_hospitals_has_no_figures_and_says_why(folders: list[Path], tmp_path: Path) -> None:
    west = shutil.copytree(folders[2], tmp_path / "west")
    toml = (west / "site.toml").read_text()
    assert "min_patients = 3\n" in toml
    (west / "site.toml").write_text(toml.replace("min_patients = 3\n", "min_patients = 9\n"))
    examination, found, said = examined([*folders[:2], west])
    (model,) = examination.models
    assert model.summed is not None
    assert model.summed.sites == 3
    assert set(model.withheld) == {"pcr_positive"}, "the third hospital has nine severe patients and nine others"
    assert "no sum over three hospitals" in model.withheld["pcr_positive"]
    counted = {name for name in model.summed.counts if "pcr" in name}
    assert counted == {sites_with("pcr_positive")}
    assert model.summed.counts[sites_with("pcr_positive")] == 0, "as the gateways leave the label out"
    assert not any("pcr" in name for name in {**model.summed.means, **model.summed.known, **found.means})
    assert "auroc_severe" in model.summed.means
    assert "pcr_positive" not in found.calibrated.deployed.calibration
    missing = found.calibrated.missing_points()["pcr_positive"]
    assert missing == dict.fromkeys(("rule_out", "rule_in"), MissingPoint(why="few_hospitals"))
    assert any(line.startswith("test without figures of pcr_positive") for line in said)


def test_two_hospitals_alone_are_not_summed(folders: list[Path]) -> None:
    examination, found, said = examined(folders[:2])
    (model,) = examination.models
    assert model.summed is None
    assert set(model.withheld) == set(LABELS)
    assert found.calibrated.familiarity is None
    assert found.calibrated.missing_points()["severe"]["rule_out"].why == "few_hospitals"
    assert "no sum over three hospitals" in model.withheld["severe"]
    assert found.means == {}
    assert "test: sums over fewer than 3 sites are not used" in said
