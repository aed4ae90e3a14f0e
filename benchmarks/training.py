"""A training step with our data path, compared with the same step on tensors in memory; and possible speed-ups.

Data path: from cached files to a batch of float32, and the overhead of MONAI's transforms. The arithmetic of an
augmentation (normal deviates, interpolation) is a cost of any augmentation and is reported separately.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from chest import SYNTAXES, write_chest
from common import Figure, Part, Work, processor_seconds, runs_in_turn, wall_seconds
from monai.data.meta_obj import set_track_meta

from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from pipeline.cohort.dataset import Batch, Example, Examples
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.system.malloc import keep_memory
from pipeline.training.train import augmentation, step

REPEATS = 9
REPEATS_SHORT = 5
BATCH = 8
STEPS = 5  # steps of an epoch that is timed as a whole
INDEX = np.arange(BATCH)
IN_MEMORY = "step on tensors in memory"


def measure(folder: Path, *, is_short: bool = False) -> Part:
    """The short form: only the data path."""
    torch.set_num_threads(1)
    keep_memory()
    write_chest(folder / "series", SYNTAXES["uncompressed"])
    tensor = prepare(read_series(find_series(folder / "series")[0][0]), Preprocessing()).tensor
    (folder / "cache").mkdir()
    for number in range(STEPS * BATCH):
        np.save(folder / f"cache/{number:02d}.npy", tensor)
    files = sorted((folder / "cache").iterdir())
    examples = Examples([Example(path, 60.0, "F", True, k % 2 == 0) for k, path in enumerate(files)])
    batch = examples.batch(INDEX, None)
    figures = _data_path(examples, batch, REPEATS_SHORT if is_short else REPEATS)
    if not is_short:
        figures += [*_epochs(folder / "cache"), *_ways_to_compute(batch), *_two_cores(examples)]
    return Part(_notes(), figures)


def _notes() -> list[str]:
    return [
        f"The network of the default study, batches of {BATCH} of one synthetic scan; one thread unless stated "
        "otherwise. An epoch: "
        f"{STEPS} steps, augmented. First epoch: the first of a process, including its imports.",
        "Augmented in memory: the same transforms on tensors in memory, so that only the data path remains. "
        "MONAI as it comes: the same transforms, with MONAI's record of the operations on each scan.",
        "The order of channels: only speed. Training always uses channels last.",
        "Two threads: wall time, two cores. Preparing the next batch in a third thread during a step took 1.2 times as "
        "long, and was removed.",
    ]


def _stepper(network: SeverityNetwork | None = None) -> Callable[..., float]:
    network = network or build_network(NetworkSettings(), seed=1)
    return partial(step, network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9))


def _data_path(examples: Examples, batch: Batch, repeats: int) -> list[Figure]:
    ours, in_memory, augment = _stepper(), list(batch[0]), augmentation(0)

    def augmented() -> Batch:
        return torch.stack([augment(scan) for scan in in_memory]), *batch[1:]

    def as_it_comes() -> None:
        set_track_meta(True)
        augmented()
        set_track_meta(False)

    bare, cached, bare_augmented, cached_augmented, transforms, recorded = processor_seconds(
        repeats,
        lambda: ours(*batch),
        lambda: ours(*examples.batch(INDEX, None)),
        lambda: ours(*augmented()),
        lambda: ours(*examples.batch(INDEX, augment)),
        _several(augmented),
        _several(as_it_comes),
    )
    by_step = partial(Figure, unit="processor s")
    return [
        by_step("step from the cache", IN_MEMORY, ours=cached, theirs=bare, target="at most 1.05"),
        by_step(
            "step from the cache, augmented",
            f"{IN_MEMORY}, augmented",
            ours=cached_augmented,
            theirs=bare_augmented,
            target="at most 1.05",
        ),
        by_step("step from the cache, augmented", IN_MEMORY, ours=cached_augmented, theirs=bare),
        by_step(f"{STEPS} batches augmented", "MONAI as it comes", ours=transforms, theirs=recorded),
    ]


def _several(work: Work) -> Work:
    """Repeat a work, because augmentation is random and differs between batches."""
    return lambda: [work() for _ in range(STEPS)]


def _epochs(cache: Path) -> list[Figure]:
    first, later = (runs_in_turn(3, ["an_epoch"], cache, is_warm=warm)["an_epoch"] for warm in (False, True))
    return [Figure("first epoch", "a later one", "wall s", [r.wall_s for r in first], [r.wall_s for r in later])]


def _ways_to_compute(batch: Batch) -> list[Figure]:
    usual, plain = _stepper(), build_network(NetworkSettings(), seed=1)
    plain.to(memory_format=torch.contiguous_format)
    plain.joined = lambda scan, known: torch.cat([plain.backbone(scan), plain.tabular(known)], dim=1)  # type: ignore[method-assign]
    contiguous = _stepper(plain)

    ours, channels_first = processor_seconds(REPEATS, lambda: usual(*batch), lambda: contiguous(*batch))
    return [Figure("step with channels last", "channels first", "processor s", ours, channels_first)]


def _two_cores(examples: Examples) -> list[Figure]:
    ours, augment = _stepper(), augmentation(0)
    order = np.split(np.arange(STEPS * BATCH), STEPS)

    def epoch(threads: int) -> None:
        torch.set_num_threads(threads)
        for index in order:
            ours(*examples.batch(index, augment))

    two, one = wall_seconds(REPEATS, partial(epoch, 2), partial(epoch, 1))
    torch.set_num_threads(1)
    return [Figure("epoch with two threads", "with one", "wall s", two, one)]
