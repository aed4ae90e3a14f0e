"""The plan of a network of one's own: what has no bound is refused, and a stand-in has the same tensors."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.network_layers import plan_of, stand_in, try_layers
from models.network_plan import Plan
from models.refusal import Refusal


class Plain(nn.Module):
    """A network within the rules; tests break one rule each."""

    features = 8

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv3d(2, 4, 3, stride=2)
        self.norm = norm or nn.BatchNorm3d(4)
        self.last = nn.Conv3d(4, 8, 3, stride=2)

    def forward(self, scan: Tensor) -> Tensor:
        maps: Tensor = self.last(torch.relu(self.norm(self.first(scan))))
        return maps


class Mixing(Plain):
    def forward(self, scan: Tensor) -> Tensor:
        return super().forward(scan - scan.mean(dim=0, keepdim=True))


class Flat(Plain):
    def forward(self, scan: Tensor) -> Tensor:
        return super().forward(scan).flatten(2)


class Growing(Plain):
    def forward(self, scan: Tensor) -> Tensor:
        self.register_buffer("seen", scan.clone())
        return super().forward(scan)


class Chance(Plain):
    """Has a layer that draws random numbers in training."""

    def __init__(self, layer: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__(norm)
        self.chance = layer

    def forward(self, scan: Tensor) -> Tensor:
        maps: Tensor = self.chance(super().forward(scan))
        return maps


class DropPath(nn.Module):
    """Stochastic depth with numpy's random numbers."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps * float(np.random.default_rng().uniform(0.5, 1))


class RareDropPath(nn.Module):
    """Stochastic depth by hand that a few trials do not show."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, maps: Tensor) -> Tensor:
        return maps if self.draw() >= 1e-6 else torch.zeros_like(maps)


class Covered(nn.Module):
    """Dropout that leaves torch's generator as it was."""

    def forward(self, maps: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return nn.functional.dropout(maps)


class Remembering(nn.Module):
    """Keeps what it saw before, out of sight of the plan."""

    seen = 0.0

    def forward(self, maps: Tensor) -> Tensor:
        self.seen += float(maps.abs().mean())
        return maps * self.seen


def problem(change: Callable[[Plain], object]) -> str:
    """Return with which code and words the plan of a changed network is refused."""
    layers = Plain()
    change(layers)
    with pytest.raises(Refusal) as refused:
        plan_of(layers)
    return f"{refused.value.code} {refused.value.says}"


def test_plan_lists_the_tensors_in_order() -> None:
    plan = plan_of(Plain())
    assert [tensor.name for tensor in plan.tensors] == list(Plain().state_dict())
    assert plan.features == 8 and plan.has_batch_norm
    assert not plan_of(Plain(nn.GroupNorm(2, 4))).has_batch_norm
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda layers: layers.register_buffer("memory", torch.zeros(1000)), "buffer without bounds"),
        (lambda layers: layers.register_buffer("running_mean", torch.zeros(1000)), "not those of batch norm"),
        (lambda layers: layers.register_parameter("running_var", nn.Parameter(torch.zeros(9))), "name of a buffer"),
        (lambda layers: layers.norm.register_buffer("running_var", torch.zeros(5)), "not those of batch norm"),
        (lambda layers: layers.first.weight.requires_grad_(False), "not learnt"),
        (lambda layers: setattr(layers, "again", layers.first), "two names stand for one tensor"),
        (lambda layers: setattr(layers.norm, "momentum", 0.5), "momentum"),
        (lambda layers: setattr(layers.norm, "momentum", None), "momentum"),
        (lambda layers: layers.double(), "not a plain tensor"),
        (lambda layers: setattr(layers, "features", 10**9), "less than or equal"),
        (lambda layers: setattr(layers, "features", None), "integer"),
        (lambda layers: setattr(layers, "huge", nn.Linear(10_000, 10_000)), "more than"),
    ],
)
def test_what_the_gateway_has_no_bound_for_is_refused(change: Callable[[Plain], object], says: str) -> None:
    found = problem(change)
    assert found.startswith("E_NETWORK_PLAN") and says in found


@pytest.mark.parametrize(
    "layers", [Mixing(nn.GroupNorm(2, 4)), Flat(), Growing()], ids=lambda made: type(made).__name__
)
def test_network_that_breaks_a_rule_when_it_computes_is_refused(layers: Plain) -> None:
    with pytest.raises(Refusal, match="E_NETWORK_PLAN"):
        try_layers(layers, plan_of(layers))


@pytest.mark.parametrize("norm", [None, nn.GroupNorm(2, 4)], ids=["batch", "group"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout3d(0.5),
        nn.Dropout(1e-6),
        DropPath(),
        RareDropPath(random.random),
        RareDropPath(np.random.rand),
        Covered(),
        Remembering(),
    ],
    ids=["dropout", "rare dropout", "stochastic depth", "rare, Python's", "rare, NumPy's", "covered", "memory"],
)
def test_network_that_draws_random_numbers_is_refused(layer: nn.Module, norm: nn.Module | None) -> None:
    """Two trainings with one seed would differ, and checkpoints would give wrong gradients."""
    layers = Chance(layer, norm)
    with pytest.raises(Refusal) as refused:
        try_layers(layers, plan_of(layers))
    assert refused.value.code == "E_NETWORK_PLAN" and "random numbers" in refused.value.says


@pytest.mark.parametrize("norm", [None, nn.GroupNorm(2, 4)], ids=["batch", "group"])
def test_network_within_the_rules_passes_and_is_left_as_it_was(norm: nn.Module | None) -> None:
    layers = Chance(nn.Dropout3d(0.0), norm)  # no chance
    before, draws = {name: tensor.clone() for name, tensor in layers.state_dict().items()}, torch.get_rng_state()
    try_layers(layers, plan_of(layers))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layers.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)


def test_stand_in_has_the_tensors_of_the_network() -> None:
    layers = Plain()
    made, expected = stand_in(plan_of(layers)).state_dict(), layers.state_dict()
    assert list(made) == list(expected)
    assert all(
        made[name].shape == tensor.shape and made[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


@pytest.mark.parametrize(
    "names", [["../first"], ["a..b"], ["a" * 61], ["first.weight", "first.weight"], ["x\n"], [""]], ids=str
)
def test_names_with_tricks_are_refused(names: list[str]) -> None:
    tensors = [{"name": name, "shape": [2, 2, 3, 3, 3], "kind": "weight"} for name in names]
    with pytest.raises(ValidationError):
        Plan.model_validate({"features": 8, "tensors": tensors})


@pytest.mark.parametrize("names", [["forward"], ["a", "a.b"], ["a.x", "b.x", "a.y"], ["_parameters.x"]], ids=str)
def test_names_that_no_module_can_have_are_refused(names: list[str]) -> None:
    tensors = [{"name": name, "shape": [2, 2, 3, 3, 3], "kind": "weight"} for name in names]
    with pytest.raises(Refusal, match="E_NETWORK_PLAN"):
        stand_in(Plan.model_validate({"features": 8, "tensors": tensors}))
