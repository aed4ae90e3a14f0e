"""Tests of random appearance in training: the seed determines it; it keeps the window and the order of densities."""

import pytest
import torch
from pydantic import ValidationError

from pipeline.training.appearance import appearance_changes
from pipeline.training.train import augmentation
from pipeline.training.train_settings import TrainSettings


def ramp() -> torch.Tensor:
    """Densities from the lowest to the highest of the window, smooth along rows."""
    return torch.linspace(-1, 1, 40).expand(1, 8, 8, 40).clone()


def test_seed_determines_the_changes() -> None:
    first, again, other = (appearance_changes(seed)(ramp()) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_changes_stay_in_the_window_and_near_the_scan() -> None:
    changed = [appearance_changes(seed)(ramp()) for seed in range(60)]
    for image in changed:
        assert image.shape == ramp().shape
        assert image.abs().max() <= 1
        assert (image - ramp()).mean().abs() < 0.1
        lines = image.mean(dim=(0, 1, 2))
        assert lines[:8].mean() < lines[16:24].mean() < lines[32:].mean()
    same = sum(torch.equal(image, ramp()) for image in changed)
    assert 0 < same < 20, "each change has a probability of one half"


def test_edges_become_softer_or_sharper() -> None:
    edge = torch.where(torch.arange(40) < 20, -0.5, 0.5).expand(1, 8, 8, 40).clone()
    lines = [appearance_changes(seed)(edge).mean(dim=(0, 1, 2)) for seed in range(60)]
    jumps = [float(line[20] - line[19]) for line in lines]
    assert min(jumps) < 0.8
    assert max(jumps) > 1.1


def test_augmentation_varies_appearance_only_if_enabled_and_never_the_mask() -> None:
    scan = torch.cat([ramp(), (ramp() > 0).float()])
    plain, varied = (augmentation(4, vary_appearance=asked)(scan) for asked in (False, True))
    assert torch.equal(augmentation(4)(scan), plain)
    assert not torch.equal(plain[0], varied[0])
    assert torch.equal(plain[1], varied[1])


def test_appearance_variation_without_augmentation_is_refused() -> None:
    assert TrainSettings(vary_appearance=True).augment
    with pytest.raises(ValidationError, match="vary_appearance"):
        TrainSettings(augment=False, vary_appearance=True)
