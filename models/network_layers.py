"""The layers of a network of one's own: their plan, a stand-in for them, and their first weights.

The first weights do not come from the network's own code. They are drawn here, from the seed and the plan alone, so
that a hospital's gateway can compute them without that code.
"""

import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.network_plan import Plan, PlannedTensor
from models.pooling import PlaceAttention
from models.reasons import NETWORK_PLAN
from models.refusal import Refusal

MOMENTUM = 0.1  # of batch norm; the gateway's bounds on running statistics assume it
TRIAL = (16, 32, 32)  # slices, rows, columns of the scans with which a network is tried
_REPEATS = 3  # of the trial: a draw from a generator of the network's own may have no effect in one of them
_SAME = 1e-3  # largest difference of a patient's features, alone and among others, relative to their size


class OwnBackbone(nn.Module):
    """The layers of a package, from scans to maps, and our pooling from maps to features."""

    def __init__(self, maps: nn.Module, features: int, pooling: str) -> None:
        super().__init__()
        self.maps, self.features = maps, features
        self.pool = PlaceAttention(features, is_gated=pooling == "gated") if pooling in ("attention", "gated") else None

    def forward(self, scan: Tensor) -> Tensor:
        """Encode `scan` (batch, 2, slices, rows, columns) to features (batch, features)."""
        maps: Tensor = self.maps(scan)
        if maps.ndim != 5 or maps.shape[:2] != (len(scan), self.features):
            raise ValueError("the network's maps do not have the shape (batch, features, slices, rows, columns)")
        return maps.mean(dim=(2, 3, 4)) if self.pool is None else self.pool(maps)


def plan_of(layers: nn.Module) -> Plan:
    """Return the plan of a network's layers. Raises Refusal E_NETWORK_PLAN if they are not usable."""
    weights = dict(layers.named_parameters(remove_duplicate=False))
    tensors = layers.state_dict()
    for name, tensor in tensors.items():
        expected = torch.int64 if name.rpartition(".")[2] == "num_batches_tracked" else torch.float32
        if not isinstance(tensor, Tensor) or tensor.dtype != expected or not tensor.is_contiguous():
            raise _unusable(f"{name} is not a plain tensor of {expected}")
    if not all(weight.requires_grad for weight in weights.values()):
        raise _unusable("a weight is not learnt")
    if len({tensor.data_ptr() for tensor in tensors.values()}) < len(tensors):
        raise _unusable("two names stand for one tensor")
    for norm in (each for each in layers.modules() if isinstance(each, _BatchNorm)):
        if norm.momentum != MOMENTUM or not norm.track_running_stats:
            raise _unusable(f"a batch norm has another momentum than {MOMENTUM}, or no running statistics")
    features = getattr(layers, "features", None)
    planned = [
        {"name": name, "shape": tuple(tensor.shape), "kind": "weight" if name in weights else "buffer"}
        for name, tensor in tensors.items()
    ]
    try:
        return Plan.model_validate({"features": features, "tensors": planned})
    except ValidationError as error:
        raise _unusable(error.errors(include_url=False, include_input=False)[0]["msg"]) from None


def try_layers(layers: nn.Module, plan: Plan) -> None:
    """Run the layers on noise as in training: shape, finite values, no random numbers, and that patients stay apart.

    The last is asked of layers without batch norm only. The layers' tensors are the same afterwards. Raises Refusal
    E_NETWORK_PLAN. A network whose code behaves otherwise with other scans, on another device or in a backward pass is
    not found this way.
    """
    backbone = OwnBackbone(layers, plan.features, "mean").train()
    scans = torch.randn(3, 2, *TRIAL, generator=torch.Generator().manual_seed(0))
    kept = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        together = _features(backbone, scans)
        if not torch.isfinite(together).all():
            raise _unusable("its features are not finite")
        if not _repeats(backbone, scans, together):
            raise _unusable("it draws random numbers in training, as dropout does, or keeps something between scans")
        if not plan.has_batch_norm:
            alone = torch.cat([_features(backbone, scans[number : number + 1]) for number in range(len(scans))])
            if not torch.allclose(alone, together, rtol=_SAME, atol=_SAME * float(together.abs().max())):
                raise _unusable("it mixes the patients of a batch")
        if plan_of(layers) != plan:
            raise _unusable("they change when it computes")
        for name, tensor in layers.state_dict().items():
            tensor.copy_(kept[name])  # batch norm has counted the trial


def _features(backbone: OwnBackbone, scans: Tensor) -> Tensor:
    try:
        features: Tensor = backbone(scans.clone())
    except Exception as error:  # whatever foreign code raises
        raise Refusal(NETWORK_PLAN, problem="the network cannot compute them", private=repr(error)) from None
    return features


def _repeats(backbone: OwnBackbone, scans: Tensor, features: Tensor) -> bool:
    """Whether the same scans give the same features to the bit, and no generator of the process was drawn from.

    Training seeds none of these generators, and a checkpoint computes a stage a second time, after other draws. Batch
    norm does not hide a draw: in training it normalises with the batch, whatever it has counted before. Each repeat
    begins at another state of torch's generator, because a network could put the former state back after a draw.
    """
    for seed in range(_REPEATS):
        torch.default_generator.manual_seed(seed)
        before = _generators()
        if not torch.equal(_features(backbone, scans), features) or _generators() != before:
            return False
    return True


def _generators() -> tuple[object, ...]:
    """Return the states of the generators that all code of a process shares: torch's, Python's and NumPy's."""
    of_numpy = np.random.get_state(legacy=False)
    words, place = of_numpy["state"]["key"].tobytes(), of_numpy["state"]["pos"]
    numpys = words, place, of_numpy["has_gauss"], of_numpy["gauss"]
    return bytes(torch.get_rng_state().tolist()), random.getstate(), numpys


def stand_in(plan: Plan) -> nn.Module:
    """Return a module with the tensors of a plan, which cannot compute. Raises Refusal E_NETWORK_PLAN."""
    root = nn.Module()
    try:
        for tensor in plan.tensors:
            *folders, name = tensor.name.split(".")
            at = root
            for folder in folders:
                if folder not in dict(at.named_children()):
                    at.add_module(folder, nn.Module())
                at = at.get_submodule(folder)
            _add(at, name, tensor)
    except (KeyError, AttributeError) as error:  # a name that modules themselves use
        raise _unusable(f"{tensor.name} is not a usable name") from error
    if list(root.state_dict()) != [tensor.name for tensor in plan.tensors]:
        raise _unusable("they are in an order in which no module has them")
    return root


def _add(at: nn.Module, name: str, tensor: PlannedTensor) -> None:
    if tensor.kind == "weight":
        at.register_parameter(name, nn.Parameter(torch.zeros(tensor.shape)))
    else:
        kind = torch.int64 if name == "num_batches_tracked" else torch.float32
        at.register_buffer(name, torch.zeros(tensor.shape, dtype=kind))


@torch.no_grad()
def initialise(layers: nn.Module, plan: Plan) -> None:
    """Draw the first weights from torch's generator, in the order of the plan; reset running statistics.

    Convolutions and other weights of two or more dimensions: Kaiming's normal distribution, as in the ResNets. A
    `weight` of one dimension is 1 (a norm's scale), a `bias` is 0; others are drawn with a standard deviation of
    1 / sqrt(size).
    """
    tensors = layers.state_dict()  # shares the memory of the weights
    for name, tensor in _named(plan, tensors):
        last = name.rpartition(".")[2]
        if last == "running_var" or (tensor.ndim == 1 and last == "weight"):
            tensor.fill_(1)
        elif last in ("running_mean", "num_batches_tracked") or (tensor.ndim <= 1 and last == "bias"):
            tensor.zero_()
        elif tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu")
        else:
            tensor.normal_(std=1 / math.sqrt(max(1, tensor.numel())))


def _named(plan: Plan, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for planned in plan.tensors:
        yield planned.name, tensors[planned.name]


def _unusable(problem: str) -> Refusal:
    return Refusal(NETWORK_PLAN, problem=problem)
