"""Encode a model for a message: one flat array of all weights, and one for each kind of batch-norm buffer.

Flower stores and sends every array as an object of its own, with several requests each. A network of 120 tensors cost
the server some 25 processor seconds a round with three sites. Four arrays of fixed length hold the same numbers, and
their shape and dtype are as easy to check.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from federation.protocol.batch_norm import is_buffer, split

Arrays = Mapping[str, NDArray]
WEIGHTS = "weights"
BATCH_NORM = "batch_norm."  # followed by running_mean, running_var or num_batches_tracked


def group_of(name: str) -> str:
    """Return the name of the array that holds this tensor of the network."""
    return BATCH_NORM + name.rpartition(".")[2] if is_buffer(name) else WEIGHTS


def pack(network: nn.Module) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Return the network's weights and its batch-norm buffers as one-dimensional arrays."""
    weights, buffers = split(network.state_dict())
    kinds: dict[str, list[Tensor]] = {}
    for name, tensor in buffers.items():
        kinds.setdefault(group_of(name), []).append(tensor)
    return {WEIGHTS: _join(list(weights.values()))}, {kind: _join(tensors) for kind, tensors in kinds.items()}


def _join(tensors: list[Tensor]) -> NDArray:
    return torch.cat([tensor.detach().contiguous().flatten() for tensor in tensors]).numpy().copy()


def unpack(network: nn.Module, arrays: Arrays, buffers: Arrays) -> None:
    """Load packed arrays into a network of the same architecture.

    Raises ValueError if an array is missing or has another length.
    """
    packed = {**arrays, **buffers}
    taken = dict.fromkeys(packed, 0)
    tensors = {}
    for name, tensor in network.state_dict().items():
        group = group_of(name)
        if group not in packed:
            raise ValueError(f"no array {group}")
        start = taken[group]
        taken[group] = start + tensor.numel()
        part = np.array(packed[group][start : taken[group]])
        tensors[name] = torch.from_numpy(part).reshape(tensor.shape)
    if any(taken[group] != array.size for group, array in packed.items()):
        raise ValueError("an array is longer than the network")
    network.load_state_dict(tensors, strict=True)
