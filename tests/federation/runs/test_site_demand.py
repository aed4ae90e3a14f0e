"""What runs ask of a hospital, beside what it allows by default."""

from typing import Any

import pytest

from federation.approval.presets import presets
from federation.protocol.study_config import Study
from federation.runs.site_demand import beyond_defaults, training_rounds
from pipeline.site.folder import GatewayTable

ALL = {"local_models": True, "leave_one_out": True, "fine_tune": True}


def study(sites: int = 3, rounds: int = 20, **more: Any) -> Study:
    table = {"name": "trial", "rounds": rounds, "sites": sites, "quorum": 2, **more.pop("table", {})}
    return Study.model_validate({"study": table, "strategy": {"name": "FedAvg"}, **more})


def asked(*studies: Study) -> str:
    warning = beyond_defaults(studies)
    return "" if warning is None else warning.says


@pytest.mark.parametrize(
    ("evaluation", "sites", "rounds"),
    [
        ({}, 5, 20),
        ({"fine_tune": True}, 5, 20 + 1),
        ({"local_models": True}, 5, 2 * 20),
        ({"leave_one_out": True}, 5, 20 + 4 * 20),  # not in the training without this hospital
        ({"leave_one_out": True, "compared_sites": 2}, 5, 20 + 2 * 20),  # two others may have been drawn
        (ALL, 3, 20 + 20 + 2 * 20 + 1),
    ],
)
def test_training_rounds_of_a_hospital(evaluation: dict[str, Any], sites: int, rounds: int) -> None:
    assert training_rounds(study(sites, evaluation=evaluation)) == rounds


def test_presets_as_they_are_stay_within_the_limits() -> None:
    for preset in presets().values():
        runs = [preset] * max(1, len(preset.study.seeds))
        assert beyond_defaults(runs) is None


def test_runs_of_all_seeds_are_added() -> None:
    five = [study(6, evaluation=ALL)] * 5
    assert asked(five[0]) == ""
    told = asked(*five)
    assert "705 training rounds (max_rounds_a_day = 500)" in told
    assert "115 answers about models (max_questions_a_month = 100)" in told
    assert "max_rounds_a_month" not in told


def test_single_settings_are_compared_too() -> None:
    limits = GatewayTable()
    large = study(table={"local_epochs": limits.max_local_epochs + 1}, training={"batch_size": 65})
    assert "11 epochs a round (max_local_epochs = 10)" in asked(large)
    assert "65 scans in a batch (max_batch_size = 64)" in asked(large)
    assert asked(study(table={"local_epochs": limits.max_local_epochs}, training={"batch_size": 64})) == ""


def test_pretraining_asks_no_question_and_has_a_limit_of_its_own() -> None:
    told = asked(study(network={"outputs": "auxiliary"}, training={"learning_rate": 0.02}))
    assert told.endswith("20 rounds of pretraining (max_pretraining_rounds_a_month = 0)")


def masked(sites: int = 9, *, rounds: int = 5, groups: int = 3) -> Study:
    return study(sites, rounds, table={"quorum": sites}, aggregation={"secure": True, "groups": groups})


def test_each_run_with_groups_changes_the_hospitals_of_the_sum_once() -> None:
    """Its rounds are summed over a group, its questions over all hospitals."""
    allowed = GatewayTable().max_sum_changes
    seeds = [masked().with_seed(seed) for seed in range(allowed + 1)]
    assert asked(*seeds[:allowed]) == ""
    assert f"{allowed + 1} changes of the hospitals in a sum (max_sum_changes = {allowed})" in asked(*seeds)


def test_changes_are_those_of_one_study_and_none_is_known_of_one_sum() -> None:
    allowed = GatewayTable().max_sum_changes
    other = [masked(rounds=6).with_seed(seed) for seed in range(allowed)]
    assert asked(*(masked().with_seed(seed) for seed in range(allowed)), *other) == ""
    assert asked(*(masked(groups=0).with_seed(seed) for seed in range(allowed + 1))) == ""
