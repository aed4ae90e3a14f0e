"""Tests of the golden volume's digest: equal on every processor, different for every other method."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.lung_segmenter import LungSegmenter
from models.refusal import Refusal
from pipeline.preprocessing import golden_volume as golden
from pipeline.preprocessing import lungs, preprocess
from pipeline.preprocessing.golden_volume import STEP, block_steps, golden_digest, golden_volume
from pipeline.preprocessing.preprocess import prepare, resample
from pipeline.preprocessing.preprocess_settings import Preprocessing

SETTINGS = Preprocessing()
DIGEST = golden_digest(SETTINGS)
THRESHOLD = Preprocessing(method=1)
OTHER_ORDER = 1e-6  # how much summing floats in another order changes a voxel of the tensor; sums of whole HU are exact


def test_digest_equals_that_of_all_releases_with_this_preprocessing() -> None:
    """A change of `prepare` changes the digest; `Preprocessing.method` must then be raised too."""
    assert DIGEST == "b289c1de49e93ded1d6d4919c0e48191fcf0275292b50592ab2716605abe2a65"
    assert golden_digest(THRESHOLD) == "f38ba8262f1f68c12f3068f73895fceb32539bf38d26c56c0154b70765096d14"


def test_golden_volume_is_a_whole_chest_that_uses_all_steps() -> None:
    prepared = prepare(golden_volume(), SETTINGS)
    assert 3000 < prepared.lungs_ml < 4500
    assert prepared.found is not None
    assert 1 < abs(prepared.shift_hu) < SETTINGS.largest_shift_hu, "the HU are shifted by less than the limit"
    lung, bone = prepared.image_hu[prepared.lungs], prepared.image_hu.max()
    assert lung.min() < -900 and bone > 200
    assert -600 < np.percentile(lung, 99) < 200, "the lesion is inside the lung mask"


@pytest.mark.parametrize("method", ["threshold", "segmenter", "external"])
def test_no_block_mean_is_near_a_rounding_border(method: str) -> None:
    blocks = block_steps(Preprocessing.model_validate({"method": method}))
    assert np.abs(blocks - np.floor(blocks) - 0.5).min() * STEP > 100 * OTHER_ORDER


@pytest.mark.slow
def test_rounding_differences_of_the_segmenter_do_not_change_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are near 10; float32 rounds them to some 1e-6."""
    random, answer = np.random.default_rng(1), LungSegmenter.forward

    def other(logits: torch.Tensor) -> torch.Tensor:
        return logits + torch.from_numpy(random.uniform(-1e-4, 1e-4, logits.shape)).float()

    def otherwise(*given: Any) -> tuple[torch.Tensor, ...]:
        return tuple(
            each + torch.from_numpy(random.uniform(-1e-4, 1e-4, each.shape)).float() for each in answer(*given)
        )

    monkeypatch.setattr(LungSegmenter, "forward", otherwise)
    assert [golden_digest(SETTINGS) for _ in range(2)] == [DIGEST] * 2


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], None]]:
    """Replaces the golden volume with another one."""
    yield lambda hu: monkeypatch.setattr(golden, "golden_volume", lambda: replace(golden_volume(), hu=hu))


def test_rounding_differences_between_processors_do_not_change_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)

    def otherwise(hu: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        sums = resample(hu, shape)
        is_exact = shape != SETTINGS.shape  # the working grid holds whole HU
        return sums if is_exact else sums + torch.from_numpy(random.uniform(-OTHER_ORDER, OTHER_ORDER, shape)).float()

    monkeypatch.setattr(preprocess, "resample", otherwise)
    assert [golden_digest(SETTINGS) for _ in range(3)] == [DIGEST] * 3


@pytest.mark.parametrize(
    "change",
    [
        {"window_hu": (-1000.0, 210.0)},
        {"window_hu": (-1010.0, 200.0)},
        {"working_spacing_mm": 3.9},
        {"margin_mm": 12.0},
        {"aerated_lung_hu": -918.0},
        {"largest_shift_hu": 10.0},
        {"shape": (40, 56, 60)},
    ],
    ids=str,
)
def test_other_setting_gives_another_digest(change: dict[str, object]) -> None:
    assert golden_digest(SETTINGS.model_copy(update=change)) != DIGEST


@pytest.mark.parametrize(("constant", "other"), [("AIR_BELOW_HU", -480), ("CLOSING_MM", 10)])
def test_other_mask_constant_gives_another_digest(constant: str, other: float, monkeypatch: pytest.MonkeyPatch) -> None:
    before = golden_digest(THRESHOLD)
    monkeypatch.setattr(lungs, constant, other)
    assert golden_digest(THRESHOLD) != before


def test_other_weights_of_the_segmenter_give_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias of one logit is more than retraining the same network changes at most voxels."""
    answer = LungSegmenter.forward

    def otherwise(*given: Any) -> tuple[torch.Tensor, ...]:
        regions, tissues = answer(*given)
        return torch.cat([regions[:, :1] + 1, regions[:, 1:]], dim=1), tissues

    monkeypatch.setattr(LungSegmenter, "forward", otherwise)
    assert golden_digest(SETTINGS) != DIGEST


def test_other_resampling_gives_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearest(hu, shape):
        index = [np.arange(new) * old // new for new, old in zip(shape, hu.shape, strict=True)]
        return hu[np.ix_(*index)]

    monkeypatch.setattr(preprocess, "resample", nearest)
    assert golden_digest(SETTINGS) != DIGEST


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_scan_gives_another_digest(axis: int, scan: Callable[[object], None]) -> None:
    scan(np.ascontiguousarray(np.flip(golden_volume().hu, axis)))
    assert golden_digest(SETTINGS) != DIGEST


def test_golden_volume_without_lungs_found_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lungs, "AIR_BELOW_HU", -2000)
    with pytest.raises(Refusal) as refused:
        golden_digest(THRESHOLD)
    assert refused.value.code == "E_NO_LUNGS"
