"""Tests of training the lung segmenter: training is reproducible, and the loss is lowest for the true labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.lung_segmenter import LungSegmenter, Region, Tissue
from pipeline.phantom.body.sample import Variety, draw_sample
from pipeline.phantom.lung_training import CROP, LARGE_CROP, cropped, loss_of, train

pytestmark = pytest.mark.slow


def test_training_twice_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tmp_path / name, steps=2, seed=5, workers=0)
    first, second = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert first.keys() == LungSegmenter().state_dict().keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(value.dtype == torch.float16 for value in first.values())


def test_loss_is_lowest_for_the_true_labels() -> None:
    rng = np.random.default_rng(1)
    hu, regions, tissues = (each[None] for each in cropped(draw_sample(rng), rng))
    right = [
        20.0 * torch.nn.functional.one_hot(labels, len(kind)).permute(0, 4, 1, 2, 3).float()
        for labels, kind in ((regions, Region), (tissues, Tissue))
    ]
    wrong = [each.roll(1, dims=1) for each in right]
    assert loss_of(*right, hu, regions, tissues) < 0.1
    assert loss_of(*wrong, hu, regions, tissues) > 10


def test_crop_has_the_training_size_and_keeps_its_labels() -> None:
    widths = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sample = draw_sample(rng, variety=Variety(turned=1.0))
        hu, regions, tissues = cropped(sample, rng)
        widths.append(sample.hu.shape[2])
        assert hu.shape == regions.shape == tissues.shape == (CROP if widths[-1] <= CROP[2] else LARGE_CROP)
        inside = (regions == Region.RIGHT_LUNG) | (regions == Region.LEFT_LUNG)
        assert not tissues[~inside].any()
        assert set(hu[inside].tolist()) <= set(sample.hu[np.isin(sample.regions, (1, 2))].tolist())
    assert min(widths) <= CROP[2] < max(widths)
