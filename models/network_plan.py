"""A plan: the tensors of a network of one's own, by name and shape, and nothing of its code. Imports no torch.

It comes from a process that ran foreign code, so it is checked as untrusted input. What it may contain is what the
gateway has bounds for: weights, and batch norm's running statistics.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_TENSORS, MAX_NUMBERS, MAX_FEATURES = 4096, 64 * 2**20, 8192
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm, in PyTorch's order
_TENSOR = r"^[A-Za-z0-9_]{1,60}(\.[A-Za-z0-9_]{1,60}){0,15}$"


class PlannedTensor(BaseModel):
    """One tensor: a weight of float32, or a buffer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=_TENSOR)]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**20)], ...], Field(max_length=6)]
    kind: Literal["weight", "buffer"]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def is_statistic(self) -> bool:
        """Whether the name is that of one of batch norm's running statistics."""
        return self.name.rpartition(".")[2] in STATISTICS


class Plan(BaseModel):
    """The tensors of a network's layers in the order of their state dict. `features`: channels of its maps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: Annotated[int, Field(ge=1, le=MAX_FEATURES)]
    tensors: Annotated[tuple[PlannedTensor, ...], Field(min_length=1, max_length=MAX_TENSORS)]

    @property
    def has_batch_norm(self) -> bool:
        return any(tensor.kind == "buffer" for tensor in self.tensors)

    @model_validator(mode="after")
    def is_what_the_gateway_has_bounds_for(self) -> Self:
        by_name = {tensor.name: tensor for tensor in self.tensors}
        if len(by_name) < len(self.tensors):
            raise ValueError("two tensors have one name")
        if sum(tensor.numbers for tensor in self.tensors) > MAX_NUMBERS:
            raise ValueError(f"they have more than {MAX_NUMBERS} numbers")
        if not any(len(tensor.shape) > 2 for tensor in self.tensors):
            raise ValueError("none is a convolution's")
        for tensor in self.tensors:
            if tensor.is_statistic != (tensor.kind == "buffer"):
                raise ValueError(f"{tensor.name} is a buffer without bounds, or a weight with the name of a buffer")
        for tensor in self.tensors:
            if tensor.kind == "buffer":
                _check_statistics(tensor.name.rpartition(".")[0], by_name)
        return self


def _check_statistics(layer: str, by_name: dict[str, PlannedTensor]) -> None:
    """Require all three statistics of a layer, with a number for each channel, and one count."""
    found = [by_name.get(f"{layer}.{name}") for name in STATISTICS]
    shapes = [None if each is None else each.shape for each in found]
    if shapes[0] is None or len(shapes[0]) != 1 or shapes != [shapes[0], shapes[0], ()]:
        raise ValueError(f"the running statistics of {layer} are not those of batch norm")
