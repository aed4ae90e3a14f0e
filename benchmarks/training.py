"""A training step with our data path, against the same step on tensors in memory."""

from pathlib import Path

import numpy as np
import torch
from chest import SYNTAXES, write_chest
from common import Figure, Part, processor_seconds

from models.network import NetworkSettings, build_network
from pipeline.dicom import read_series
from pipeline.examples import Example, Examples
from pipeline.preprocess import Preprocessing, prepare
from pipeline.series import find_series
from pipeline.train import augmentation, step

REPEATS = 7
BATCH = 8


def measure(folder: Path) -> Part:
    torch.set_num_threads(1)
    write_chest(folder, SYNTAXES["uncompressed"])
    np.save(folder / "scan.npy", prepare(read_series(find_series(folder)[0][0]), Preprocessing()).tensor)
    examples = Examples([Example(folder / "scan.npy", 60.0, "F", True, k % 2 == 0) for k in range(BATCH)])
    network = build_network(NetworkSettings(), seed=1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    index = np.arange(BATCH)
    batch = examples.batch(index, None)
    augment = augmentation(0)
    bare, cached, augmented = processor_seconds(
        REPEATS,
        lambda: step(network, optimiser, *batch),
        lambda: step(network, optimiser, *examples.batch(index, None)),
        lambda: step(network, optimiser, *examples.batch(index, augment)),
    )
    return Part(
        [f"Batches of {BATCH}, one thread."],
        [
            Figure("step from the cache", "step on tensors in memory", "processor s", cached, bare),
            Figure("step from the cache, augmented", "step on tensors in memory", "processor s", augmented, bare),
        ],
    )
