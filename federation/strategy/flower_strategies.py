"""Strategies by name, Flower's, one of ours, and those of packages: options, needed replies, state."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, MultiKrum, Strategy
from numpy.typing import NDArray

from federation.strategy import reasons
from federation.strategy.centered_clip import CenteredClip
from federation.strategy.own_strategy import OwnStrategy
from models.own_packages import Named
from models.refusal import Refusal

if TYPE_CHECKING:
    from federation.protocol.study_config import Study

# Strategies that work on any model, with those of their options that have an effect. Sampling, record names and
# weighting are not options, because the wrapper relies on them.
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
    "CenteredClip": ("clip_factor", "iterations"),
}
# Without these, a strategy is another one under its own name: FedProx is FedAvg.
_NEEDED = {"FedProx": "proximal_mu"}
_OURS = {"CenteredClip": CenteredClip}
# Lowest allowed value and lowest value too large, if they are not 0 and infinity. Outside this range, the formulas
# divide by zero or diverge, or the model does not move. Usual server learning rates are 0.001 to 10 and
# usual `tau` 1e-5 to 0.1 (Reddi et al. 2021); usual `proximal_mu` is 0.001 to 1 (Li et al. 2020).
_RANGES = {
    "beta": (0.01, 0.5),
    "beta_1": (0.0, 1.0),
    "beta_2": (0.0, 1.0),
    "server_momentum": (0.0, 1.0),
    "eta": (1e-6, 10.0),
    "server_learning_rate": (1e-3, 10.0),
    "proximal_mu": (0.0, 100.0),
    "tau": (1e-12, 10.0),
    "num_nodes_to_select": (1, math.inf),
    "clip_factor": (0.1, 10.0),
    "iterations": (1, 101),
}
# The state that these strategies keep between rounds, besides the model itself.
_MEMORY = ("m_t", "v_t", "momentum_vector")
_ADAPTIVE = ("FedAdam", "FedYogi", "FedAdagrad")  # they divide each weight's change by its own size
# Strategies designed to withstand some hostile sites; Krum is a MultiKrum.
_ROBUST = (CenteredClip, FedMedian, FedTrimmedAvg, MultiKrum, Bulyan)


def build_strategy(name: str, options: Mapping[str, float], *, code: str = "", sites: int | None = None) -> FedAvg:
    """Build a strategy by its name and options, both as Flower names them, for a study with `sites` sites.

    `code`: the SHA-256 of the package's files, if the strategy is one of a package; none of it is run here.
    Raises `Refusal`: E_STRATEGY (unknown name), E_STRATEGY_OPTION (unknown, not a number, out of range),
    E_STRATEGY_SITES (see `least_replies`).
    """
    if code:
        return OwnStrategy(Named("strategy", name, code), options)
    if name not in OPTIONS:
        raise Refusal(reasons.STRATEGY, private=name, known=", ".join(OPTIONS))
    strategy: type = _OURS.get(name) or getattr(flower, name)
    chosen = {option: _checked(name, strategy, option, value) for option, value in options.items()}
    built = cast(FedAvg, strategy(**chosen))
    if sites is not None and (needed := least_replies(built)) > sites:
        raise Refusal(reasons.STRATEGY_SITES, needed=needed, sites=sites)
    return built


def strategy_of(study: "Study") -> FedAvg:
    """Build a study's strategy, for the sites that a round asks.

    Raises Refusal as `build_strategy` does, and E_STRATEGY_OPTION if the study lacks an option that the strategy needs.
    """
    chosen = study.strategy
    if (needed := _NEEDED.get(chosen.name)) and needed not in chosen.options:
        raise _wrong_option(chosen.name, needed)
    return build_strategy(chosen.name, chosen.options, code=chosen.code, sites=study.study.asked_a_round)


def _checked(name: str, strategy: type, option: str, value: object) -> float:
    """Check an option's value, and return an integer if Flower expects one: a study file's numbers are floats."""
    if option in OPTIONS[name] and isinstance(value, int | float) and not isinstance(value, bool):
        default = inspect.signature(strategy).parameters[option].default
        least, too_large = _RANGES.get(option, (0.0, math.inf))
        is_whole = not isinstance(default, int) or float(value).is_integer()
        if least <= value < too_large and is_whole:
            return int(value) if isinstance(default, int) else value
    raise _wrong_option(name, option)


def _wrong_option(name: str, option: str) -> Refusal:
    return Refusal(reasons.STRATEGY_OPTION, option=option, known=", ".join(OPTIONS[name]) or "none")


class ServerOptimiser(NamedTuple):
    """How far a strategy's own optimiser may move the model in a round, beyond the mean of the sites' updates.

    `factor`: how much it may lengthen that mean. `step`: how far it may additionally move each weight.
    """

    factor: float = 1.0
    step: float = 0.0


def server_optimiser(name: str, options: Mapping[str, float], *, code: str = "") -> ServerOptimiser:
    """Return the limits of a strategy with these options. Raises Refusal as `build_strategy` does.

    A strategy of a package may not move the model further than the sites' updates do.
    """
    strategy = build_strategy(name, options, code=code)
    if name == "FedAvgM":
        momentum, rate = getattr(strategy, "server_momentum", 0.0), getattr(strategy, "server_learning_rate", 1.0)
        return ServerOptimiser(factor=max(1.0, rate / (1 - momentum)))
    if name in _ADAPTIVE:
        return ServerOptimiser(step=float(getattr(strategy, "eta", 0.1)))
    return ServerOptimiser()


def is_robust(inner: Strategy) -> bool:
    """Tell whether a strategy is designed to withstand hostile sites; such strategies (almost) ignore weights.

    A strategy of a package is taken for one: it receives updates, and what is combined beside it is a median.
    """
    return isinstance(inner, (*_ROBUST, OwnStrategy))


def least_replies(inner: Strategy, *, shown: int = 0) -> int:
    """Return the least number of valid replies with which a strategy gives its protection; it must not run with fewer.

    With f hostile nodes Krum needs 2f + 3 (Blanchard et al. 2017), and f more than it selects, so that it need not
    select a hostile one. Bulyan needs 4f + 3 (El Mhamdi et al. 2018). The median of two is their mean, and a trimmed
    mean that cuts off nobody is a mean: neither would stop a hostile reply. Centred clipping does not withstand one
    hostile site of two either, but then moves the model no further than the shorter of the two updates. It leaves the
    number of replies to the study's quorum, so that one missing site does not end a study of three.
    `shown`: how many nodes sent replies that had to be refused. The number of hostile nodes still to withstand is
    reduced by it; otherwise a single malformed reply could lose every round.
    """
    if isinstance(inner, MultiKrum):
        hostile = max(0, inner.num_malicious_nodes - shown)
        return max(2 * hostile + 3, inner.num_nodes_to_select + hostile)
    if isinstance(inner, Bulyan):
        return 4 * max(0, inner.num_malicious_nodes - shown) + 3
    if isinstance(inner, FedTrimmedAvg):
        cuts_one = next(count for count in range(3, 200) if int(inner.beta * count) >= 1)  # as Flower rounds
        return max(3, cuts_one - shown)
    return 3 if isinstance(inner, FedMedian) else 1


@contextmanager
def remaining_hostile(inner: Strategy, *, shown: int, valid: int) -> Iterator[None]:
    """Within this context, set a strategy to the hostile nodes that may remain among `valid` replies.

    Of the hostile nodes that it expects, `shown` were already refused. A trimmed mean still cuts off as many as it
    would of all replies: the refused one may have been an unusual hospital, and the hostile one still be there.
    """
    option, value = "", 0.0
    if isinstance(inner, MultiKrum | Bulyan):
        option, value = "num_malicious_nodes", max(0, inner.num_malicious_nodes - shown)
    elif isinstance(inner, FedTrimmedAvg):
        cut = min(int(inner.beta * (valid + shown)), (valid - 1) // 2)
        option, value = "beta", (cut + 0.25) / valid  # Flower takes its integer part
    if not option:
        yield
        return
    set_to = getattr(inner, option)
    setattr(inner, option, value)
    try:
        yield
    finally:
        setattr(inner, option, set_to)


def strategy_state(inner: Strategy) -> dict[str, NDArray]:
    """Return a strategy's state between rounds as named arrays, `<attribute>/<array>`; empty if it has none.

    FedAdam, FedYogi and FedAdagrad keep two moments by name; FedAvgM keeps a list in the arrays' order. The arrays are
    not copied: these strategies replace their arrays and never write into them.
    """
    state: dict[str, NDArray] = {}
    for attribute in _MEMORY:
        memory = getattr(inner, attribute, None) or {}
        if isinstance(memory, list):
            memory = {f"{place:06d}": array for place, array in enumerate(memory)}
        state |= {f"{attribute}/{name}": np.asarray(array) for name, array in memory.items()}
    return state


def restore_strategy(inner: Strategy, state: Mapping[str, NDArray]) -> None:
    """Restore the state that `strategy_state` took from a strategy of the same kind.

    Raises `Refusal` E_CHECKPOINT_STRATEGY if this strategy does not have such a state.
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
        inner.current_arrays = None  # set again from the model that the next round sends out
