"""Tests of the targets of pretraining, which follow from the scan alone, and of its loss, bounded for each scan."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.loss import MEASURE_REACH, bounded_regression
from models.network import build_network
from models.network_settings import AUXILIARY, NetworkSettings
from pipeline.cohort.dataset import Example
from pipeline.training.pretraining import PretrainingExamples, in_hu, measures
from pipeline.training.train import augmentation, train
from pipeline.training.train_settings import Schedule, TrainSettings

WINDOW = (-1000.0, 200.0)
AIR, DENSE = -850.0, -400.0
SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625, outputs="auxiliary")


def scan(*dense: tuple[slice, slice, slice]) -> Tensor:
    """Return a scan of shape (2, 12, 12, 12): two lungs in one block of 9 slices, with dense places."""
    hu, mask = torch.full((12, 12, 12), 50.0), torch.zeros(12, 12, 12)
    mask[1:10, 2:10, 1:11] = 1
    hu[mask > 0] = AIR
    for place in dense:
        hu[place] = DENSE
    low, high = WINDOW
    return torch.stack([(hu.clamp(low, high) - low) / (high - low) * 2 - 1, mask])


def of(scan: Tensor) -> dict[str, float]:
    return dict(zip(AUXILIARY, measures(in_hu(scan[0], WINDOW), scan[1]).tolist(), strict=True))


LOWER_RIGHT = (slice(1, 4), slice(2, 10), slice(1, 6))


def test_dense_lung_is_found_in_its_zone() -> None:
    clear, ill = of(scan()), of(scan(LOWER_RIGHT))
    changed = {name for name in AUXILIARY if abs(ill[name] - clear[name]) > 1e-6}
    assert changed == {"opacity_right_lower", "mean_hu"}
    assert ill["opacity_right_lower"] > clear["opacity_right_lower"]
    assert ill["mean_hu"] > clear["mean_hu"]


def test_mirrored_scan_has_the_measures_of_the_other_side() -> None:
    mirrored, swap = of(scan(LOWER_RIGHT).flip(3)), {"right": "left", "left": "right"}
    for name, value in of(scan(LOWER_RIGHT)).items():
        assert mirrored["_".join(swap.get(part, part) for part in name.split("_"))] == pytest.approx(value)


def test_scan_without_lungs_has_no_densities() -> None:
    empty = scan()
    empty[1] = 0
    assert all(np.isnan(value) != name.startswith("volume") for name, value in of(empty).items())


def save(folder: Path, count: int) -> list[Example]:
    examples = []
    for number in range(count):
        path = folder / f"{number}.npy"
        noisy = scan(LOWER_RIGHT) if number % 2 else scan()
        noisy[0] += torch.randn(noisy[0].shape, generator=torch.Generator().manual_seed(number)) * 0.02
        np.save(path, noisy.numpy().astype(np.float16))
        examples.append(Example(path, None, None, None, None, pseudonym=f"{number:016d}"))
    return examples


def test_targets_do_not_follow_the_changed_densities_of_the_augmentation(tmp_path: Path) -> None:
    examples = PretrainingExamples(save(tmp_path, 4), WINDOW)

    def brighter(moved: Tensor) -> Tensor:
        return torch.cat([moved[:1] + 0.3, moved[1:]])

    index = np.arange(4)
    plain, changed = examples.batch(index, None), examples.batch(index, brighter)
    assert torch.equal(plain[2], changed[2])
    assert not torch.equal(plain[0], changed[0])
    assert changed[0].shape == (4, 2, 12, 12, 12)


def test_targets_follow_the_flip_of_the_augmentation(tmp_path: Path) -> None:
    examples = PretrainingExamples(save(tmp_path, 2), WINDOW)
    index = np.array([1])
    (flipped,) = examples.batch(index, lambda moved: moved.flip(3))[2]
    (plain,) = examples.batch(index, None)[2]
    right, left = AUXILIARY.index("opacity_right_lower"), AUXILIARY.index("opacity_left_lower")
    assert flipped[left] == plain[right] != plain[left]
    usual = augmentation(3)
    assert examples.batch(index, usual)[2].shape == (1, len(AUXILIARY))


@pytest.mark.parametrize("known", [{"age_years": 60.0}, {"sex": "F"}, {"severe": True}, {"pcr_positive": False}])
def test_labels_age_and_sex_do_not_enter_pretraining(tmp_path: Path, known: dict[str, object]) -> None:
    fields: dict[str, object] = {"age_years": None, "sex": None, "pcr_positive": None, "severe": None} | known
    with pytest.raises(ValueError, match="no label, age or sex"):
        PretrainingExamples([Example(tmp_path / "scan.npy", **fields)], WINDOW)  # type: ignore[arg-type]


def test_one_scan_adds_little_to_the_loss_whatever_the_weights_are() -> None:
    targets = torch.zeros(10, len(AUXILIARY))
    outputs = torch.zeros(10, len(AUXILIARY))
    outputs[3] = 1e9
    loss = float(bounded_regression(outputs, targets, targets))
    assert 0 < loss <= MEASURE_REACH / 10
    outputs[3] = -1e9
    assert float(bounded_regression(outputs, targets, targets)) == pytest.approx(loss)


def test_losses_of_the_parts_of_a_batch_add_up_and_missing_measures_do_not_count() -> None:
    outputs, targets = torch.randn(6, len(AUXILIARY)), torch.randn(6, len(AUXILIARY))
    targets[2, 4] = targets[5, 0] = float("nan")
    whole = bounded_regression(outputs, targets, targets)
    parts = [bounded_regression(outputs[part], targets[part], targets) for part in (slice(0, 2), slice(2, 6))]
    assert float(sum(parts)) == pytest.approx(float(whole))
    outputs[2, 4] = 1e6
    assert float(bounded_regression(outputs, targets, targets)) == pytest.approx(float(whole))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    examples = PretrainingExamples(save(tmp_path, 12), WINDOW)
    settings = TrainSettings(batch_size=4, augment=False)

    def loss_of_epoch(last: int) -> float:
        network = build_network(SMALL, seed=1)
        schedule = Schedule(first_epoch=0, epochs=last, total_epochs=20)
        return train(network, examples, settings, schedule, seed=1, loss=bounded_regression)

    assert loss_of_epoch(12) < 0.8 * loss_of_epoch(1)
