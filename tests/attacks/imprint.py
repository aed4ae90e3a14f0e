"""A network in which a single unit responds to one patient, so that the unit's weights move by a picture of that scan.

Robbing the Fed (Fowl et al., ICLR 2022) and "When the Curious Abandon Honesty" (Boenisch et al., EuroS&P 2023) put
thresholds on one measure of an image into a linear layer. The gradient of a unit is then the sum of the inputs of the
patients above its threshold. Here the layer is the second convolution of the last stage. Batch norm would make each
threshold relative to the other patients of a step. Two things make it absolute:

- The measure is a difference between two halves of the volume, and is present with both signs, so its mean is zero in
  each batch. Batch norm then subtracts nothing from it.
- Zero padding reveals the position in the volume. It turns a constant channel into a pattern by place, which is much
  larger than the measure. Batch norm then divides by the pattern's standard deviation, which is the same in each batch.

The measure is dense tissue in the lungs, one half of the slices against the other. The other channels pass on a coarse
picture: in each channel, a stage's first convolution takes one of the eight voxels of a cube.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from federation.protocol.flat_weights import WEIGHTS, pack, unpack
from federation.protocol.study_config import Study
from federation.protocol.tensor_bounds import reaches_of
from models.network import SeverityNetwork
from tests.attacks.rig import seed_network

Matrix = NDArray[np.float64]
Taps = Mapping[int, Sequence[tuple[int, tuple[int, int, int], float]]]  # of an output: (input, place, weight)
_CUBE = tuple(itertools.product((0, 1), repeat=3))
_AROUND = tuple(itertools.product((0, 1, 2), repeat=3))
_PASSING_SCALE, _PASSING_SHIFT = 0.1, 0.5  # a ReLU leaves five standard deviations unchanged
_DENSE_SCALE, _DENSE_SHIFT = 0.3, -0.2  # of window plus mask: only dense tissue in the lungs remains
_SCALE = 0.25  # of the batch norm that holds the thresholds
_PATTERN = 0.3  # weight of the pattern by place, compared with 1 for the measure
_HIGH = 3**0.5  # the pattern where a quarter of all places is high, in standard deviations
MEASURE, FIRST = 0, 1  # channels: the measure, and the picture's first one


@dataclass(frozen=True)
class Imprint:
    """The network, the number of its picture channels (from FIRST on), and the threshold of each feature."""

    network: SeverityNetwork
    pictures: int
    thresholds: Matrix


@torch.no_grad()
def imprint(study: Study, thresholds: Matrix, *, head: float) -> Imprint:
    """Return a study's network with these thresholds, in standard deviations of the pattern, one for each feature.

    `head`: weight of each feature for PCR, with alternating signs, so that the features of a patient above all
    thresholds give a probability of one half.
    """
    network = seed_network(study)
    backbone = network.backbone
    _set(backbone.conv1, _stem(backbone.conv1))
    _pass(backbone.bn1)
    backbone.bn1.weight[MEASURE], backbone.bn1.bias[MEASURE] = _DENSE_SCALE, _DENSE_SHIFT
    channels = 1
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for block in layer:
            if block.downsample is None:
                _silence(block.bn2)  # the block passes its input on unchanged
                continue
            is_last = layer is backbone.layer4
            _silence(block.downsample[1])
            before, channels = channels, min(8 * channels, block.conv1.out_channels - 1 - is_last)
            _set(block.conv1, _one_voxel_each(before, channels))
            _pass(block.bn1)
            if not is_last:
                _set(block.conv2, {channel: [(channel, (1, 1, 1), 1.0)] for channel in range(1 + channels)})
                _pass(block.bn2)
    _thresholds(backbone.layer4[0], thresholds)
    network.head.weight.zero_()
    network.head.bias.zero_()
    network.head.weight[0, : network.features] = head * torch.from_numpy(signs(network.features)).float()
    return Imprint(network, channels, thresholds)


def signs(features: int) -> Matrix:
    """Return each feature's weight in the head."""
    return np.tile([1.0, -1.0], features // 2)


def _stem(convolution: nn.Conv3d) -> Taps:
    """Set local means: of window plus mask for the measure, of the window for the picture."""
    middle = [side // 2 for side in convolution.kernel_size]
    box = [tuple(centre + offset - 1 for centre, offset in zip(middle, place, strict=True)) for place in _AROUND]
    return {
        MEASURE: [(channel, place, 1.0) for place in box for channel in (0, 1)],
        FIRST: [(0, place, 1.0) for place in box],
    }


def _one_voxel_each(before: int, channels: int) -> Taps:
    """Set the measure's mean, and in each picture channel one voxel of each cube of a previous channel."""
    taps: dict[int, list[tuple[int, tuple[int, int, int], float]]] = {
        MEASURE: [(MEASURE, place, 1 / len(_AROUND)) for place in _AROUND]
    }
    for number in range(channels):
        z, y, x = _CUBE[number // before]
        taps[FIRST + number] = [(FIRST + number % before, (1 + z, 1 + y, 1 + x), 1.0)]
    return taps


def _thresholds(block: nn.Module, thresholds: Matrix) -> None:
    """Set thresholds on the upper half against the lower, at the places where the pattern is high."""
    constant = block.bn1.num_features - 1
    block.bn1.weight[constant], block.bn1.bias[constant] = 0.0, _PASSING_SHIFT
    difference = [(MEASURE, place, 1.0 if place[0] == 1 else -1.0) for place in _AROUND]
    taps = [*difference, (constant, (2, 2, 1), _PATTERN)]  # through the padding, only in the first slices and rows
    _set(block.conv2, dict.fromkeys(range(len(thresholds)), taps))
    block.bn2.weight.fill_(_SCALE)
    block.bn2.bias.copy_(torch.from_numpy(-_SCALE * thresholds))


def _set(convolution: nn.Conv3d, taps: Taps) -> None:
    """Set these weights and no others, at twice the length of the seed's."""
    length = 2 * float(convolution.weight.norm())
    convolution.weight.zero_()
    for output, parts in taps.items():
        for source, place, weight in parts:
            convolution.weight[(output, source, *place)] += weight
    convolution.weight.mul_(length / convolution.weight.norm())


def _pass(norm: nn.BatchNorm3d) -> None:
    norm.weight.fill_(_PASSING_SCALE)
    norm.bias.fill_(_PASSING_SHIFT)


def _silence(norm: nn.BatchNorm3d) -> None:
    norm.weight.zero_()
    norm.bias.zero_()


# --- the network's response to a patient ------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """For each patient: `measure`, in units of the thresholds, and `picture`, shape (patients, places), mirrored."""

    measure: Matrix
    picture: Matrix


@torch.no_grad()
def look(made: Imprint, scans: NDArray[np.float32], *, batch: int = 8) -> Seen:
    """Compute the response in batches of the patients' own order, as a training step does."""
    network = copy.deepcopy(made.network).train()  # otherwise its running moments would change
    block = network.backbone.layer4[0]
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach().clone()))
    block.bn2.register_forward_pre_hook(lambda _, given: outputs.append(_normal(given[0][:, 0].detach())))
    for start in range(0, len(scans), batch):
        network.backbone(torch.from_numpy(scans[start : start + batch]))
    pictures = torch.cat(inputs)[:, FIRST : FIRST + made.pictures].flatten(2).double().numpy()
    return Seen(torch.cat(outputs)[:, 0, 0].mean(dim=1).double().numpy(), mirrored(pictures).reshape(len(scans), -1))


def _normal(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std(unbiased=False)


def mirrored(pictures: Matrix) -> Matrix:
    """Return the mean of a picture and its mirror image, shape (..., 8), because augmentation mirrors half of all
    scans.
    """
    cubes = pictures.reshape(*pictures.shape[:-1], 2, 2, 2)
    both: Matrix = ((cubes + cubes[..., ::-1]) / 2).reshape(pictures.shape)
    return both


# --- the content of an update -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """For each threshold: the change of its shift, and of its weights on the picture's channels, by octant."""

    shift: Matrix
    weights: Matrix  # (thresholds, channels, 8)

    def picture(self, threshold: int) -> Matrix:
        """Return the mean picture of the patients above a threshold, up to an offset that all hospitals share."""
        return mirrored(2 * self.weights[threshold] / self.shift[threshold]).ravel()


def update(made: Imprint, after: SeverityNetwork, *, decay: float) -> Update:
    """`decay`: the share by which weight decay has shortened all weights meanwhile."""
    old, new = made.network.backbone.layer4[0], after.backbone.layer4[0]
    sign = signs(made.network.features)
    shift = (new.bn2.bias.double() - (1 - decay) * old.bn2.bias.double()).detach().numpy()
    moved = (new.conv2.weight.double() - old.conv2.weight.double()).detach().numpy()[:, FIRST : FIRST + made.pictures]
    octants = [(1 + z, 1 + y, 2 * x) for z, y, x in _CUBE]  # places of the weights that read each octant
    weights = np.stack([moved[(slice(None), slice(None), *place)] for place in octants], axis=-1)
    return Update(sign * shift, sign[:, None, None] * weights)


# --- the bounds of a run of a study -----------------------------------------------------------------------


def within_reach(study: Study, made: Imprint) -> Imprint:
    """Return the network with each filter and channel moved from the seed's towards its target, as a run allows."""
    return Imprint(reached(study, made.network), made.pictures, made.thresholds)


def reached(study: Study, target_network: SeverityNetwork) -> SeverityNetwork:
    """Return the network that a run can reach on the way from the seed's to this one."""
    network = seed_network(study)
    (first, buffers), (target, _) = pack(network), pack(target_network)
    reaches = reaches_of(
        network,
        learning_rate=study.training.learning_rate,
        epochs=study.epochs_a_round,
        rounds=study.study.rounds,
    )
    starts, farthest = np.array(reaches[WEIGHTS]).T
    starts = starts.astype(np.int64)
    way = target[WEIGHTS].astype(np.float64) - first[WEIGHTS]
    sizes = np.diff([*starts, way.size])
    distance = np.sqrt(np.add.reduceat(way * way, starts) / sizes)
    share = np.minimum(1.0, 0.999 * farthest / np.maximum(distance, 1e-30))
    weights = first[WEIGHTS] + way * np.repeat(share, sizes)
    unpack(network, {WEIGHTS: weights.astype(np.float32)}, buffers)
    return network
