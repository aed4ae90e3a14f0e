"""The settings of a processor: the table [compute] of site.toml. Works without torch, for the gateway."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

DEVICE = r"^(auto|cpu|cuda(:\d{1,2})?)$"
DEVICES = r"^(auto|cpu|cuda(:\d{1,2}(,\d{1,2})*)?)$"
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class ComputeSettings(BaseModel, extra="forbid", frozen=True):
    """[compute]: the processor on which networks are trained and evaluated, and how. `models.compute` applies it.

    `device`: "cuda:0,1" has two GPUs share the batches of training. `micro_batch`: number of scans computed at once; 0
    means all scans of a training step. `checkpointing`: compute activations again in the backward pass instead of
    keeping them. `prefetch`: number of training batches that one thread prepares ahead.
    """

    device: str = Field(default="auto", pattern=DEVICES)
    precision: Precision = "auto"
    micro_batch: int = Field(default=0, ge=0)
    checkpointing: bool = False
    prefetch: int = Field(default=0, ge=0, le=16)

    @field_validator("device")
    @classmethod
    def gpus_are_named_once(cls, device: str) -> str:
        numbers = [int(number) for number in device.partition(":")[2].split(",") if number]
        if len(set(numbers)) < len(numbers):
            raise ValueError("names a GPU twice")
        return device
