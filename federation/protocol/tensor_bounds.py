"""Bounds on how far training may move each tensor, filter and channel, and on how long a tensor may become.

A server that could choose weights freely could choose weights whose update reveals single patients. The gateway checks
every model against these bounds, and a study that starts from a release checks it as well. Needs torch.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from federation.protocol.batch_norm import MEAN, VARIANCE, is_buffer

if TYPE_CHECKING:
    from torch import Tensor

    from models.network import SeverityNetwork
    from models.network_settings import NetworkSettings
    from models.pooling import Attention


class Bound(NamedTuple):
    """How far a tensor may move in a round, and how long it may become, as root mean squares.

    In a round it may move by `share` of its length (now or at the seed, whichever is larger), or by `floor` if that is
    larger. Its length may reach `times` its length at the seed, or `longest` if that is larger.
    """

    share: float
    floor: float
    times: float
    longest: float


# About twice what training did with the default study at one hospital of 60 to 400 synthetic patients, in a round and
# over 20 rounds (measured in docs/one-reply.md). Training itself limits the weights on age and sex to 0.4.
_CONVOLUTION = Bound(0.7, 0, 3, 0)
_FIRST_CONVOLUTION = Bound(2.5, 0, 6, 0)
_NORM_SCALE = Bound(0.12, 0, 2, 0)
_NORM_SHIFT = Bound(0, 0.1, 0, 0.6)  # zero at the seed
_HEAD_OF_SCAN, _HEAD_BIAS = Bound(3, 0, 0, 0.6), Bound(0, 0.25, 0, 1.2)
# How long these few weights are drawn is chance, and shorter beside more features of the scan. How far they move does
# not depend on it: their inputs are about 1, as that of a bias, so they may move as far as one.
_HEAD_OF_AGE_AND_SEX = Bound(3, 0.25, 0, 0.6)
# Of a pretraining on hidden blocks, whose head is applied at each place. A long head drives most estimates to the end
# of their range, where they teach nothing, and its update then follows the few others. So it may become this many times
# as long as it is drawn (torch's Linear draws 1 / sqrt(3 inputs)), whatever the first model is (docs/pretraining.md).
_HEAD_OF_PLACES = 4
_OTHER = Bound(0.7, 0.05, 6, 0.6)
# The weights of attention's hidden units move further than norms do, most without gates.
_PLAIN_ATTENTION, _GATED_ATTENTION = Bound(0.9, 0, 2, 0), Bound(0.4, 0, 2, 0)
_UNBOUNDED = 1e30  # the length of running means and variances has no meaning
_RUNNING_MEAN, _RUNNING_VARIANCE = Bound(4, 6, 0, _UNBOUNDED), Bound(16, 16, 0, _UNBOUNDED)
_FIXED = Bound(0, 0, 1, 0)
_USUAL_RATE, _USUAL_EPOCHS = 0.05, 2

# How far one filter or channel may be from the seed's during a whole run; filters as a share of their own length. These
# are 1.5 to 2 times what training did in 20 rounds with 300 synthetic patients (docs/one-reply.md). For filters the
# share is less than 1, because a filter could otherwise be replaced by any other. Filters of the first convolution and
# the first stage moved further; they are not bounded here.
_FILTER = 0.85
_STEM_SCALE, _STEM_SHIFT, _SCALE, _SHIFT = 1.0, 0.7, 0.5, 0.4
_STAGE = re.compile(r"\.(?:layer|denseblock|transition)(\d)\.")
_HELD_STAGES = (2, 3, 4)
_POOLING = re.compile(r"\.(?:content|gate)\.(?:weight|bias)$|\.importance$")  # see `models.pooling`
_OWN = "backbone.maps."  # the layers of a package, see `models.network_layers`
_USUAL_ROUNDS = 40


# The networks besides the usual ResNets whose honest training used at most three quarters of each of these bounds
# (docs/one-reply.md): architecture, pooling, norm.
_MEASURED_WIDTH = 0.25
_MEASURED = {
    ("resnet18", "gated", "batch"),
    ("resnet18", "attention", "batch"),
    ("densenet121", "mean", "batch"),
    ("densenet121", "gated", "batch"),
    ("densenet121", "attention", "batch"),
    ("densenet121", "mean", "group"),
    ("seresnet50", "mean", "batch"),
    ("seresnet50", "gated", "batch"),
    ("seresnet50", "attention", "batch"),
    ("efficientnet_b0_slices", "gated", "batch"),
    ("efficientnet_b0_slices", "attention", "batch"),
    ("convnext", "mean", "batch"),
    ("convnext", "attention", "batch"),
}


def is_measured(network: "NetworkSettings") -> bool:
    """Tell whether honest training of a network was compared with these bounds."""
    if network.is_own or network.encoder:
        return False
    usual = "gated" if network.is_slicewise else "mean"
    pooling = network.pooling or usual
    if network.architecture.startswith("resnet") and pooling == usual:
        return True
    known = (network.architecture, pooling, network.norm) in _MEASURED
    return known and network.widen_factor == _MEASURED_WIDTH


class Part(NamedTuple):
    """A tensor in a packed array, or a piece of it: where it begins, its root mean square at the seed, and its bound.

    `longest`: the largest root mean square that the piece may reach.
    """

    start: int
    rms: float
    share: float
    floor: float
    longest: float


def _faster(learning_rate: float, epochs: int) -> float:
    return max(1.0, learning_rate / _USUAL_RATE) * max(1.0, epochs / _USUAL_EPOCHS)


class Reach(NamedTuple):
    """A filter or channel of a packed array, or a longer piece: its start, and its largest distance from the seed's.

    `farthest`: a root mean square; it holds for the whole run.
    """

    start: int
    farthest: float


def reaches_of(network: "SeverityNetwork", *, learning_rate: float, epochs: int, rounds: int) -> dict[str, list[Reach]]:
    """Return the pieces of a network's packed weights with their bounds, for a training of these settings."""
    from federation.protocol.flat_weights import group_of

    longer = _faster(learning_rate, epochs) * max(1.0, rounds / _USUAL_ROUNDS)
    reaches: dict[str, list[Reach]] = {}
    ends: dict[str, int] = {}
    stages = _stages(network) | dict.fromkeys(_hidden_units(network), _HELD_STAGES[0])
    for name, tensor in network.state_dict().items():
        if is_buffer(name):
            continue
        group = group_of(name)
        for piece, farthest in _held(name, tensor, stages.get(name)):
            start = ends.get(group, 0)
            ends[group] = start + piece.numel()
            reaches.setdefault(group, []).append(Reach(start, longer * farthest))
    return reaches


def _held(name: str, tensor: "Tensor", stage: int | None) -> "Iterator[tuple[Tensor, float]]":
    """Yield the filters or channels of a tensor, each with its largest distance from the seed's.

    A replaced filter, or a large shift, can create a unit that responds to a single patient. `stage`: of the backbone,
    a later one for the hidden units of attention; None: the tensor is in none.
    """
    if stage is None:
        yield tensor, _UNBOUNDED
    elif tensor.ndim > 1 and stage in _HELD_STAGES:
        for weights in tensor:
            yield weights, _FILTER * float(weights.double().square().mean().sqrt())
    elif tensor.ndim == 1:
        is_stem, is_shift = stage == 0, name.endswith("bias")
        scale, shift = (_STEM_SCALE, _STEM_SHIFT) if is_stem else (_SCALE, _SHIFT)
        for channel in tensor:
            yield channel, shift if is_shift else scale
    else:
        yield tensor, _UNBOUNDED


def _stages(network: "SeverityNetwork") -> dict[str, int]:
    """Return the stage, 1 to 4, of each tensor of a backbone, without those of its pooling; 0: the layers before.

    What a package calls its tensors is its choice, so only their order counts: those before the second quarter of its
    convolutions are in stage 0, all others in stage 2.
    """
    backbone = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("backbone.")}
    if not network.is_own:
        return {name: _stage(name) for name in backbone if not _POOLING.search(name)}
    names = [name for name in backbone if name.startswith(_OWN)]
    convolutions = [name for name in names if backbone[name].ndim > 2]
    early = convolutions[: math.ceil(len(convolutions) / 4)]
    held = next((name for name in convolutions if name not in early), names[-1])
    return {name: 0 if place < names.index(held) else 2 for place, name in enumerate(names)}


def _stage(name: str) -> int:
    if name.startswith("backbone.features.norm5."):  # DenseNet's last norm ends stage 4
        return 4
    found = _STAGE.search(name)
    return int(found.group(1)) if found else 0


def _first_convolution(network: "SeverityNetwork") -> str:
    """Return the name of the convolution that may move further than others; "" with an encoder, which has learnt."""
    if network.has_encoder:
        return ""
    return next((name for name, tensor in network.state_dict().items() if tensor.ndim > 2), "")


def _poolings(network: "SeverityNetwork") -> "dict[str, Attention]":
    """Return our attention by name; a package's own is the package's layer like any other."""
    from models.pooling import Attention

    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, Attention) and not f"{name}.".startswith(_OWN)
    }


def _attention(network: "SeverityNetwork") -> dict[str, Bound]:
    """Return the bound of the weights of our attention's hidden units by name."""
    return {
        f"{name}.importance": _PLAIN_ATTENTION if layer.gate is None else _GATED_ATTENTION
        for name, layer in _poolings(network).items()
    }


def _hidden_units(network: "SeverityNetwork") -> list[str]:
    """Return the names of the weights and biases that make our attention's hidden units of features.

    Each unit is a linear layer before a tanh or sigmoid, which no norm centres. With other weights it could open for
    one slice of one patient, and its update would be this slice's features.
    """
    layers = ("content", "gate")
    return [
        f"{name}.{layer}.{weight}"
        for name, pooling in _poolings(network).items()
        for layer in layers
        if getattr(pooling, layer) is not None
        for weight in ("weight", "bias")
    ]


def parts_of(network: "SeverityNetwork", *, learning_rate: float, epochs: int) -> dict[str, list[Part]]:
    """Return the tensors of each packed array of a network with their bounds, for a training of these settings."""
    from federation.protocol.flat_weights import group_of

    faster = _faster(learning_rate, epochs)
    first, attention = _first_convolution(network), _attention(network)
    learnt = {name for name, weight in network.named_parameters() if weight.requires_grad}
    parts: dict[str, list[Part]] = {}
    ends: dict[str, int] = {}
    for name, tensor in network.state_dict().items():
        group = group_of(name)
        if name in attention:
            pieces: Iterable[tuple[Tensor, Bound]] = [(tensor, attention[name])]
        elif name == "head.weight":
            pieces = _rows(tensor, network)
        else:
            pieces = _pieces(name, tensor, first)
        for piece, usual in pieces:
            start = ends.get(group, 0)
            ends[group] = start + piece.numel()
            bound = usual if name in learnt or is_buffer(name) else _FIXED
            rms = float(piece.double().square().mean().sqrt())
            longest = faster * max(bound.times * rms, bound.longest)
            parts.setdefault(group, []).append(Part(start, rms, faster * bound.share, faster * bound.floor, longest))
    return parts


def fixed_ranges(parts: Sequence[Sequence[float]], length: int) -> list[tuple[int, int]]:
    """Return the ranges (start, end) of a packed array of this length that training does not change."""
    ends = [*(int(part[0]) for part in parts[1:]), length]
    return [
        (int(start), end) for (start, _, share, floor, _), end in zip(parts, ends, strict=True) if share == floor == 0
    ]


def _rows(head: "Tensor", network: "SeverityNetwork") -> "Iterator[tuple[Tensor, Bound]]":
    """Yield the weights of the head with their bounds: of each output those on the scan and those on age and sex.

    Large weights on age and sex alone would turn an update into a count of the patients in a group.
    """
    of_scan = _HEAD_OF_SCAN
    if network.hides_blocks:
        of_scan = of_scan._replace(longest=_HEAD_OF_PLACES / math.sqrt(3 * head.shape[1]))
    for row in head:
        yield row[: network.features], of_scan
        yield row[network.features :], _HEAD_OF_AGE_AND_SEX


def _pieces(name: str, tensor: "Tensor", first: str) -> "Iterator[tuple[Tensor, Bound]]":
    """Yield a tensor of another layer than the head's weights with its bound."""
    last = name.rpartition(".")[2]
    if name == "head.bias":
        yield tensor, _HEAD_BIAS
    elif last == MEAN:
        yield tensor, _RUNNING_MEAN
    elif last == VARIANCE:
        yield tensor, _RUNNING_VARIANCE
    elif name == first:
        yield tensor, _FIRST_CONVOLUTION
    elif tensor.ndim <= 1:
        yield tensor, _NORM_SHIFT if last == "bias" else _NORM_SCALE
    else:
        yield tensor, _CONVOLUTION if tensor.ndim > 2 else _OTHER
