"""Decides whether to compute with bfloat16: only if the processor has matrix units for it that work correctly."""

from functools import cache

import torch


@cache
def use_bf16() -> bool:
    """Whether bfloat16 autocast is fast and correct on this processor.

    It needs AMX tiles, and must give the same finite gradients twice. With torch 2.13 on AVX-512 BF16 a step would take
    0.7 of the time, but the backward pass of 3D convolutions on two slices returned values from uninitialised memory:
    different each time and sometimes not finite.
    """
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private in torch: it may be removed
    return has_tiles is not None and bool(has_tiles()) and _same_gradients_twice()


def _same_gradients_twice() -> bool:
    """Check a network's first layer and its last layers, which have two slices; only there torch 2.13 was wrong."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = torch.nn.Conv3d(2, 16, 7, stride=2, padding=3, bias=False), torch.randn(4, 2, 32, 32, 32)
        last = torch.nn.Conv3d(128, 128, 3, padding=1, bias=False), torch.randn(2, 128, 2, 2, 2)
    return _is_repeatable(*first) and _is_repeatable(*last)


def _is_repeatable(convolution: torch.nn.Conv3d, scan: torch.Tensor) -> bool:
    gradients: list[torch.Tensor] = []
    for _ in range(2):
        convolution.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            convolution(scan).square().mean().backward()
        assert convolution.weight.grad is not None
        gradients.append(convolution.weight.grad)
    first, second = gradients
    return bool(torch.isfinite(first).all()) and torch.equal(first, second)
