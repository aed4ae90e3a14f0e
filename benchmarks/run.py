"""`make bench`: what our code costs beside the bare libraries, as ratios measured in one run.

Each figure is a median over repeats, with its spread. Results go to benchmarks/results/ as JSON and Markdown.
Synthetic data alone.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from pydicom import dcmread

from models.network import NetworkSettings, build_network
from pipeline.dicom import read_series
from pipeline.examples import Example, Examples
from pipeline.phantom.generate import Order, make_patient
from pipeline.preprocess import Preprocessing, prepare
from pipeline.series import find_series
from pipeline.train import augmentation, step

REPEATS = 7
RESULTS = Path(__file__).with_name("results")
DIALECTS = {0: "uncompressed", 1: "RLE", 2: "JPEG 2000", 3: "JPEG-LS"}


def seconds(work: Callable[[], object]) -> list[float]:
    """Processor seconds of `work`, several times after one warm-up."""
    work()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return times


def ratio(name: str, ours: list[float], bare: list[float], what: str) -> dict[str, object]:
    """One line of the table: our median against the bare library's."""
    return {
        "name": name,
        "against": what,
        "ratio": round(statistics.median(ours) / statistics.median(bare), 2),
        "ours_s": [round(min(ours), 4), round(statistics.median(ours), 4), round(max(ours), 4)],
        "bare_s": [round(min(bare), 4), round(statistics.median(bare), 4), round(max(bare), 4)],
    }


def bench_reading(folder: Path) -> list[dict[str, object]]:
    """Folder to checked HU volume, against decoding the same files with pydicom and nothing else."""
    lines = []
    for index, syntax in DIALECTS.items():
        home = folder / str(index)
        make_patient(Order(home, index, 1, 1, None))
        files = sorted(home.rglob("*.dcm"))

        def ours(home: Path = home) -> None:
            read_series(find_series(home)[0][0])

        def bare(files: list[Path] = files) -> None:
            for path in files:
                _ = dcmread(path).pixel_array

        lines.append(ratio(f"reading a series, {syntax}", seconds(ours), seconds(bare), "pydicom, decoding alone"))
    return lines


def bench_training(folder: Path) -> list[dict[str, object]]:
    """A training step with our data path, against the same step on tensors in memory."""
    volume = read_series(find_series(folder / "0")[0][0])
    prepared = prepare(volume, Preprocessing())
    np.save(folder / "scan.npy", prepared.tensor)
    examples = Examples([Example(folder / "scan.npy", 60.0, "F", True, k % 2 == 0) for k in range(8)])
    network = build_network(NetworkSettings(), seed=1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    index = np.arange(8)
    batch = examples.batch(index, None)
    augment = augmentation(0)
    bare = seconds(lambda: step(network, optimiser, *batch))
    return [
        ratio(
            "a training step from the cache",
            seconds(lambda: step(network, optimiser, *examples.batch(index, None))),
            bare,
            "the same step on tensors in memory",
        ),
        ratio(
            "a training step from the cache, augmented",
            seconds(lambda: step(network, optimiser, *examples.batch(index, augment))),
            bare,
            "the same step on tensors in memory",
        ),
    ]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = bench_reading(Path(folder)) + bench_training(Path(folder))
    head = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "repeats": REPEATS,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps({**head, "figures": lines}, indent=1))
    rows = [f"| {x['name']} | {x['ratio']} | {x['against']} |" for x in lines]
    table = "\n".join(["| ours | ratio of processor time | against |", "| --- | --- | --- |", *rows])
    text = (
        f"{head['date']}, {head['machine']}, Python {head['python']}, torch {head['torch']}; medians of {REPEATS}.\n\n"
    )
    (RESULTS / "bench.md").write_text(text + table + "\n")
    print(table)


if __name__ == "__main__":
    main()
