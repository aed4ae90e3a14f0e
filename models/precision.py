"""Checks whether a processor computes the same correct gradients each time."""

from contextlib import nullcontext

import torch

_REPEATS = 8  # wrong gradients came in one to four of them


def gradients_repeat(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether autocast to `dtype` (None: float32) gives the same finite gradients each time on this device.

    Checks a network's first layer and its last layers, which have two slices; only there torch 2.13 was wrong. Raises
    RuntimeError if the device cannot compute at all.
    """
    # Whoever asks may compute without gradients.
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
