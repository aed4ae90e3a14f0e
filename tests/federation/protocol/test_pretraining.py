"""Tests of a pretraining study: its settings, the patients and figures that count, and studies that begin from it."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from federation.approval.presets import presets
from federation.approval.studies import study_digest
from federation.approval.study_review import weakenings
from federation.coordinator.pretrained import save_start
from federation.gateway.questions import questions_of
from federation.gateway.schema import work_out
from federation.protocol.first_weights import begin_network, begun_sites, bring_release
from federation.protocol.metric_allowlist import EPSILON, FIGURES, LOSS
from federation.protocol.patient_counts import Patients
from federation.protocol.release_files import BEGINS_FROM, copy_release
from federation.protocol.study_config import Study
from models.network import SeverityNetwork, build_network
from models.network_settings import AUXILIARY, BLOCKS, LABELS
from models.refusal import Refusal

PREPROCESSING = {"shape": (16, 16, 16), "working_spacing_mm": 8.0}
OUTPUTS = ("labels", "auxiliary", "hidden_blocks")
PRIVATE = {"noise_multiplier": 1.5, "sample_rate": 0.1, "max_grad_norm": 1.0, "delta": 1e-5}
TABLES: dict[str, Any] = {
    "study": {"name": "trial", "rounds": 4, "sites": 2, "quorum": 2},
    "network": {"architecture": "resnet10", "widen_factor": 0.0625},
    "preprocessing": PREPROCESSING,
    "training": {"learning_rate": 0.02},
}


def study(**tables: Any) -> Study:
    changed = {**TABLES, **tables}
    return Study.model_validate({name: {**TABLES.get(name, {}), **table} for name, table in changed.items()})


def pretraining(**tables: Any) -> Study:
    return study(**{**tables, "network": {"outputs": "auxiliary", **tables.get("network", {})}})


def hiding(**tables: Any) -> Study:
    return pretraining(**{**tables, "network": {"outputs": "hidden_blocks", **tables.get("network", {})}})


def start_of(what: Study, network: SeverityNetwork, folder: Path) -> str:
    """Write a pretrained start below `folder`, under its name, and return the name."""
    rounds = [{"round": 1, "sites": ["north", "south"], "lost": False}]
    made = save_start(
        folder.parent / "made", network, what, run="r", strategy="FedAvg", rounds=rounds, trained_at=["north", "south"]
    )
    return copy_release(folder.parent / "made", folder) if made.sha256 else ""


def test_studies_of_labels_are_written_and_approved_as_before() -> None:
    for preset in presets().values():
        assert "outputs" not in preset.model_dump(mode="json")["network"]
    assert '"outputs"' not in study().model_dump_json()
    assert len({study_digest(what.model_dump_json()) for what in (study(), pretraining(), hiding())}) == 3
    for what in (pretraining(), hiding()):
        assert Study.model_validate_json(what.model_dump_json()) == what
        assert what.network.pretrains


@pytest.mark.parametrize("outputs", ["auxiliary", "hidden_blocks"])
@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"privacy": PRIVATE, "network": {"norm": "group"}}, "does not count patients without labels"),
        ({"stopping": {"patience_rounds": 3}}, "stopping"),
        ({"training": {"learning_rate": 0.05}}, "further than gateways allow"),
        ({"study": {"sites": 3, "quorum": 3}, "strategy": {"name": "FedAvg"}, "aggregation": {"secure": True}}, "mask"),
        *(({"evaluation": {key: True}}, "nothing to evaluate") for key in ("local_models", "pooled", "fine_tune")),
        ({"evaluation": {"leave_one_out": True}}, "nothing to evaluate"),
        ({"training": {"loss": "own:loss", "loss_code": "0" * 64}}, "own loss"),
        ({"training": {"transform": "own:change", "transform_code": "0" * 64}}, "own loss"),
        ({"network": {"encoder": "0" * 64, "encoder_features": 8, "architecture": "resnet18"}}, "of this release"),
    ],
)
def test_pretraining_has_neither_labels_nor_foreign_parts(tables: dict[str, Any], why: str, outputs: str) -> None:
    if "encoder" in tables.get("network", {}):
        tables = {"network": {**tables["network"], "widen_factor": 0.25}, "training": {"augment": False}}
    with pytest.raises(ValidationError, match=why):
        pretraining(**{**tables, "network": {"outputs": outputs, **tables.get("network", {})}})


def test_head_follows_from_the_setting_that_decides_what_is_learnt() -> None:
    """So no study can claim to pretrain and learn labels, or the reverse."""
    for what, outputs in ((pretraining(), AUXILIARY), (hiding(), BLOCKS), (study(), LABELS)):
        assert build_network(what.network, seed=1).head.out_features == len(outputs)
        schema = work_out(what.model_dump_json().encode())
        assert schema.pretrains == what.network.pretrains
        network = build_network(what.network, seed=1)
        assert schema.arrays["weights"].length == sum(weight.numel() for weight in network.parameters())


def test_pretraining_asks_no_question_about_a_model() -> None:
    assert not any(questions_of(what)[kind] for what in (pretraining(), hiding()) for kind in questions_of(what))
    assert questions_of(study())["evaluate.test"] == 1


def test_loss_of_scans_needs_the_smallest_number_of_patients_and_no_other_figure_leaves() -> None:
    few, enough = (Patients({"train": count}, are_labelled=False) for count in (9, 10))
    table = FIGURES["train"]
    assert enough.may_leave(table[LOSS], min_patients=10)
    assert not few.may_leave(table[LOSS], min_patients=10)
    others = [name for name in table if name not in (LOSS, EPSILON)]
    assert others
    assert not any(enough.may_leave(table[name], min_patients=10) for name in others)
    assert not Patients({"train": 10}).may_leave(table[LOSS], min_patients=10), (
        "of labelled patients both classes count"
    )


def test_hospital_reads_that_patients_without_labels_take_part() -> None:
    told = weakenings(pretraining())
    assert "trains on patients without labels too" in told[0]
    assert not any("Shortcut audit" in line or "Familiarity" in line for line in told)
    assert not any("without labels" in line for line in weakenings(study()))
    assert "hides from it" not in told[0]
    told = weakenings(hiding())
    assert "trains on patients without labels too" in told[0]
    assert "hides from it" in told[0] and "coarse picture" in told[0]
    for summed in (True, False):
        told = weakenings(pretraining(study={"sites": 3, "quorum": 3}, aggregation={"summed_answers": summed}))
        assert any("training loss leave on their own" in line for line in told) != summed


# --- a study that begins from a pretrained start -----------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), itertools.product(("auxiliary", "hidden_blocks"), OUTPUTS))
def test_study_takes_everything_but_the_head_from_a_pretrained_start(first: str, then: str, tmp_path: Path) -> None:
    """A pretraining of the other kind too. One of the same kind goes on with the head."""
    what = pretraining(network={"outputs": first})
    pretrained = build_network(what.network, seed=7)
    name = start_of(what, pretrained, tmp_path / "here")
    later = study(study={"begin_from": name, "seed": 3}, network={"outputs": then})
    begun, seed = (
        begin_network(later, tmp_path / "here").state_dict(),
        build_network(later.network, seed=3).state_dict(),
    )
    for key, value in begun.items():
        origin = seed if key.startswith("head.") and first != then else pretrained.state_dict()
        assert torch.equal(value, origin[key]), key
    assert begun_sites(later, tmp_path / "here") == ["north", "south"]
    schema = work_out(later.model_dump_json().encode(), tmp_path / "here")
    assert schema.pretrains == (then != "labels")


def test_server_brings_a_pretrained_start_to_the_run(tmp_path: Path) -> None:
    name = start_of(pretraining(), build_network(pretraining().network, seed=7), tmp_path / "server" / "releases")
    bring_release(study(study={"begin_from": name}), tmp_path / "server", tmp_path / "run")
    assert (tmp_path / "run" / BEGINS_FROM / name / "model.json").is_file()


def lengthen(network: SeverityNetwork) -> None:
    with torch.no_grad():
        network.get_parameter("backbone.conv1.weight").mul_(100)


@pytest.mark.parametrize("case", ["another network", "long weights"])
def test_unfitting_pretrained_start_is_refused(tmp_path: Path, case: str) -> None:
    pretrained = build_network(pretraining().network, seed=7)
    if case == "long weights":
        lengthen(pretrained)
    name = start_of(pretraining(), pretrained, tmp_path / "here")
    other = {"network": {"widen_factor": 0.125}} if case == "another network" else {}
    with pytest.raises(Refusal) as refused:
        begin_network(study(study={"begin_from": name}, **other), tmp_path / "here")
    assert refused.value.code == "E_BEGIN_UNLIKE"


def test_pretraining_does_not_begin_from_a_model_of_labels(tmp_path: Path) -> None:
    name = start_of(study(), build_network(study().network, seed=7), tmp_path / "here")
    for what in (pretraining, hiding):
        with pytest.raises(Refusal) as refused:
            begin_network(what(study={"begin_from": name}), tmp_path / "here")
        assert refused.value.code == "E_BEGIN_UNLIKE"
