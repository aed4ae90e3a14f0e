"""Tests of pretraining on hidden blocks: what is hidden, what is learnt of it, and how much one scan can count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.loss import MEASURE_REACH, block_regression
from models.network import build_network
from models.network_settings import BLOCKS, NetworkSettings
from models.pooling import shape_of_maps
from pipeline.cohort.dataset import Example
from pipeline.training.hidden_blocks import BLOCK_HU, FILL, BlockExamples, block_hu, by_place, in_voxels
from pipeline.training.train import train
from pipeline.training.train_settings import Schedule, TrainSettings

WINDOW = (-1000.0, 200.0)
AIR = -850.0
SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625, outputs="hidden_blocks")
GRID = (2, 2, 4)  # of blocks, for the maps (1, 1, 2) of a scan of 16 x 16 x 40 voxels
MAPS = (1, 1, 2)
SHAPE = (16, 16, 40)


def scaled(hu: Tensor) -> Tensor:
    low, high = WINDOW
    return (hu.clamp(low, high) - low) / (high - low) * 2 - 1


def scan_of(densities: Tensor) -> Tensor:
    """Return a scan of SHAPE whose lungs fill it, with these HU in its blocks."""
    return torch.stack([scaled(in_voxels(densities, SHAPE)), torch.ones(SHAPE)])


def densities(seed: int) -> Tensor:
    """Return HU of blocks, denser towards the feet, as the lungs of one patient more than those of another."""
    noise = torch.Generator().manual_seed(seed)
    illness = 300 * torch.rand(1, generator=noise)
    return AIR + illness + 60 * torch.rand(GRID, generator=noise)


def save(folder: Path, count: int) -> list[Example]:
    examples = []
    for number in range(count):
        np.save(path := folder / f"{number}.npy", scan_of(densities(number)).numpy().astype(np.float16))
        examples.append(Example(path, None, None, None, None, pseudonym=f"{number:016d}"))
    return examples


def hiding(examples: list[Example], seed: int = 1) -> BlockExamples:
    return BlockExamples(examples, WINDOW, maps=MAPS, seed=seed)


def test_hidden_blocks_are_gone_from_the_image_and_are_the_only_targets(tmp_path: Path) -> None:
    scans, tabular, targets = hiding(save(tmp_path, 3)).batch(np.arange(3), None)
    assert targets.shape == (3, MAPS[0] * MAPS[1] * MAPS[2], len(BLOCKS))
    assert not tabular.any()
    for number in range(3):
        true, original = densities(number), scan_of(densities(number))
        hidden = (scans[number, 0] == FILL) & (original[0] != FILL)
        known = ~torch.isnan(targets[number])
        assert int(known.sum()) == true.numel() // 2
        centre, spread = BLOCK_HU
        expected = by_place((true - centre) / spread)
        torch.testing.assert_close(targets[number][known], expected[known], atol=0.02, rtol=0)
        assert torch.equal(by_place(block_hu(hidden.float(), torch.ones(SHAPE), GRID)) == 1, known)
        torch.testing.assert_close(scans[number, 0][~hidden], original[0][~hidden], atol=1e-3, rtol=0)
        assert torch.equal(scans[number, 1], original[1]), "the lung mask stays"


def test_place_of_the_maps_has_the_blocks_of_its_part_of_the_scan() -> None:
    """The maps of the network and the targets have one order: slices, rows, columns."""
    numbers = torch.arange(6 * 4 * 8).reshape(6, 4, 8)
    places = by_place(numbers).reshape(3, 2, 4, len(BLOCKS))
    for place in np.ndindex(3, 2, 4):
        z, y, x = (2 * at for at in place)
        assert torch.equal(places[place], numbers[z : z + 2, y : y + 2, x : x + 2].flatten())
    assert (BLOCKS[0], BLOCKS[1], BLOCKS[4]) == (
        "density_lower_front_right",
        "density_lower_front_left",
        "density_upper_front_right",
    )


@pytest.mark.parametrize("shape", [(40, 56, 56), (16, 16, 16), (33, 47, 70)])
def test_blocks_fill_the_scan_and_are_of_equal_size(shape: tuple[int, int, int]) -> None:
    grid = (4, 4, 6)
    assert not torch.isnan(block_hu(torch.zeros(shape), torch.ones(shape), grid)).any()
    numbers = torch.arange(4 * 4 * 6).reshape(grid)
    sizes = in_voxels(numbers, shape).flatten().bincount()
    sides = [{size // count, -(-size // count)} for size, count in zip(shape, grid, strict=True)]
    assert {int(size) for size in sizes} <= {a * b * c for a in sides[0] for b in sides[1] for c in sides[2]}


def test_density_is_that_of_the_lung_alone_and_a_block_without_lung_has_none() -> None:
    hu, mask = torch.full(SHAPE, 50.0), torch.zeros(SHAPE)
    mask[:8, :8, :5] = 1  # half of the first block
    hu[mask > 0] = AIR
    mask[8, 8, 39] = 1  # one voxel of the last
    found = block_hu(hu, mask, GRID)
    assert float(found[0, 0, 0]) == pytest.approx(AIR)
    assert int(torch.isnan(found).sum()) == found.numel() - 1


def test_seed_decides_what_is_hidden(tmp_path: Path) -> None:
    examples, index = save(tmp_path, 4), np.arange(4)
    same, again, other = (hiding(examples, seed).batch(index, None)[2] for seed in (7, 7, 8))
    assert torch.equal(same.isnan(), again.isnan())
    assert not torch.equal(same.isnan(), other.isnan())
    assert not torch.equal(same[0].isnan(), same[1].isnan()), "each scan has its own blocks"
    used = hiding(examples, 7)
    first, second = (used.batch(index, None)[2] for _ in range(2))
    assert not torch.equal(first.isnan(), second.isnan()), "and in each epoch others"


def test_targets_do_not_follow_the_changed_densities_of_the_augmentation(tmp_path: Path) -> None:
    examples, index = save(tmp_path, 2), np.arange(2)

    def brighter(moved: Tensor) -> Tensor:
        return torch.cat([moved[:1] + 0.3, moved[1:]])

    plain, changed = (hiding(examples).batch(index, augment) for augment in (None, brighter))
    torch.testing.assert_close(plain[2], changed[2], equal_nan=True)
    hidden = plain[0][:, 0] == FILL
    assert (changed[0][:, 0][hidden] == FILL).all(), "the augmentation does not show through"


def test_no_scan_counts_more_than_another_whatever_the_weights_are() -> None:
    targets = torch.full((10, 2, len(BLOCKS)), torch.nan)
    targets[:, 0, 0] = 0.0
    targets[3] = 0.0  # sixteen hidden blocks, where the others have one
    outputs = torch.zeros_like(targets)
    outputs[3] = 1e9
    most = float(block_regression(outputs, targets, targets))
    assert 0 < most <= MEASURE_REACH / 10
    outputs[3] = 0.0
    outputs[4] = -1e9
    assert float(block_regression(outputs, targets, targets)) == pytest.approx(most)


def test_losses_of_the_parts_of_a_batch_add_up_and_a_scan_without_lung_adds_nothing() -> None:
    outputs, targets = torch.randn(6, 2, len(BLOCKS)), torch.randn(6, 2, len(BLOCKS))
    targets[2, 0, 4] = targets[5] = float("nan")
    whole = block_regression(outputs, targets, targets)
    parts = [block_regression(outputs[part], targets[part], targets) for part in (slice(0, 2), slice(2, 6))]
    assert float(sum(parts)) == pytest.approx(float(whole))
    outputs[5] = 1e6
    assert float(block_regression(outputs, targets, targets)) == pytest.approx(float(whole))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    examples, settings = save(tmp_path, 12), TrainSettings(batch_size=4, augment=False)

    def loss_of_epoch(last: int) -> float:
        network = build_network(SMALL, seed=1)
        assert shape_of_maps(network, SHAPE) == MAPS
        schedule = Schedule(first_epoch=0, epochs=last, total_epochs=20)
        return train(network, hiding(examples), settings, schedule, seed=1, loss=block_regression)

    assert loss_of_epoch(12) < 0.8 * loss_of_epoch(1)
