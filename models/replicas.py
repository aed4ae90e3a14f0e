"""Copies of a network on further GPUs of the same machine, each of which computes a part of every batch.

One process and one thread are enough: a GPU computes while Python gives work to the next one, and torch's backward pass
uses one thread for each GPU. The parts' gradients are added in the order of the GPUs, so they repeat to the bit.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from models.checkpointing import has_batch_norm


@dataclass(frozen=True)
class Replicas:
    """The network that is trained, and its copies; each on its own device. Only the network has an optimiser."""

    network: nn.Module
    device: torch.device
    copies: Sequence[nn.Module] = ()
    others: Sequence[torch.device] = ()

    @classmethod
    def of(cls, network: nn.Module, device: torch.device, others: Sequence[torch.device] = ()) -> Self:
        """Copy a network, which is on `device`, to `others`.

        A network with batch norm is not copied: its statistics would be those of a part of the batch.
        """
        if not others or has_batch_norm(network):
            return cls(network, device)
        return cls(network, device, [copy.deepcopy(network).to(other) for other in others], others)

    @property
    def places(self) -> list[tuple[nn.Module, torch.device]]:
        """Each network with its device; the one that is trained comes first."""
        return [(self.network, self.device), *zip(self.copies, self.others, strict=True)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the copies the weights and buffers of the network."""
        for each in self.copies:
            for copied, tensor in zip(_tensors(each), _tensors(self.network), strict=True):
                copied.copy_(tensor)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the copies' gradients to those of the network, and forget them."""
        for each in self.copies:
            for weight, copied in zip(self.network.parameters(), each.parameters(), strict=True):
                if copied.grad is None:
                    continue
                arrived = copied.grad.to(self.device)
                weight.grad = arrived if weight.grad is None else weight.grad.add_(arrived)
                copied.grad = None


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(network.parameters(), network.buffers())
