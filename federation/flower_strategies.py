"""Flower's strategies by name, and what each remembers between rounds (for checkpoints)."""

import inspect
import math
from collections.abc import Mapping
from typing import cast

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from federation import reasons
from models.refusal import Refusal

# Flower's strategies that work on any model, with the options of theirs that have an effect. Sampling, record
# names and weighting are not options: the wrapper relies on them.
OPTIONS: dict[str, tuple[str, ...]] = {
    "FedAvg": (),
    "FedAvgM": ("server_learning_rate", "server_momentum"),
    "FedAdam": ("eta", "beta_1", "beta_2", "tau"),
    "FedYogi": ("eta", "beta_1", "beta_2", "tau"),
    "FedAdagrad": ("eta", "tau"),
    "FedProx": ("proximal_mu",),
    "FedMedian": (),
    "FedTrimmedAvg": ("beta",),
    "Krum": ("num_malicious_nodes",),
    "MultiKrum": ("num_malicious_nodes", "num_nodes_to_select"),
    "Bulyan": ("num_malicious_nodes",),
}
# Least value and first value too large, where they are not 0 and infinity: outside, the formulas divide by
# zero or run away.
_RANGES = {
    "beta": (0.0, 0.5),
    "beta_1": (0.0, 1.0),
    "beta_2": (0.0, 1.0),
    "server_momentum": (0.0, 1.0),
    "tau": (1e-12, math.inf),
    "num_nodes_to_select": (1, math.inf),
}
# What these strategies remember from round to round, besides the model itself.
_MEMORY = ("m_t", "v_t", "momentum_vector")


def build_strategy(name: str, options: Mapping[str, float]) -> FedAvg:
    """Flower's strategy of this name with its options (Flower's names for both).

    Raises `Refusal`: E_STRATEGY (unknown name), E_STRATEGY_OPTION (unknown, not a number, out of its range).
    """
    if name not in OPTIONS:
        raise Refusal(reasons.STRATEGY, private=name, known=", ".join(OPTIONS))
    strategy = getattr(flower, name)
    for option, value in options.items():
        if option not in OPTIONS[name] or not _in_range(strategy, option, value):
            known = ", ".join(OPTIONS[name]) or "none"
            raise Refusal(reasons.STRATEGY_OPTION, option=option, known=known)
    return cast(FedAvg, strategy(**options))


def _in_range(strategy: type, option: str, value: object) -> bool:
    default = inspect.signature(strategy).parameters[option].default
    kinds = int if isinstance(default, int) else int | float
    least, too_large = _RANGES.get(option, (0.0, math.inf))
    return isinstance(value, kinds) and not isinstance(value, bool) and least <= value < too_large


def strategy_state(inner: Strategy) -> dict[str, NDArray]:
    """What a strategy remembers between rounds, as named arrays: `<attribute>/<array>`; empty if nothing.

    FedAdam, FedYogi and FedAdagrad keep two moments by name, FedAvgM a list in the arrays' order. Not copied:
    these strategies replace their arrays and never write into them.
    """
    state: dict[str, NDArray] = {}
    for attribute in _MEMORY:
        memory = getattr(inner, attribute, None) or {}
        if isinstance(memory, list):
            memory = {f"{place:06d}": array for place, array in enumerate(memory)}
        state |= {f"{attribute}/{name}": np.asarray(array) for name, array in memory.items()}
    return state


def restore_strategy(inner: Strategy, state: Mapping[str, NDArray]) -> None:
    """Give a strategy what `strategy_state` took from one of its kind.

    Raises `Refusal` E_CHECKPOINT_STRATEGY if the state holds what this strategy does not remember.
    """
    if any(not hasattr(inner, name.partition("/")[0]) for name in state):
        raise Refusal(reasons.CHECKPOINT_STRATEGY)
    for attribute in _MEMORY:
        if hasattr(inner, attribute):
            prefix = f"{attribute}/"
            memory = {name.removeprefix(prefix): state[name] for name in sorted(state) if name.startswith(prefix)}
            value = list(memory.values()) if attribute == "momentum_vector" else memory
            setattr(inner, attribute, value or None)
    if hasattr(inner, "current_arrays"):
        inner.current_arrays = None  # taken anew from the model that the next round sends out
