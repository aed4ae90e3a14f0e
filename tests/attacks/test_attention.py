"""What a reply tells of single patients, if a hostile server makes the hidden units of attention."""

from functools import cache

import numpy as np
import pytest
import torch

from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.tensor_bounds import parts_of
from models.network import SeverityNetwork
from tests.attacks.attention import Trap, attention_of, first_network, own_features, read, trap
from tests.attacks.attention_replies import replied, study_of_attention
from tests.attacks.rig import Refused, rig
from tests.attacks.test_single_out import are_within_bounds, lengths

HOSPITALS = (101, 102, 103)
FORMER_SHARE, SHARE, ROUNDS = 0.12, 0.4, 6  # of its length, which the weights of hidden units may move in a round

pytestmark = pytest.mark.usefixtures("quiet_and_repeatable")


@cache
def made(pooling: str, seed: int, *, is_held: bool) -> tuple[SeverityNetwork, Trap]:
    first = first_network(pooling, seed)
    return first, trap(first, own_features(first), is_held=is_held)


def told_of_patients(found: Trap) -> tuple[float, float, float]:
    """Return the largest share of one patient, and means of the likeness and of how often it is this patient."""
    replies = [read(found, seed) for seed in HOSPITALS]
    shares, likeness, is_patient = (
        np.concatenate(parts)
        for parts in zip(*((each.shares, each.likeness, each.is_patient) for each in replies), strict=True)
    )
    return float(shares.max()), float(likeness.mean()), float(is_patient.mean())


def are_short(network: SeverityNetwork) -> bool:
    """Whether each whole tensor is as short as a run allows."""
    parts = parts_of(network, learning_rate=0.05, epochs=2)[WEIGHTS]
    now = lengths(pack(network)[0][WEIGHTS].astype(np.float64), [part.start for part in parts])
    return bool((now <= [part.longest for part in parts]).all())


@pytest.mark.parametrize(
    ("pooling", "seed"),
    [("gated", 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("gated", 2), ("attention", 1)))],
)
def test_hidden_units_near_the_first_ones_tell_features_of_no_patient(pooling: str, seed: int) -> None:
    first, found = made(pooling, seed, is_held=True)
    assert are_within_bounds(found.network, first)
    share, likeness, is_patient = told_of_patients(found)
    assert share < 0.25
    assert likeness < 0.7
    assert is_patient < 0.4


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_hidden_units_of_any_kind_tell_features_of_one_patient(seed: int) -> None:
    """Control: these weights were within the bounds while only the length of whole tensors was bounded."""
    first, found = made("gated", seed, is_held=False)
    assert are_short(found.network)
    assert not are_within_bounds(found.network, first)
    share, likeness, is_patient = told_of_patients(found)
    assert share > 0.9
    assert likeness > 0.75
    assert is_patient > 0.6


@pytest.mark.slow
def test_gateway_refuses_hidden_units_of_any_kind_on_the_way_there() -> None:
    study = study_of_attention()
    _, found = made("gated", study.study.seed, is_held=False)
    with rig(seed=HOSPITALS[0], patients={"train": 16, "validation": 24, "test": 40}) as attacked:
        attacked.talk_into(study)
        with pytest.raises(Refused, match="E_MODEL_DRIFT"):
            replied(attacked, study, found)


@pytest.mark.slow
@pytest.mark.parametrize("is_held", [False, True])
def test_a_wider_bound_on_the_weights_of_hidden_units_tells_no_more(*, is_held: bool) -> None:
    """They change how much each unit is moved, for all patients alike."""
    _, found = made("gated", 1, is_held=is_held)
    drawn = attention_of(found.network).importance.detach()
    wanted = torch.zeros_like(drawn)
    wanted[found.units] = 2 * drawn.norm() / len(found.units) ** 0.5
    for share in (FORMER_SHARE, SHARE):
        moved = drawn
        for _ in range(ROUNDS):
            way = wanted - moved
            moved = moved + way * min(1.0, share * float(max(drawn.norm(), moved.norm()) / way.norm().clamp(min=1e-9)))
        usual, other = (read(found, HOSPITALS[0], importance) for importance in (None, moved))
        assert other.likeness.mean() < usual.likeness.mean() + 0.1
        assert other.is_patient.mean() <= usual.is_patient.mean() + 0.25
