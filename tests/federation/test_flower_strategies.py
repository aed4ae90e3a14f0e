"""Flower's strategies by name."""

import inspect
import math

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from federation.flower_strategies import OPTIONS, build_strategy, restore_strategy, strategy_state
from models.refusal import Refusal


@pytest.mark.parametrize("name", OPTIONS)
def test_every_name_and_option_is_flowers_own(name):
    parameters = inspect.signature(getattr(flower, name)).parameters
    defaults = {option: parameters[option].default for option in OPTIONS[name]}
    strategy = build_strategy(name, defaults)
    assert type(strategy) is getattr(flower, name)
    assert isinstance(strategy, FedAvg)


def test_options_reach_the_strategy():
    assert build_strategy("FedAdam", {"eta": 0.05, "beta_1": 0.5}).eta == 0.05
    assert build_strategy("FedAvgM", {"server_momentum": 0.9}).server_momentum == 0.9
    assert build_strategy("Krum", {"num_malicious_nodes": 2}).num_malicious_nodes == 2


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
        ("Krum", {"num_malicious_nodes": 1.0}),
        ("MultiKrum", {"num_nodes_to_select": 0}),
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
