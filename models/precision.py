"""Decides whether a processor computes correctly with 16-bit numbers, and whether bfloat16 is worth it."""

from contextlib import nullcontext
from functools import cache

import torch

_CPU = torch.device("cpu")
_REPEATS = 8  # wrong gradients came in one to four of them


@cache
def use_bf16() -> bool:
    """Whether bfloat16 autocast is fast and correct on this machine's CPU.

    It needs AMX tiles, and must give the same finite gradients each time. With torch 2.13 on AVX-512 BF16 a step would
    take 0.7 of the time, but the backward pass of 3D convolutions on two slices returned values from uninitialised
    memory: different each time and sometimes not finite.
    """
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private in torch: it may be removed
    return has_tiles is not None and bool(has_tiles()) and gradients_repeat(_CPU, torch.bfloat16)


def gradients_repeat(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether autocast to `dtype` (None: float32) gives the same finite gradients each time on this device.

    Checks a network's first layer and its last layers, which have two slices; only there torch 2.13 was wrong. Raises
    RuntimeError if the device cannot compute at all.
    """
    # The first to ask may be a prediction, which computes without gradients.
    with torch.inference_mode(False), torch.enable_grad():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = torch.nn.Conv3d(2, 16, 7, stride=2, padding=3, bias=False), torch.randn(4, 2, 32, 32, 32)
            last = torch.nn.Conv3d(128, 128, 3, padding=1, bias=False), torch.randn(2, 128, 2, 2, 2)
        layers = ((convolution.to(device), scan.to(device)) for convolution, scan in (first, last))
        return all(_is_repeatable(convolution, scan, dtype) for convolution, scan in layers)


def _is_repeatable(convolution: torch.nn.Conv3d, scan: torch.Tensor, dtype: torch.dtype | None) -> bool:
    gradients: list[torch.Tensor] = []
    for _ in range(_REPEATS):
        convolution.zero_grad(set_to_none=True)
        with torch.autocast(scan.device.type, dtype) if dtype else nullcontext():
            convolution(scan).square().mean().backward()
        assert convolution.weight.grad is not None
        gradients.append(convolution.weight.grad)
    first, *others = gradients
    return bool(torch.isfinite(first).all()) and all(torch.equal(first, other) for other in others)
