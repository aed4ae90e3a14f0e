"""Steps after the last round: which models are evaluated at which sites, and the effect of missing sites."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from federation.protocol.reply_validation import decode
from federation.protocol.study_config import EvaluationTable, StoppingTable, Study
from federation.runs.results import Results, read_results
from models.operating_points import MissingPoint
from models.refusal import Refusal
from models.release import load_release
from tests.helpers.whole_run import Grid, execute, rounds_of, study

ALL_THREE = ["north", "south", "west"]


def with_evaluation(**asked: Any) -> Study:
    return study().model_copy(update={"evaluation": EvaluationTable(**asked)})


def results_of(folder: Path) -> Results:
    return read_results(folder / "runs" / "trial-1")


@pytest.mark.slow
def test_only_the_federated_model_is_evaluated_by_default(server):
    execute(server, Grid())
    found = results_of(server)
    assert [(model.name, model.trained_at) for model in found.models] == [("federated", ALL_THREE)]
    assert found.models[0].figures["north"]["auroc_severe_low"] == 0.7
    assert set(found.sites) == set(ALL_THREE)
    severe = found.calibration["severe"]
    assert 1.2 < severe.slope < 1.6, "the pool applies the penalty of the fits once"
    assert severe.band(0.5)[0] < severe.probability(np.array([0.5]))[0] < severe.band(0.5)[1]
    evidence = found.operating_points["severe"]["rule_out"].evidence
    assert evidence is not None
    assert (evidence.positives, evidence.negatives, evidence.sites) == (72, 117, 3)
    assert found.missing_points["severe"] == {}
    assert found.missing_points["pcr_positive"]["rule_in"] == MissingPoint(why="not_calibrated")
    released = load_release(server / "runs" / "trial-1" / "release").description
    assert released.operating_points == found.operating_points
    assert released.missing_points == found.missing_points
    assert found.audit is not None
    assert found.audit.probe is not None
    assert found.audit.probe.confusion["south"] == {"north": 0.4, "south": 0.3, "west": 0.3}


def test_every_requested_model_is_evaluated_at_every_site(server):
    grid = Grid()
    execute(server, grid, with_evaluation(local_models=True, leave_one_out=True, fine_tune=True))
    models = results_of(server).models
    expected = {"federated": ALL_THREE}
    for site in ALL_THREE:
        expected |= {f"{site} fine-tuned": [site], f"{site} alone": [site]}
        expected[f"without {site}"] = [other for other in ALL_THREE if other != site]
    assert {model.name: model.trained_at for model in models} == expected
    assert all(set(model.figures) == set(ALL_THREE) for model in models)
    # Three rounds each: the study at three sites, local models at three sites, and three federations of two sites.
    assert grid.kinds.count("train") == 3 * 3 + 3 * 3 + 3 * 3 * 2


@pytest.mark.slow
def test_comparison_models_can_be_limited_to_some_sites(server):
    grid = Grid()
    asked = with_evaluation(local_models=True, leave_one_out=True, fine_tune=True, compared_sites=1)
    execute(server, grid, asked)
    federated, *others = results_of(server).models
    drawn = {model.name.split()[0] for model in others if model.kind != "left_out"}
    assert federated.name == "federated"
    assert len(drawn) == 1
    assert {model.kind for model in others} == {"local", "left_out", "fine_tuned"}
    assert {f"without {site}" for site in drawn} == {model.name for model in others if model.kind == "left_out"}
    assert all(set(model.figures) == set(ALL_THREE) for model in others), "each is evaluated at every site"
    # Three rounds each: the study at three sites, one local model, and one federation of two sites.
    assert grid.kinds.count("train") == 3 * 3 + 3 + 3 * 2
    assert grid.kinds.count("train.head") == 1


def test_rounds_sample_sites_and_final_evaluation_uses_all(server):
    table = study().study.model_copy(update={"sites_per_round": 2})
    history = execute(server, grid := Grid(), study().model_copy(update={"study": table}))
    rounds = rounds_of(history)
    assert [len(entry["sites"]) for entry in rounds] == [2, 2, 2]
    assert grid.kinds.count("train") == 3 * 2
    assert grid.kinds.count("evaluate.test") == 3


@pytest.mark.slow
def test_local_model_is_trained_by_its_site_only(server):
    """In later rounds, a site receives exactly the weights that it sent in the previous round."""
    came: dict[int, list[bytes]] = {}
    gave: dict[int, list[bytes]] = {}

    class Watched(Grid):
        def content(self, node: int, message: Message) -> RecordDict:
            content = super().content(node, message)
            if message.metadata.message_type == "train":
                came.setdefault(node, []).append(message.content.array_records["arrays"]["weights"].data)
                gave.setdefault(node, []).append(content.array_records["arrays"]["weights"].data)
            return content

    execute(server, Watched(), with_evaluation(local_models=True))
    for node, models in came.items():
        assert models[4:] == gave[node][3:5]
        assert models[3] == models[0]


@pytest.mark.slow
def test_training_of_local_models_resumes_after_a_crash(server):
    asked = with_evaluation(local_models=True)

    class Dies(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            if self.kinds.count("train") >= 3 * 3 + 2 * 3:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    first = Dies()
    with pytest.raises(KeyboardInterrupt):
        execute(server, first, asked)
    grid = Grid()
    grid.lines = dict(first.lines)
    execute(server, grid, asked)
    assert grid.kinds.count("train") == 3
    assert len(results_of(server).models) == 4


@pytest.mark.slow
def test_site_that_refuses_has_no_local_model(server, caplog):
    def silent(message: Message, content: RecordDict) -> Any:
        kind, number = message.metadata.message_type, message.content.config_records["config"]["server-round"]
        is_alone = kind == "train" and sent.kinds.count("evaluate.test") and number == 2
        return Error(1, "E_TOO_FEW_PATIENTS") if is_alone or kind == "evaluate.calibrate" else content

    sent = Grid(silent)
    with caplog.at_level("INFO", logger="flwr"):
        execute(server, sent, with_evaluation(local_models=True))
    found = results_of(server)
    assert [model.name for model in found.models] == ["federated", "north alone", "south alone"]
    evidence = found.operating_points["severe"]["rule_out"].evidence
    assert evidence is not None
    assert evidence.sites == 2
    assert "no local model of west: E_TOO_FEW_PATIENTS" in caplog.text


def test_training_stops_early_without_improvement(server):
    """The validation metric is constant from round 1. With a patience of two rounds, round 3 of 6 is the last."""

    class Flat(Grid):
        def content(self, node: int, message: Message) -> RecordDict:
            content = super().content(node, message)
            if message.metadata.message_type == "train":
                content["metrics"] = MetricRecord({"train_loss": 0.5, "auroc_severe": 0.7, "num-examples": 20})
            return content

    table = study().study.model_copy(update={"rounds": 6})
    asked = study().model_copy(update={"study": table, "stopping": StoppingTable(patience_rounds=2)})
    first = Flat()
    history = execute(server, first, asked)
    assert [entry["round"] for entry in rounds_of(history)] == [1, 2, 3]
    assert results_of(server).stopped_early
    grid = Flat()
    grid.lines = dict(first.lines)
    execute(server, grid, asked)  # the resumed run has no training left
    assert "train" not in grid.kinds


def test_study_does_not_start_if_sites_disagree(server):
    class Unlike(Grid):
        def content(self, node: int, message: Message) -> RecordDict:
            content = super().content(node, message)
            if message.metadata.message_type == "query.handshake" and node == 22:
                content.config_records["site"]["golden"] = "e" * 64
            return content

    grid = Unlike()
    with pytest.raises(Refusal) as refused:
        execute(server, grid)
    assert refused.value.code == "E_SITES_UNLIKE"
    assert "south" in str(refused.value)
    assert set(grid.kinds) == {"query.handshake"}


def test_site_of_another_version_is_asked_nothing_more(server, caplog):
    asked: list[str] = []

    class Older(Grid):
        def content(self, node: int, message: Message) -> RecordDict:
            content = super().content(node, message)
            if node == 22:
                asked.append(message.metadata.message_type)
            if message.metadata.message_type == "query.handshake" and node == 22:
                content.config_records["site"]["version"] = "0.0.1"
            return content

    with caplog.at_level("INFO", logger="flwr"):
        history = execute(server, Older())
    assert asked == ["query.handshake"]
    assert history[0]["refused"] == {"south": "E_SITE_OUTDATED"}
    assert all(entry["sites"] == ["north", "west"] for entry in history)
    assert "south has version 0.0.1" in caplog.text and "south must upgrade" in caplog.text


def test_release_contains_familiarity_from_all_sites(server):
    """Sites have means and variances of 11, 22 and 33. The pooled variance includes the variance between sites."""
    came: list[dict[str, np.ndarray]] = []

    class Watched(Grid):
        def content(self, node: int, message: Message) -> RecordDict:
            if message.metadata.message_type == "evaluate.calibrate":
                came.append(decode(message.content.array_records["typical"]))
            return super().content(node, message)

    execute(server, Watched())
    familiarity = load_release(server / "runs" / "trial-1" / "release").description.familiarity
    assert familiarity is not None
    assert familiarity.sites == 3
    assert all(told["mean"].tolist() == list(familiarity.mean) for told in came)
    assert set(familiarity.mean) == {22.0}
    assert familiarity.variance == pytest.approx([22 + 2 / 3 * 11**2] * len(familiarity.mean), rel=1e-6)
    assert familiarity.is_familiar(1.0)
    assert not familiarity.is_familiar(10.0)


def test_familiarity_is_not_published_from_one_site_alone(server, caplog):
    def silent(message: Message, content: RecordDict) -> Any:
        return Error(1, "E_EMBEDDINGS") if message.metadata.message_type == "evaluate.embed" else content

    class OneTells(Grid):
        def content(self, node: int, message: Message) -> RecordDict:
            content = super().content(node, message)
            kind = message.metadata.message_type
            if kind == "evaluate.calibrate":
                assert not message.content.array_records["typical"]["variance"].numpy().any()
                assert "distance_mean" in content.metric_records["metrics"], "an unrequested value is ignored"
            if kind == "evaluate.embed" and node == 22:
                del content["moments"]
            return content

    grid = OneTells(silent)
    with caplog.at_level("INFO", logger="flwr"):
        execute(server, grid)
    assert load_release(server / "runs" / "trial-1" / "release").description.familiarity is None
    assert "familiarity of scans is not available" in caplog.text


def test_implausible_calibration_fit_is_ignored(server):
    """West claims a certainty that requires thousands of patients, but has five."""

    def sure(message: Message, content: RecordDict) -> Any:
        if message.metadata.message_type == "evaluate.calibrate":
            claimed = {"variance_slope_severe": 1e-4, "covariance_severe": 0.0, "variance_intercept_severe": 1e-4}
            content["metrics"] = MetricRecord({**content.metric_records["metrics"], "slope_severe": 50.0, **claimed})
        return content

    execute(server, Grid(sure))
    assert results_of(server).calibration["severe"].slope < 2


def test_private_study_is_not_audited(server):
    """The audit uses training patients, whom a private study protects by noise."""
    privacy = {"noise_multiplier": 1.5, "sample_rate": 0.1}
    content = study().model_dump() | {"privacy": privacy}
    content["network"] |= {"norm": "group"}
    grid = Grid()
    execute(server, grid, Study.model_validate(content))
    assert results_of(server).audit is None
    assert results_of(server).calibration["severe"].band(0.5) is not None
    assert load_release(server / "runs" / "trial-1" / "release").description.familiarity is None
    assert not {"evaluate.embed", "evaluate.assign"} & set(grid.kinds)
