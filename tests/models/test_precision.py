"""bfloat16 is used only where it is fast and numerically correct. The check itself never fails."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from models import precision


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    precision.use_bf16.cache_clear()
    yield
    precision.use_bf16.cache_clear()


def test_use_bf16_returns_bool_and_keeps_the_random_state() -> None:
    before = torch.random.get_rng_state()
    assert precision.use_bf16() in (True, False)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_bf16_is_used_if_the_first_to_ask_needs_no_gradients(
    mode: type[torch.no_grad], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *_: nullcontext())  # float32, which is correct everywhere
    with mode():
        assert precision.use_bf16()


def test_bf16_is_not_used_without_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision.use_bf16() is False


def test_bf16_is_not_used_if_torch_cannot_detect_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert precision.use_bf16() is False


@pytest.mark.parametrize("channels", [2, 128], ids=["first layer", "last layers"])
@pytest.mark.parametrize("fault", [float("nan"), 1e-3], ids=["not finite", "different each time"])
def test_bf16_is_not_used_if_gradients_are_wrong(monkeypatch: pytest.MonkeyPatch, fault: float, channels: int) -> None:
    """torch 2.13 on AVX-512 BF16 returned such gradients, in the last layers only, from uninitialised memory."""
    calls = 0

    class Faulty(torch.nn.Conv3d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += self.in_channels == channels
            return super().forward(input) * (1 + fault * (calls == 2 and self.in_channels == channels))

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *_: torch.enable_grad())
    assert precision.use_bf16(), "a plain convolution in float32 is correct"
    precision.use_bf16.cache_clear()
    monkeypatch.setattr(torch.nn, "Conv3d", Faulty)
    assert not precision.use_bf16()
