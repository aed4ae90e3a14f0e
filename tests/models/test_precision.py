"""bfloat16 is used only where it is fast and sound; asking must never fail."""

from collections.abc import Iterator

import pytest
import torch

from models import precision


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    precision.use_bf16.cache_clear()
    yield
    precision.use_bf16.cache_clear()


def test_this_processor_gets_an_answer_and_keeps_its_random_state() -> None:
    before = torch.random.get_rng_state()
    assert precision.use_bf16() in (True, False)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_matrix_units_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision.use_bf16() is False


def test_a_torch_that_cannot_tell_means_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert precision.use_bf16() is False


@pytest.mark.parametrize("channels", [2, 128], ids=["first layer", "last layers"])
@pytest.mark.parametrize("fault", [float("nan"), 1e-3], ids=["not finite", "different each time"])
def test_with_matrix_units_the_gradients_decide(monkeypatch: pytest.MonkeyPatch, fault: float, channels: int) -> None:
    """As torch 2.13 gave them on AVX-512 BF16, in the last layers alone: from memory that nobody had filled."""
    calls = 0

    class Faulty(torch.nn.Conv3d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += self.in_channels == channels
            return super().forward(input) * (1 + fault * (calls == 2 and self.in_channels == channels))

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *_: torch.enable_grad())
    assert precision.use_bf16(), "in float32 a plain convolution is sound"
    precision.use_bf16.cache_clear()
    monkeypatch.setattr(torch.nn, "Conv3d", Faulty)
    assert not precision.use_bf16()
