"""Batch-norm buffers: recognise them in a state dict, and combine those of several sites.

A strategy averages or optimises any array that it receives, which is wrong for buffers: a counter is not a weight, and
an optimiser's step can make a variance negative. Buffers are therefore sent in a record of their own and combined here.
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
    """Tell whether a tensor of this name in a PyTorch state dict is a batch-norm buffer."""
    return _kind(name) in (MEAN, VARIANCE, COUNTER)


def is_variance(name: str) -> bool:
    return _kind(name) == VARIANCE


def is_counter(name: str) -> bool:
    return _kind(name) == COUNTER


def split(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """Split a state dict into its trainable tensors and its buffers, each in the given order."""
    buffers = {name: tensor for name, tensor in tensors.items() if is_buffer(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in buffers}, buffers


def combine(sites: Sequence[Mapping[str, NDArray]], weights: Sequence[float]) -> dict[str, NDArray]:
    """Combine the buffers of several sites, with the shapes and dtypes of the first site's.

    Means are averaged with `weights` (any positive scale). Variances are those of the pooled data: the weighted
    variance within sites plus the weighted variance of their means (the law of total variance). This equals
    sum w (var + mean^2) - mean^2 but avoids its cancellation. Of counters, the largest is taken.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights, dtype=np.float64)
    # Arrays may have any number of dimensions; the first axis of a stack is the sites.
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
    """Combine buffers as `combine` does, but so that fewer than half of the sites cannot distort them.

    Each number is the median over sites (Yin et al. 2018, the coordinate-wise median): of the means; of each site's
    second moment about that median mean, which is never negative; and of the counters, whose low median is an
    integer. All sites count the same, because a site could claim any weight.
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
