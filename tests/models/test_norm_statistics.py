"""Batch-norm statistics estimated again: the mix, its bounds against chosen scans, what a derived release is."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.adaptation import SOURCE_SCANS, derive
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from models.norm_statistics import REACH, STATISTICS, adapt_statistics, norm_layers, require_derived
from models.operating_points import Evidence, OperatingPoint
from models.refusal import Refusal
from models.release import Release
from tests.helpers.adapting import SMALL, adaptation, parent_description

COUNT = 64


def code(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.code


def scans(count: int = COUNT, seed: int = 1) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(0.2, 0.5, (2, 8, 8, 8)).clip(-1, 1).astype(np.float32)) for _ in range(count)]


def network() -> SeverityNetwork:
    """A network whose statistics fit scans of another kind, as after a training elsewhere."""
    made = build_network(SMALL, seed=1)
    made.train()
    with torch.no_grad():
        for _ in range(30):
            made.of_scans(torch.stack(scans(8, seed=2)) * 0.5 - 0.3)
    return made.eval()


def adapted(base: SeverityNetwork, given: list[Tensor]) -> SeverityNetwork:
    made = copy.deepcopy(base)
    adapt_statistics(made, lambda: iter(given))
    return made


def first_layer(net: SeverityNetwork) -> tuple[Tensor, Tensor]:
    layer = next(iter(norm_layers(net).values()))
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean.double(), layer.running_var.double()


@pytest.fixture(scope="module")
def base() -> SeverityNetwork:
    return network()


@pytest.fixture(scope="module")
def settled(base: SeverityNetwork) -> SeverityNetwork:
    return adapted(base, scans())


@pytest.mark.slow
def test_first_layer_has_the_mix_of_both_statistics(base: SeverityNetwork, settled: SeverityNetwork) -> None:
    seen: list[Tensor] = []
    hook = next(iter(norm_layers(base).values())).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        base.of_scans(torch.stack(scans()))
    hook.remove()
    mean, variance = seen[0].double().mean((0, 2, 3, 4)), seen[0].double().var((0, 2, 3, 4), correction=0)
    weight = COUNT / (SOURCE_SCANS + COUNT)
    for source, target, found in zip(first_layer(base), (mean, variance), first_layer(settled), strict=True):
        assert torch.allclose(found, (1 - weight) * source + weight * target, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_only_statistics_change_and_the_order_of_scans_does_not_matter(
    base: SeverityNetwork, settled: SeverityNetwork
) -> None:
    before, after = base.state_dict(), settled.state_dict()
    statistics = {f"{name}.{statistic}" for name in norm_layers(base) for statistic in STATISTICS}
    assert {name for name in before if not torch.equal(before[name], after[name])} == statistics
    again = adapted(base, scans()[::-1]).state_dict()
    assert all(torch.allclose(after[name], again[name], rtol=1e-4, atol=1e-6) for name in after)


@pytest.mark.slow
def test_one_chosen_scan_moves_the_first_layer_only_within_the_bound(
    base: SeverityNetwork, settled: SeverityNetwork
) -> None:
    """Somebody who can send to the PACS sends the most extreme scan."""
    (mean, _), (_, source_variance) = first_layer(settled), first_layer(base)
    for extreme in (torch.ones(2, 8, 8, 8), -torch.ones(2, 8, 8, 8), 1e6 * torch.ones(2, 8, 8, 8)):
        attacked, _ = first_layer(adapted(base, [*scans()[:-1], extreme]))
        bound = 2 * REACH * source_variance.sqrt() / (SOURCE_SCANS + COUNT)
        assert ((attacked - mean).abs() <= bound * 1.001 + 1e-7).all()


def test_networks_without_batch_norm_are_refused() -> None:
    group = build_network(NetworkSettings(**{**SMALL.model_dump(), "norm": "group"}), seed=1)
    assert code(adapt_statistics, group, lambda: iter(scans(2))) == "E_ADAPT_NETWORK"


# --- what a derived release may be ------------------------------------------------------------------------


def pair(base: SeverityNetwork, settled: SeverityNetwork) -> tuple[Release, Release]:
    parent = Release(base, parent_description(), "a" * 64, "b" * 64)
    return parent, Release(settled, derive(parent.description, adaptation(), {}), "c" * 64, "d" * 64)


def changed(settled: SeverityNetwork, name: str, by: Callable[[Tensor], Tensor]) -> SeverityNetwork:
    made = copy.deepcopy(settled)
    state = made.state_dict()
    state[name] = by(state[name])
    made.load_state_dict(state)
    return made


@pytest.mark.slow
def test_derived_release_is_the_parent_with_other_statistics(base: SeverityNetwork, settled: SeverityNetwork) -> None:
    parent, derived = pair(base, settled)
    require_derived(derived, parent)
    assert derived.description.operating_points == {}
    assert "adapted" in derived.description.why_missing("severe")["rule_out"]
    mean = f"{next(iter(norm_layers(base)))}.running_mean"
    for network in (
        changed(settled, "head.weight", lambda weight: weight + 1e-6),
        changed(settled, mean, lambda value: value + 100),
        changed(settled, mean, lambda value: value * float("nan")),
        changed(settled, mean.replace("mean", "var"), lambda value: value * 50),
        changed(settled, mean.replace("mean", "var"), lambda value: value * 0),
    ):
        assert code(require_derived, replace(derived, network=network), parent) == "E_DERIVED_ALTERED"


@pytest.mark.slow
def test_derived_release_may_not_say_more_than_its_parent(base: SeverityNetwork, settled: SeverityNetwork) -> None:
    parent, derived = pair(base, settled)
    points = parent.description.operating_points
    few = Evidence(value=1.0, low=0.9, high=1.0, positives=5, negatives=50, sites=1)
    own = {"severe": {"rule_out": OperatingPoint(threshold=0.3, evidence=few)}}
    enough = few.model_copy(update={"positives": 50})
    moved = {"severe": {"rule_out": OperatingPoint(threshold=0.5, evidence=enough)}}
    for description in (
        derived.description.model_copy(update={"operating_points": points}),
        derive(parent.description, adaptation(), points),  # the parent's evidence
        derive(parent.description, adaptation(), own),
        derive(parent.description, adaptation(), moved),
        derived.description.model_copy(update={"trained_on_synthetic_data": False}),
        derived.description.model_copy(update={"limits": parent.description.limits}),
        derived.description.model_copy(update={"adaptation": None}),
    ):
        assert code(require_derived, replace(derived, description=description), parent) == "E_DERIVED_ALTERED"
    assert code(require_derived, derived, replace(parent, sha256="e" * 64)) == "E_DERIVED_ALTERED"
    held = {"severe": {"rule_out": OperatingPoint(threshold=0.3, evidence=enough)}}
    require_derived(replace(derived, description=derive(parent.description, adaptation(), held)), parent)
