"""Flower's strategies by name."""

import inspect
import math

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from federation.strategy.centered_clip import CenteredClip
from federation.strategy.flower_strategies import (
    OPTIONS,
    build_strategy,
    is_robust,
    least_replies,
    remaining_hostile,
    restore_strategy,
    strategy_state,
)
from models.refusal import Refusal


@pytest.mark.parametrize("name", OPTIONS)
def test_every_name_and_option_is_flowers_own_but_one(name):
    kind = CenteredClip if name == "CenteredClip" else getattr(flower, name)
    parameters = inspect.signature(kind).parameters
    defaults = {option: parameters[option].default for option in OPTIONS[name]}
    strategy = build_strategy(name, defaults)
    assert type(strategy) is kind
    assert isinstance(strategy, FedAvg)


def test_options_reach_the_strategy():
    assert build_strategy("FedAdam", {"eta": 0.05, "beta_1": 0.5}).eta == 0.05
    assert build_strategy("FedAvgM", {"server_momentum": 0.9}).server_momentum == 0.9
    assert build_strategy("Krum", {"num_malicious_nodes": 2}).num_malicious_nodes == 2


def test_whole_numbers_of_a_study_file_come_as_floats_and_stay_whole():
    strategy = build_strategy("MultiKrum", {"num_malicious_nodes": 1.0, "num_nodes_to_select": 3.0})
    assert (strategy.num_malicious_nodes, strategy.num_nodes_to_select) == (1, 3)
    assert isinstance(strategy.num_malicious_nodes, int)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("FedAvg", {}, 1),
        ("FedAdam", {}, 1),
        ("CenteredClip", {}, 1),  # the quorum says
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
def test_how_many_sites_a_strategy_needs(name, options, needed):
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
def test_nodes_that_have_shown_themselves_need_not_be_withstood(name, options, needed):
    strategy = build_strategy(name, options)
    assert [least_replies(strategy, shown=shown) for shown in range(4)] == needed


def test_fewer_hostile_nodes_are_expected_for_the_length_of_a_block():
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
def test_a_trimmed_mean_goes_on_cutting_off_as_many_as_of_all(beta, valid, shown, cut):
    strategy = build_strategy("FedTrimmedAvg", {"beta": beta})
    replies = np.concatenate([np.full(cut, 1e9), np.zeros(valid - cut)])[:, None]
    with remaining_hostile(strategy, shown=shown, valid=valid):
        assert int(strategy.beta * valid) == cut
        assert flower.fedtrimmedavg.trim_mean(replies, strategy.beta) == 0
    assert strategy.beta == beta


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.15, 0.2, 0.29, 0.3, 0.45])
def test_a_trimmed_mean_cuts_off_one_from_the_number_of_replies_that_is_needed(beta):
    """By Flower's own function: with one reply less, the wild one is in the mean."""
    needed = least_replies(build_strategy("FedTrimmedAvg", {"beta": beta}))
    wild = np.zeros((needed, 1))
    wild[0] = 1e9
    assert flower.fedtrimmedavg.trim_mean(wild, beta) == 0
    if needed > 3:
        assert flower.fedtrimmedavg.trim_mean(wild[:-1], beta) > 1e6


def test_which_strategies_are_robust():
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
        ("FedAdam", {"eta_l": 0.1}),  # Flower has it, and does nothing with it
        ("FedAvg", {"fraction_train": 0.5}),
        ("FedAvg", {"weighted_by_key": "loss"}),
        ("FedAdam", {"eta": "0.1"}),
        ("FedAdam", {"eta": True}),
        ("FedAdam", {"eta": -0.1}),
        ("FedAdam", {"eta": math.nan}),
        ("FedAdam", {"eta": math.inf}),
        ("FedAdam", {"tau": 0.0}),
        ("FedAdam", {"beta_1": 1.0}),
        ("FedTrimmedAvg", {"beta": 0.5}),
        ("FedTrimmedAvg", {"beta": 0.0}),  # a mean that cuts off nobody
        ("Krum", {"num_malicious_nodes": 1.5}),
        ("Krum", {"num_malicious_nodes": math.inf}),
        ("MultiKrum", {"num_nodes_to_select": 0}),
        ("CenteredClip", {"tau": 1.0}),
        ("CenteredClip", {"clip_factor": 0.0}),  # a mean that never moves
        ("CenteredClip", {"clip_factor": 100.0}),  # a mean
        ("CenteredClip", {"iterations": 0}),
        ("CenteredClip", {"iterations": 1.5}),
    ],
)
def test_unknown_or_impossible_options_are_refused(name, options):
    with pytest.raises(Refusal) as refused:
        build_strategy(name, options)
    assert refused.value.code == "E_STRATEGY_OPTION"
    assert next(iter(options)) in refused.value.says


def test_memory_of_another_strategy_is_refused():
    momentum = {"momentum_vector/000000": np.ones(2)}
    restore_strategy(build_strategy("FedAvgM", {}), momentum)
    with pytest.raises(Refusal) as refused:
        restore_strategy(build_strategy("FedAdam", {}), momentum)
    assert refused.value.code == "E_CHECKPOINT_STRATEGY"


def test_memory_is_taken_and_given_back_in_order():
    vectors = [np.full(2, float(place)) for place in range(12)]
    first, second = build_strategy("FedAvgM", {}), build_strategy("FedAvgM", {})
    first.momentum_vector = vectors
    taken = strategy_state(first)
    restore_strategy(second, dict(reversed(taken.items())))
    np.testing.assert_array_equal(second.momentum_vector, vectors)
    assert strategy_state(build_strategy("FedAvgM", {})) == {}
