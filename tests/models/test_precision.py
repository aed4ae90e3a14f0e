"""16-bit numbers are used only where gradients are correct. The check itself never fails."""

import pytest
import torch

from models.precision import gradients_repeat

CPU = torch.device("cpu")


def test_check_keeps_the_random_state() -> None:
    before = torch.random.get_rng_state()
    assert gradients_repeat(CPU, None)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_check_can_be_made_within_a_prediction(mode: type[torch.no_grad]) -> None:
    with mode():
        assert gradients_repeat(CPU, None)


@pytest.mark.parametrize("channels", [2, 128], ids=["first layer", "last layers"])
@pytest.mark.parametrize("fault", [float("nan"), 1e-3], ids=["not finite", "different each time"])
def test_wrong_gradients_are_found(monkeypatch: pytest.MonkeyPatch, fault: float, channels: int) -> None:
    """torch 2.13 on AVX-512 BF16 returned such gradients, in the last layers only, from uninitialised memory."""
    calls = 0

    class Faulty(torch.nn.Conv3d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += self.in_channels == channels
            return super().forward(input) * (1 + fault * (calls == 2 and self.in_channels == channels))

    monkeypatch.setattr(torch.nn, "Conv3d", Faulty)
    assert not gradients_repeat(CPU, None)
