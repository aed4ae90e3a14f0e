"""Batch-norm buffers: which tensors they are, and how those of several sites become one.

A strategy averages or optimises whatever it is given, which is wrong for buffers: a counter is not a weight,
and an optimiser's step can make a variance negative. So they travel apart and are combined here.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

MEAN, VARIANCE, COUNTER = "running_mean", "running_var", "num_batches_tracked"

T = TypeVar("T")


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name in a PyTorch state dict is a batch-norm buffer."""
    return _kind(name) in (MEAN, VARIANCE, COUNTER)


def is_variance(name: str) -> bool:
    return _kind(name) == VARIANCE


def is_counter(name: str) -> bool:
    return _kind(name) == COUNTER


def split(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """The trainable tensors and the buffers of a state dict, each in the order given."""
    buffers = {name: tensor for name, tensor in tensors.items() if is_buffer(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in buffers}, buffers


def combine(sites: Sequence[Mapping[str, NDArray]], weights: Sequence[float]) -> dict[str, NDArray]:
    """One set of buffers from those of several sites, with the shapes and dtypes of the first.

    Means are averaged with `weights` (any positive scale). Variances are those of the pooled data: the
    weighted variance within sites plus the weighted variance of their means (the law of total variance; the
    same as sum w (var + mean^2) - mean^2, without its cancellation). Counters are the largest one, not
    averaged.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights, dtype=np.float64)
    # Any numbers of dimensions: the sites are the first axis.
    stacks = {name: np.stack([site[name] for site in sites]) for name in sites[0]}
    combined = {}
    for name, stack in stacks.items():
        value = stack.max(axis=0) if is_counter(name) else np.tensordot(share, stack.astype(np.float64), axes=1)
        if is_variance(name):
            means = stacks[name.removesuffix(VARIANCE) + MEAN].astype(np.float64)
            value = value + np.tensordot(share, (means - np.tensordot(share, means, axes=1)) ** 2, axes=1)
        combined[name] = np.asarray(value, dtype=stack.dtype)
    return combined


def combine_by_median(sites: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
    """As `combine`, but so that less than half of the sites, whatever they send, cannot carry the buffers away.

    Each number is the median over sites (Yin et al. 2018, the coordinate-wise median): of the means; of each site's
    second moment about that median mean, which is never negative; of the counters, whose low median is whole. Sites
    count alike, for a weight is a claim.
    """
    stacks = {name: np.stack([site[name] for site in sites]) for name in sites[0]}
    combined = {}
    for name, stack in stacks.items():
        if is_counter(name):
            value = np.sort(stack, axis=0)[(len(sites) - 1) // 2]
        elif is_variance(name):
            means = stacks[name.removesuffix(VARIANCE) + MEAN].astype(np.float64)
            value = np.median(stack + (means - np.median(means, axis=0)) ** 2, axis=0)
        else:
            value = np.median(stack.astype(np.float64), axis=0)
        combined[name] = np.asarray(value, dtype=stack.dtype)
    return combined
