"""Activation checkpointing (Chen et al., Training deep nets with sublinear memory cost, 2016) of a network's backbone.

The backward pass computes each stage of the network again instead of keeping its activations. The result stays the same
to the bit: batch norm normalises with the same batch, and does not count it twice.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_STAGE = re.compile(r"(.*\.)?(layer|denseblock)\d+")


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a layer of the network normalises over the patients of a batch."""
    return any(isinstance(layer, _BatchNorm) for layer in network.modules())


@contextmanager
def uncounted(network: nn.Module) -> Iterator[None]:
    """Let batch norm normalise with the batch without changing its running statistics and its count of batches."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    kept = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, kept, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Train with checkpoints at each stage of the network until the context ends."""
    stages = [layer for name, layer in network.named_modules() if _STAGE.fullmatch(name)]
    for stage in stages:
        stage.forward = _with_checkpoint(stage, stage.forward)
    try:
        yield
    finally:
        for stage in stages:
            del stage.forward  # the method of its class appears again


def _with_checkpoint(stage: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), uncounted(stage)

    def run(scan: Tensor) -> Tensor:
        # No layer draws random numbers: those of packages are tried (`models.network_layers.try_layers`).
        made: Tensor = checkpoint(forward, scan, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)
        return made

    return run
