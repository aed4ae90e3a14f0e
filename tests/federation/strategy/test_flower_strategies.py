"""Building Flower's strategies by name, their options, limits and state."""

import inspect
import math

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from federation.protocol.study_config import Study
from federation.strategy.centered_clip import CenteredClip
from federation.strategy.flower_strategies import (
    OPTIONS,
    build_strategy,
    is_robust,
    least_replies,
    remaining_hostile,
    restore_strategy,
    strategy_of,
    strategy_state,
)
from models.refusal import Refusal


@pytest.mark.parametrize("name", OPTIONS)
def test_names_and_options_are_those_of_flower_except_centered_clip(name):
    kind = CenteredClip if name == "CenteredClip" else getattr(flower, name)
    parameters = inspect.signature(kind).parameters
    defaults = {option: parameters[option].default for option in OPTIONS[name]}
    strategy = build_strategy(name, defaults)
    assert type(strategy) is kind
    assert isinstance(strategy, FedAvg)


def test_options_are_passed_to_the_strategy():
    assert build_strategy("FedAdam", {"eta": 0.05, "beta_1": 0.5}).eta == 0.05
    assert build_strategy("FedAvgM", {"server_momentum": 0.9}).server_momentum == 0.9
    assert build_strategy("Krum", {"num_malicious_nodes": 2}).num_malicious_nodes == 2


def test_integral_floats_of_a_study_file_become_integers():
    strategy = build_strategy("MultiKrum", {"num_malicious_nodes": 1.0, "num_nodes_to_select": 3.0})
    assert (strategy.num_malicious_nodes, strategy.num_nodes_to_select) == (1, 3)
    assert isinstance(strategy.num_malicious_nodes, int)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("FedAvg", {}, 1),
        ("FedAdam", {}, 1),
        ("CenteredClip", {}, 1),  # the quorum alone decides
        ("FedMedian", {}, 3),
        ("FedTrimmedAvg", {}, 5),  # beta 0.2
        ("FedTrimmedAvg", {"beta": 0.1}, 10),
        ("FedTrimmedAvg", {"beta": 0.34}, 3),
        ("FedTrimmedAvg", {"beta": 0.49}, 3),
        ("FedTrimmedAvg", {"beta": 0.01}, 100),
        ("Krum", {}, 3),
        ("Krum", {"num_malicious_nodes": 1}, 5),
        ("Krum", {"num_malicious_nodes": 2}, 7),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}, 5),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 6}, 7),
        ("Bulyan", {"num_malicious_nodes": 1}, 7),
        ("Bulyan", {"num_malicious_nodes": 2}, 11),
    ],
)
def test_minimum_number_of_sites_per_strategy(name, options, needed):
    assert least_replies(build_strategy(name, options)) == needed
    build_strategy(name, options, sites=needed)
    if needed > 1:
        with pytest.raises(Refusal) as refused:
            build_strategy(name, options, sites=needed - 1)
        assert refused.value.code == "E_STRATEGY_SITES"
        assert f"needs {needed} sites" in refused.value.says


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("Krum", {"num_malicious_nodes": 2}, [7, 5, 3, 3]),
        ("MultiKrum", {"num_malicious_nodes": 2, "num_nodes_to_select": 6}, [8, 7, 6, 6]),
        ("Bulyan", {"num_malicious_nodes": 2}, [11, 7, 3, 3]),
        ("FedTrimmedAvg", {"beta": 0.2}, [5, 4, 3, 3]),
        ("FedMedian", {}, [3, 3, 3, 3]),
        ("FedAvg", {}, [1, 1, 1, 1]),
    ],
)
def test_refused_nodes_reduce_the_number_of_replies_needed(name, options, needed):
    strategy = build_strategy(name, options)
    assert [least_replies(strategy, shown=shown) for shown in range(4)] == needed


def test_expected_hostile_nodes_are_reduced_within_the_context_only():
    strategy = build_strategy("Krum", {"num_malicious_nodes": 2})
    with pytest.raises(ZeroDivisionError), remaining_hostile(strategy, shown=1, valid=6):
        assert strategy.num_malicious_nodes == 1
        raise ZeroDivisionError
    assert strategy.num_malicious_nodes == 2
    with remaining_hostile(strategy, shown=5, valid=3):
        assert strategy.num_malicious_nodes == 0


@pytest.mark.parametrize(
    ("beta", "valid", "shown", "cut"),
    [(0.2, 5, 0, 1), (0.2, 4, 1, 1), (0.2, 3, 2, 1), (0.2, 9, 1, 2), (0.2, 9, 0, 1), (0.49, 4, 1, 1), (0.1, 9, 1, 1)],
)
def test_trimmed_mean_still_cuts_as_many_replies_when_one_is_refused(beta, valid, shown, cut):
    strategy = build_strategy("FedTrimmedAvg", {"beta": beta})
    replies = np.concatenate([np.full(cut, 1e9), np.zeros(valid - cut)])[:, None]
    with remaining_hostile(strategy, shown=shown, valid=valid):
        assert int(strategy.beta * valid) == cut
        assert flower.fedtrimmedavg.trim_mean(replies, strategy.beta) == 0
    assert strategy.beta == beta


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.15, 0.2, 0.29, 0.3, 0.45])
def test_trimmed_mean_cuts_one_reply_from_its_minimum_number_on(beta):
    """Checked with Flower's own function: with one reply fewer, the outlier enters the mean."""
    needed = least_replies(build_strategy("FedTrimmedAvg", {"beta": beta}))
    wild = np.zeros((needed, 1))
    wild[0] = 1e9
    assert flower.fedtrimmedavg.trim_mean(wild, beta) == 0
    if needed > 3:
        assert flower.fedtrimmedavg.trim_mean(wild[:-1], beta) > 1e6


def test_robust_strategies():
    robust = {name for name in OPTIONS if is_robust(build_strategy(name, {}))}
    assert robust == {"CenteredClip", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"}


@pytest.mark.parametrize(
    "name", ["", "fedavg", "QFedAvg", "FedXgbBagging", "Strategy", "Result", "DifferentialPrivacyServerSide"]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(Refusal) as refused:
        build_strategy(name, {})
    assert refused.value.code == "E_STRATEGY"
    assert "FedAvgM" in refused.value.says


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FedAvg", {"eta": 0.1}),
        ("FedAdam", {"eta_l": 0.1}),  # Flower accepts it but does not use it
        ("FedAvg", {"fraction_train": 0.5}),
        ("FedAvg", {"weighted_by_key": "loss"}),
        ("FedAdam", {"eta": "0.1"}),
        ("FedAdam", {"eta": True}),
        ("FedAdam", {"eta": -0.1}),
        ("FedAdam", {"eta": math.nan}),
        ("FedAdam", {"eta": math.inf}),
        ("FedAdam", {"eta": 0.0}),  # a model that never moves
        ("FedYogi", {"eta": 1e9}),
        ("FedAdagrad", {"eta": 10.0}),
        ("FedAdam", {"tau": 0.0}),
        ("FedAdam", {"tau": 1e9}),
        ("FedAvgM", {"server_learning_rate": 0.0}),
        ("FedAvgM", {"server_learning_rate": 1e9}),
        ("FedProx", {"proximal_mu": 1e9}),
        ("FedAdam", {"beta_1": 1.0}),
        ("FedTrimmedAvg", {"beta": 0.5}),
        ("FedTrimmedAvg", {"beta": 0.0}),  # a mean that cuts no reply
        ("Krum", {"num_malicious_nodes": 1.5}),
        ("Krum", {"num_malicious_nodes": math.inf}),
        ("MultiKrum", {"num_nodes_to_select": 0}),
        ("CenteredClip", {"tau": 1.0}),
        ("CenteredClip", {"clip_factor": 0.0}),  # an estimate that never moves
        ("CenteredClip", {"clip_factor": 100.0}),  # equals a plain mean
        ("CenteredClip", {"iterations": 0}),
        ("CenteredClip", {"iterations": 1.5}),
    ],
)
def test_unknown_or_impossible_options_are_refused(name, options):
    with pytest.raises(Refusal) as refused:
        build_strategy(name, options)
    assert refused.value.code == "E_STRATEGY_OPTION"
    assert next(iter(options)) in refused.value.says


def test_study_of_fedprox_must_say_how_strongly_it_holds_the_weights():
    """With Flower's default of 0, it would be FedAvg."""
    table = {"name": "x", "rounds": 1, "sites": 3, "quorum": 3}
    with pytest.raises(Refusal, match="proximal_mu is missing") as refused:
        strategy_of(Study.model_validate({"study": table, "strategy": {"name": "FedProx"}}))
    assert refused.value.code == "E_STRATEGY_OPTION"
    for value in (0.0, 0.01, 10.0):
        chosen = {"name": "FedProx", "options": {"proximal_mu": value}}
        assert strategy_of(Study.model_validate({"study": table, "strategy": chosen})).proximal_mu == value


def test_state_of_another_strategy_is_refused():
    momentum = {"momentum_vector/000000": np.ones(2)}
    restore_strategy(build_strategy("FedAvgM", {}), momentum)
    with pytest.raises(Refusal) as refused:
        restore_strategy(build_strategy("FedAdam", {}), momentum)
    assert refused.value.code == "E_CHECKPOINT_STRATEGY"


def test_state_is_saved_and_restored_in_order():
    vectors = [np.full(2, float(place)) for place in range(12)]
    first, second = build_strategy("FedAvgM", {}), build_strategy("FedAvgM", {})
    first.momentum_vector = vectors
    taken = strategy_state(first)
    restore_strategy(second, dict(reversed(taken.items())))
    np.testing.assert_array_equal(second.momentum_vector, vectors)
    assert strategy_state(build_strategy("FedAvgM", {})) == {}
