"""Trains the lung segmenter on synthetic bodies: `python -m pipeline.phantom.lung_training OUT`.

Bodies are drawn as training goes on, and each gives two steps. The weights that are written are a moving average over
steps.
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from models.lung_segmenter import LungSegmenter, Region, Tissue
from pipeline.phantom.body.abdomen import DIFFICULT, USUAL
from pipeline.phantom.body.sample import PLAIN, Sample, Variety, draw_sample

log = logging.getLogger(__name__)
CROP = (64, 80, 96)  # voxels of a step; smaller than most scans, so that a part of a chest is known too
LARGE_CROP = (96, 96, 128)  # of a scan that is wider than CROP; a network trained on CROP alone fails in such scans
CROPS = 2  # parts of each body
LEARNING_RATE = 2e-3
AVERAGE = 0.998  # share of the moving average that a step keeps
LUNGS = (Region.RIGHT_LUNG, Region.LEFT_LUNG)
BESIDE, DENSE_ABOVE_HU, DENSE_WEIGHT = 3, -300.0, 3.0  # voxels from a lung; where a voxel weighs more, and how much
TISSUE_WEIGHTS = (1.0, 1.5, 1.5, 2.0, 2.0)  # of Tissue, because vessels and airways are few voxels


class Bodies(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Cropped samples without end; the same ones for the same seed and number of workers.

    `difficult`: share of the bodies in which gas often lies where it is easily taken for lung.
    """

    def __init__(self, seed: int, difficult: float = 0.0, variety: Variety = PLAIN) -> None:
        self.seed, self.difficult, self.variety = seed, difficult, variety

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            rng = np.random.default_rng((self.seed, number))
            is_difficult = self.difficult > 0 and rng.random() < self.difficult
            sample = draw_sample(rng, gas=DIFFICULT if is_difficult else USUAL, variety=self.variety)
            for _ in range(CROPS):
                yield cropped(sample, rng)
            number += step


def cropped(sample: Sample, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return HU, regions and tissues of a random part of the scan; what lies outside the scan is air."""
    shape = sample.hu.shape
    size = CROP if shape[2] <= CROP[2] else LARGE_CROP
    start = [int(rng.integers(min(0, n - c), max(0, n - c) + 1)) for n, c in zip(shape, size, strict=True)]
    source = tuple(slice(max(0, s), min(n, s + c)) for s, n, c in zip(start, shape, size, strict=True))
    into = tuple(slice(a.start - s, a.stop - s) for a, s in zip(source, start, strict=True))
    parts = []
    for values, fill in ((sample.hu, -1000), (sample.regions, Region.BACKGROUND), (sample.tissues, Tissue.PARENCHYMA)):
        part = np.full(size, fill, values.dtype)
        part[into] = values[source]
        parts.append(torch.from_numpy(part))
    return parts[0], parts[1].long(), parts[2].long()


def loss_of(regions: Tensor, tissues: Tensor, hu: Tensor, wanted: Tensor, wanted_tissue: Tensor) -> Tensor:
    """Return cross-entropy plus Dice loss of the regions, and both of the tissues inside the lungs.

    Dense voxels in and beside the lungs weigh more: there, consolidation must be told from effusion and chest wall.
    """
    inside = torch.isin(wanted, torch.tensor([int(r) for r in LUNGS])).float()
    near = _widened(inside)
    weight = 1 + (DENSE_WEIGHT - 1) * near * (hu > DENSE_ABOVE_HU)
    of_region = F.cross_entropy(regions, wanted, reduction="none")
    of_tissue = F.cross_entropy(tissues, wanted_tissue, torch.tensor(TISSUE_WEIGHTS), reduction="none")
    total = (of_region * weight).sum() / weight.sum() + (of_tissue * inside).sum() / (inside.sum() + 1000)
    share = regions.softmax(1)
    for region in (*LUNGS, Region.AIRWAY):
        total = total + 0.5 * (1 - _dice(share[:, region], (wanted == region).float()))
    share = tissues.softmax(1) * inside[:, None]
    for tissue in (Tissue.GROUND_GLASS, Tissue.CONSOLIDATION, Tissue.VESSEL):
        total = total + 0.2 * (1 - _dice(share[:, tissue], (wanted_tissue == tissue).float() * inside))
    return total


def _widened(mask: Tensor) -> Tensor:
    """Return the largest value up to BESIDE voxels away; axis by axis, which takes a sixth of the time."""
    wide = mask[:, None]
    for axis in range(3):
        reach = tuple(BESIDE if each == axis else 0 for each in range(3))
        wide = F.max_pool3d(wide, tuple(2 * side + 1 for side in reach), 1, reach)
    return wide[:, 0]


def _dice(share: Tensor, truth: Tensor) -> Tensor:
    """Return the soft Dice coefficient; a structure that is absent and not found counts as 1."""
    smooth = 50.0
    return (2 * (share * truth).sum() + smooth) / (share.sum() + truth.sum() + smooth)


def train(
    out: Path,
    *,
    steps: int,
    seed: int,
    workers: int,
    rate: float = LEARNING_RATE,
    start: Path | None = None,
    difficult: float = 0.0,
    variety: Variety = PLAIN,
) -> None:
    """Train for `steps` steps, report every 50, and write the averaged weights to `out` as 16-bit floats."""
    torch.manual_seed(seed)
    network = LungSegmenter()
    if start:
        from safetensors.torch import load_file

        network.load_state_dict({name: value.float() for name, value in load_file(start).items()})
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE)
    )
    deepest = network.net.down_4
    deepest.forward = _in_float32(deepest.forward)  # type: ignore[method-assign]
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    began, losses = time.monotonic(), []
    for step, batch in enumerate(
        DataLoader(Bodies(seed, difficult, variety), batch_size=1, num_workers=workers), start=1
    ):
        hu, wanted, wanted_tissue = batch
        with torch.autocast("cpu", torch.bfloat16):
            regions, tissues = network(hu)
        loss = loss_of(regions.float(), tissues.float(), hu, wanted, wanted_tissue)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            pace = (time.monotonic() - began) / step
            log.info("step %d of %d: loss %.3f, %.2f s a step", step, steps, np.mean(losses[-50:]), pace)
            _save(average.module, out)
        if step == steps:
            return


def _in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `forward` without bfloat16.

    With torch 2.13 on processors, bfloat16 gradients of convolutions over two voxels are at times random numbers.
    """

    def exact(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float())

    return exact


def _save(network: torch.nn.Module, out: Path) -> None:
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the lung segmenter on synthetic bodies.")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="the highest learning rate")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights to begin with")
    parser.add_argument("--difficult", type=float, default=0.0, help="share of bodies with gas in difficult places")
    parser.add_argument("--solid", type=float, default=0.0, help="chance that an ill body has foci that are solid")
    parser.add_argument("--turned", type=float, default=0.0, help="chance that a body lies turned or off the middle")
    parser.add_argument("--muscles", type=float, default=0.0, help="chance that shoulders and back have muscles")
    parser.add_argument("--tubes", type=float, default=0.0, help="chance that a patient is ventilated")
    parser.add_argument("--aorta", type=float, default=0.0, help="chance of a wide aorta, or one beside the spine")
    parser.add_argument("--arch", type=float, default=0.0, help="chance of an aorta with a high arch far to the left")
    parser.add_argument("--fluid", type=float, default=0.0, help="chance of a layer of fluid along the chest's wall")
    parser.add_argument("--full-side", type=float, default=0.0, help="chance that fluid fills a side of the chest")
    parser.add_argument("--solid-lung", type=float, default=0.0, help="chance that most of a lung is solid")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(
        arguments.out,
        steps=arguments.steps,
        seed=arguments.seed,
        workers=arguments.workers,
        rate=arguments.rate,
        start=arguments.start,
        difficult=arguments.difficult,
        variety=Variety(**{each.name: getattr(arguments, each.name) for each in fields(Variety)}),
    )


if __name__ == "__main__":
    main()
