"""Attention that opens for one slice of one patient: its hidden units as a hostile server would make them.

A hidden unit of gated attention is tanh(content) times sigmoid(gate), both linear in a slice's features. Where the gate
is closed, or the tanh at its end, a slice teaches the unit's content weights nothing. If only one slice of one patient
is elsewhere, the content weights move by the features of this slice, in proportion to how their bias moves. Labels and
the weights of units do not matter (Fowl et al., ICLR 2022, did this with linear layers on images).

The server has patients of its own. It learns weights and the last norm's scales and shifts by gradient ascent, so that
one patient in 64 has as large a share as possible of the slopes of some units, within bounds at each step.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.loss import masked_bce
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from models.slicewise import SlicesBackbone
from pipeline.training.train import augmentation
from tests.attacks.cohort import Patient, draw_patients

PATIENTS, OWN = 64, 192  # of a hospital; of the server
BATCH, VIEWS, STEPS, RATE = 8, 2, 150, 0.03
UNITS = 4  # that the server reads
LONGEST, OF_OWN_LENGTH, SHIFT = 0.599, 0.849, 0.399  # root mean square, share, and distance that the bounds allow
LEAST_SCALE, LARGEST_SCALE = 0.501, 1.499
_HEAD = 0.05  # so short that the residuals are those of the labels


@dataclass(frozen=True)
class Trap:
    """A network, and those of its hidden units that single out most among the server's own patients."""

    network: SeverityNetwork
    units: NDArray[np.int64]


def first_network(pooling: str, seed: int) -> SeverityNetwork:
    settings = {"architecture": "efficientnet_b0_slices", "pooling": pooling, "tabular": "fixed", "age_band_years": 5}
    return build_network(NetworkSettings.model_validate(settings), seed=seed).train()


def attention_of(network: SeverityNetwork) -> SlicesBackbone:
    assert isinstance(network.backbone, SlicesBackbone)
    return network.backbone


def layers_of(network: SeverityNetwork) -> list[nn.Linear]:
    attention = attention_of(network)
    return [attention.content] if attention.gate is None else [attention.content, attention.gate]


def last_norm(network: SeverityNetwork) -> nn.BatchNorm2d:
    return [layer for layer in network.backbone.modules() if isinstance(layer, nn.BatchNorm2d)][-1]


@torch.no_grad()
def seen(network: SeverityNetwork, patients: list[Patient], *, seed: int) -> Tensor:
    """Return features of slices in augmented views, in batches as in training: (patients, views, slices, features)."""
    rng, augment, found = np.random.default_rng(seed), augmentation(seed), []
    for _ in range(VIEWS):
        order, parts = rng.permutation(len(patients)), []
        for index in np.split(order, len(patients) // BATCH):
            scans = [augment(torch.from_numpy(patients[place].tensor).float()) for place in index]
            parts.append(attention_of(network).encode(torch.stack(scans)))
        found.append(torch.cat(parts)[np.argsort(order)])
    return torch.stack(found, dim=1)


def slopes(layers: list[nn.Linear], features: Tensor) -> Tensor:
    """Return how much each hidden unit's content moves what it gives, for each slice: (..., slices, units)."""
    content, *gates = layers
    found = 1 - torch.tanh(content(features)) ** 2
    for gate in gates:
        found = found * torch.sigmoid(gate(features))
    return found


def of_patients(layers: list[nn.Linear], features: Tensor) -> Tensor:
    """Return the sums of slopes over views and slices: (patients, units)."""
    return slopes(layers, features).sum(dim=(1, 2))


def largest_share(amounts: Tensor) -> Tensor:
    """Return the largest share that one patient has; `amounts`: (..., patients, units)."""
    return amounts.max(dim=-2).values / amounts.sum(dim=-2).clamp(min=1e-12)


def trap(first: SeverityNetwork, own: Tensor, *, is_held: bool, seed: int = 0) -> Trap:
    """Return the server's network. `own`: features of its patients. `is_held`: hidden units stay near the first ones.

    Otherwise only the length of whole tensors is bounded, as it was before hidden units were held.
    """
    rng, network = np.random.default_rng(seed), copy.deepcopy(first)
    draws = torch.Generator().manual_seed(seed)
    layers, at_first, norm = layers_of(network), layers_of(first), last_norm(network)
    if not is_held:
        with torch.no_grad():
            layers[-1].weight.normal_(0, LONGEST / 2, generator=draws)
    learnt = [*(w for layer in layers for w in (layer.weight, layer.bias)), norm.weight, norm.bias]
    optimiser = torch.optim.Adam(learnt, lr=RATE)
    for _ in range(STEPS):
        _keep(layers, at_first, norm, is_held=is_held)
        amounts = of_patients(layers, own * norm.weight + norm.bias)
        groups = np.stack([rng.choice(len(own), PATIENTS, replace=False) for _ in range(8)])
        shares = largest_share(amounts[groups]).mean(dim=0)
        optimiser.zero_grad()
        (-shares.topk(UNITS).values.mean() - 0.1 * shares.mean()).backward()
        optimiser.step()
    _keep(layers, at_first, norm, is_held=is_held)
    return Trap(_listening(network), shares.topk(UNITS).indices.numpy())


@torch.no_grad()
def _keep(layers: list[nn.Linear], at_first: list[nn.Linear], norm: nn.BatchNorm2d, *, is_held: bool) -> None:
    """Move the weights back to within the bounds, where they are beyond."""
    norm.weight.clamp_(LEAST_SCALE, LARGEST_SCALE)
    norm.bias.clamp_(-SHIFT, SHIFT)
    for layer, first in zip(layers, at_first, strict=True):
        if is_held:
            way, length = layer.weight - first.weight, first.weight.norm(dim=1, keepdim=True)
            share = OF_OWN_LENGTH * length / way.norm(dim=1, keepdim=True).clamp(min=1e-9)
            layer.weight.copy_(first.weight + way * share.clamp(max=1))
            layer.bias.copy_(first.bias + (layer.bias - first.bias).clamp(-SHIFT, SHIFT))
        else:
            for weight in (layer.weight, layer.bias):
                weight.mul_((LONGEST / weight.square().mean().sqrt()).clamp(max=1))
    if not is_held and len(layers) > 1:  # then the gates single out, and the content's slope is 1 everywhere
        layers[0].weight.zero_()
        layers[0].bias.zero_()


@torch.no_grad()
def _listening(network: SeverityNetwork) -> SeverityNetwork:
    """Give the head weights for PCR alone, in the direction of the last norm's shifts against the usual slice."""
    network.head.weight.zero_()
    network.head.bias.zero_()
    network.head.weight[0, : network.features] = _HEAD * last_norm(network).bias.sign()
    return network


def told(trap: Trap, features: Tensor, patients: list[Patient]) -> Tensor:
    """Return the features that a reply tells of each unit, (units, features): those of an open slice, if there is one.

    `features`: of the hospital's patients in augmented views. The update of small steps is the sum of their gradients.
    """
    attention, layers = attention_of(trap.network), layers_of(trap.network)
    pcr = torch.tensor([[float(each.pcr), float("nan")] for each in patients])
    layers[0].zero_grad()
    for view in features.unbind(dim=1):
        pooled = torch.einsum("bs,bsf->bf", attention.attention(view), view)
        logits = pooled @ trap.network.head.weight[:, : trap.network.features].T
        masked_bce(logits, pcr).backward()
    moved, by = layers[0].weight.grad, layers[0].bias.grad
    assert moved is not None and by is not None
    return (moved / by[:, None])[trap.units]


@dataclass(frozen=True)
class Found:
    """For each unit that the server reads, of the patient with the largest share of its slopes.

    `shares`: this share. `likeness`: the cosine between what the reply tells and the patient's most similar slice.
    `is_patient`: whether no slice of another patient is more similar; by chance one time in 64.
    """

    shares: NDArray[np.float64]
    likeness: NDArray[np.float64]
    is_patient: NDArray[np.bool_]


def read(trap: Trap, seed: int, importance: Tensor | None = None) -> Found:
    """Read a reply of a hospital that the server does not know. `importance`: of hidden units; None: as drawn."""
    patients = draw_patients(seed, {"train": PATIENTS})
    if importance is not None:
        trap = Trap(copy.deepcopy(trap.network), trap.units)
        with torch.no_grad():
            attention_of(trap.network).importance.copy_(importance)
    features = seen(trap.network, patients, seed=seed)
    return compared(trap, features, told(trap, features, patients))


@torch.no_grad()
def compared(trap: Trap, features: Tensor, estimates: Tensor) -> Found:
    """Compare what a reply tells with the slices of patients; `features` as `seen` returns them."""
    amounts = of_patients(layers_of(trap.network), features)[:, trap.units]
    usual, spread = features.mean(dim=(0, 1, 2)), features.std(dim=(0, 1, 2))
    slices = ((features - usual) / spread).flatten(1, 2)[:, :, None]
    alike = torch.cosine_similarity(slices, (estimates - usual) / spread, dim=-1).amax(dim=1)
    likeness = alike.gather(0, amounts.argmax(dim=0)[None])[0]
    is_patient = (alike.argmax(dim=0) == amounts.argmax(dim=0)).numpy()
    return Found(largest_share(amounts).double().numpy(), likeness.double().numpy(), is_patient)


def own_features(first: SeverityNetwork) -> Tensor:
    """Return the features of the server's own patients, with the last norm as it is at first: no scale and shift."""
    return seen(first, draw_patients(9_000, {"train": OWN}), seed=9_000)
