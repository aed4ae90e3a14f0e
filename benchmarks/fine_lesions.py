"""Does a network at 2 mm learn lesions of low contrast that it does not learn at 4 mm?

    python benchmarks/fine_lesions.py [--scans 200] [--folds 5] [--keep DIR]

Not in `make bench`: half an hour of one core. Writes results/fine_lesions.{json,md} after each fold. Half of the
synthetic scans have some hundred small faint spots in the lungs, the others have none; nothing else differs. Each scan
is prepared with the grids of the presets `small-cpu` and `standard-gpu`. In each fold one network of each grid learns
from the same scans with the same seed, and judges the same scans that no network of this fold learnt from.

A whole scan at 2 mm takes too long on one core. So a network learns from parts: a quarter of the tensor along each
axis, at random places with enough lung. The millimetres of a part are the same at both grids. The score of a scan is
the mean logit of all parts that divide the scan and have enough lung, so it is a score of the whole chest.

Three settings are not those of the presets, at both grids: the lungs are found by threshold, which is faster; the
window ends at -600 HU, because faint spots change little in the usual one; the optimiser is AdamW with a batch of
parts. They were chosen on other scans and seeds (docs/study-sizes.md).
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from encoder_heads import interval
from numpy.random import Generator
from numpy.typing import NDArray
from run import RESULTS, circumstances, markdown
from scipy import ndimage

from federation.approval.presets import presets
from models.network import SeverityNetwork, build_network
from models.network_settings import TABULAR
from pipeline.evaluation.discrimination import auroc
from pipeline.imaging.volume import Volume
from pipeline.phantom.anatomy import Build, Field, Grid, Thorax, make_thorax
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import THRESHOLD, Preprocessing
from pipeline.training.train import step

GRIDS = {"4 mm": "small-cpu", "2 mm": "standard-gpu"}
WINDOW_HU = (-1000.0, -600.0)
STORED = RESULTS / "fine_lesions.json"

BODY = Grid((152, 188, 188), (2.0, 2.0, 2.0))  # on which the anatomy is drawn
SCANNED = Grid((152, 376, 376), (2.0, 1.0, 1.0))
AFFINE = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]], float)  # of SCANNED, to RAS
# Drawn for each scan, those of the spots for each spot, but for their number and HU.
SPOTS, ADDED_HU, DIAMETER_MM = (500, 1200), (150.0, 300.0), (3.0, 5.0)
BLUR_MM, NOISE_HU = (0.6, 0.9), (14.0, 24.0)
AERATED_BELOW_HU = -750  # spots are not centred in vessels
DEPTHS = np.array([-0.375, -0.125, 0.125, 0.375])  # within a slice, which averages over them

PARTS = 4  # along each axis
LEAST_LEARNT, LEAST_JUDGED = 0.85, 0.7  # share of lung in a part
PLACES = 200  # drawn at most for one part
LEARNT, BATCH, STEPS, WARM_STEPS = 160, 16, 500, 50
LEARNING_RATE, WEIGHT_DECAY = 0.001, 0.01
SEED = 4000  # whose scans served for nothing before


def spots(thorax: Thorax, rng: Generator) -> Field:
    """Return what the spots of a scan add on the grid SCANNED, in HU."""
    count, added_hu = int(rng.uniform(*SPOTS)), rng.uniform(*ADDED_HU)
    aerated = np.argwhere(thorax.lungs & (thorax.hu < AERATED_BELOW_HU))
    centres = (aerated[rng.integers(0, len(aerated), count)] + rng.uniform(-0.5, 0.5, (count, 3))) * (1, 2, 2)
    centres += (0, 0.5, 0.5)  # the centres of the first voxels of both grids differ
    share = np.zeros(SCANNED.shape, np.float32)
    for centre, radius_mm in zip(centres, rng.uniform(*DIAMETER_MM, count) / 2, strict=True):
        reach = radius_mm / np.array(SCANNED.spacing_mm) + 1
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach).astype(int) + 1, SCANNED.shape)
        z, y, x = (np.arange(a, b) - c for a, b, c in zip(low, high, centre, strict=True))
        depth_mm = (z[:, None] + DEPTHS) * SCANNED.spacing_mm[0]
        away_mm = np.sqrt(depth_mm[:, :, None, None] ** 2 + y[:, None] ** 2 + x**2)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        share[box] = np.maximum(share[box], np.clip(radius_mm - away_mm + 0.5, 0, 1).mean(axis=1))
    return np.asarray(added_hu * share, np.float32)


def draw_scan(rng: Generator, *, has_spots: bool) -> Volume:
    """Draw a scan of 2 mm slices with pixels of 1 mm; the same state with and without spots gives the same body."""
    body, found, scanner = rng.spawn(3)
    thorax = make_thorax(BODY, Build.draw(body, female=bool(body.random() < 0.5)), body)
    hu = F.interpolate(torch.from_numpy(thorax.hu)[None, None], size=SCANNED.shape, mode="trilinear")[0, 0].numpy()
    if has_spots:
        hu = hu + spots(thorax, found)
    blur_mm, noise_hu = scanner.uniform(*BLUR_MM), scanner.uniform(*NOISE_HU)
    noise = scanner.standard_normal(SCANNED.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0, 0.6, 0.6), truncate=2)
    seen = ndimage.gaussian_filter(hu, (0, blur_mm, blur_mm), truncate=3) + noise_hu / noise.std() * noise
    return Volume(np.rint(np.clip(seen + scanner.normal(0, 5), -1020, 3000)).astype(np.int16), AFFINE)


def preprocessing(preset: str) -> Preprocessing:
    """Return the settings of a preset's grid, as in the head of this module."""
    return presets()[preset].preprocessing.model_copy(update={"method": THRESHOLD, "window_hu": WINDOW_HU})


def labels_of(count: int, seed: int) -> NDArray[np.int64]:
    """Return which scans have spots: half of them."""
    return np.random.default_rng((seed, 0)).permutation(np.arange(count) % 2)


def make_scans(folder: Path, count: int, seed: int) -> None:
    """Write the tensors of all scans at both grids, but those that are there already."""
    for number, label in enumerate(labels_of(count, seed)):
        files = {folder / f"{number}-{preset}.npy": preprocessing(preset) for preset in GRIDS.values()}
        if all(file.is_file() for file in files):
            continue
        scan = draw_scan(np.random.default_rng((seed, 1, number)), has_spots=bool(label))
        for file, settings in files.items():
            np.save(file, prepare(scan, settings).tensor)


def size_of(tensor: torch.Tensor) -> list[int]:
    """Return the size of a part of a scan (2, slices, rows, columns), in voxels."""
    return [side // PARTS for side in tensor.shape[1:]]


def part_at(tensor: torch.Tensor, start: Sequence[int]) -> torch.Tensor:
    box = (slice(low, low + side) for low, side in zip(start, size_of(tensor), strict=True))
    return tensor[(slice(None), *box)]


def lung_share(part: torch.Tensor) -> float:
    return float(part[1].float().mean())


def random_part(tensor: torch.Tensor, rng: Generator) -> torch.Tensor:
    """Return the first part at a random place that has enough lung, or else the last of PLACES."""
    part = tensor
    for _ in range(PLACES):
        free = [side - own for side, own in zip(tensor.shape[1:], size_of(tensor), strict=True)]
        part = part_at(tensor, [round(float(share) * most) for share, most in zip(rng.random(3), free, strict=True)])
        if lung_share(part) > LEAST_LEARNT:
            break
    return part


def all_parts(tensor: torch.Tensor) -> torch.Tensor:
    """Return the parts that divide a scan and have enough lung, or else the one with most.

    Their shape is (parts, 2, slices, rows, columns).
    """
    places = np.ndindex(PARTS, PARTS, PARTS)
    parts = [part_at(tensor, [at * own for at, own in zip(place, size_of(tensor), strict=True)]) for place in places]
    enough = [part for part in parts if lung_share(part) > LEAST_JUDGED]
    return torch.stack(enough or [max(parts, key=lung_share)]).float()


def trained(tensors: Sequence[torch.Tensor], labels: NDArray[np.int64], seed: int, steps: int) -> SeverityNetwork:
    """Train the presets' network on random parts of the scans, mirrored at random."""
    network = build_network(presets()["small-cpu"].network, seed=seed)
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rng = np.random.default_rng(seed)
    for number in range(steps):
        chosen = rng.choice(len(tensors), min(BATCH, len(tensors)), replace=False)
        parts = torch.stack([random_part(tensors[index], rng) for index in chosen]).float()
        parts = parts.flip([axis for axis in (2, 3, 4) if rng.random() < 0.5])
        cosine = 0.5 * (1 + np.cos(np.pi * number / steps))
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (number + 1) / WARM_STEPS) * cosine
        targets = torch.tensor(
            [[float(labels[index]), float("nan")] for index in chosen]
        )  # the second label is unknown
        step(network, optimiser, parts, torch.zeros(len(chosen), TABULAR), targets)
    return network


@torch.inference_mode()
def scores(network: SeverityNetwork, tensors: Sequence[torch.Tensor]) -> NDArray[np.float64]:
    """Return the mean logit of each scan's parts."""
    network.eval()
    parts = (all_parts(tensor) for tensor in tensors)
    return np.array([float(network(each, torch.zeros(len(each), TABULAR))[:, 0].mean()) for each in parts])


def texture(tensor: torch.Tensor) -> float:
    """Return the standard deviation of a scan's finest detail in aerated lung, which needs no learning."""
    image, lungs = tensor.float().numpy()
    fine = image - ndimage.gaussian_filter(image, 1)
    inside = ndimage.binary_erosion(lungs > 0.9) & (image < 0.5)
    return float(fine[inside].std()) if inside.any() else 0.0


def fold_of(
    folder: Path, labels: NDArray[np.int64], judged: NDArray[np.int64], seed: int, steps: int
) -> dict[str, Any]:
    """Train at both grids without the scans `judged`, and judge these."""
    learnt = np.random.default_rng((seed, 2)).permutation(np.setdiff1d(np.arange(len(labels)), judged))[:LEARNT]
    found: dict[str, Any] = {"seed": seed, "learnt": len(learnt), "judged": len(judged)}
    for grid, preset in GRIDS.items():
        tensors = [torch.from_numpy(np.load(folder / f"{number}-{preset}.npy")) for number in range(len(labels))]
        network = trained([tensors[number] for number in learnt], labels[learnt], seed, steps)
        for name, chosen in (("learnt", learnt[: len(judged)]), ("judged", judged)):
            area = auroc(scores(network, [tensors[number] for number in chosen]), labels[chosen]).value
            found[f"{grid}, {name}"] = area
        found[f"{grid}, texture"] = auroc(np.array([texture(tensors[n]) for n in judged]), labels[judged]).value
        print(found, flush=True)
    return found


def page(about: dict[str, Any], folds: Sequence[dict[str, Any]]) -> str:
    """Return the table of all folds as Markdown."""
    rows = []
    for what, name in (
        ("network, scans it did not learn from", "judged"),
        ("network, as many of those it learnt from", "learnt"),
        ("strength of the finest texture, no learning", "texture"),
    ):
        coarse, fine = ([fold[f"{grid}, {name}"] for fold in folds] for grid in GRIDS)
        enough = len(folds) > 1
        cells = [interval(each) if enough else f"{each[0]:.4f}" for each in (coarse, fine, np.subtract(fine, coarse))]
        rows.append([what, *cells])
    judged, learnt = sum(fold["judged"] for fold in folds), folds[0]["learnt"]
    lines = [
        "# Small faint lesions at 2 mm and at 4 mm",
        "",
        f"{about['date']}; {about['machine']}. Synthetic scans, half of them with {SPOTS[0]} to {SPOTS[1]} spots of "
        f"{DIAMETER_MM[0]:.0f} to {DIAMETER_MM[1]:.0f} mm, {ADDED_HU[0]:.0f} to {ADDED_HU[1]:.0f} HU above the lung. "
        f"{len(folds)} folds with a seed each; {learnt} scans to learn from in each, {judged} other scans judged once "
        f"each. {about['steps']} steps of {BATCH} parts. AUROC with 95 % intervals over the folds; differences are "
        "paired by fold.",
        "",
        *markdown(["AUROC", *GRIDS, "2 mm less 4 mm"], rows),
        "`benchmarks/fine_lesions.py` explains the rows and the settings that are not those of the presets.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--seed", type=int, default=SEED, help="of the scans; those of the folds follow it")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the tensors, or use those that are there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    about, folds = {**circumstances(), **vars(asked), "keep": asked.keep is not None}, []
    labels = labels_of(asked.scans, asked.seed)
    order = np.random.default_rng((asked.seed, 3)).permutation(asked.scans)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_scans(folder, asked.scans, asked.seed)
        for number, judged in enumerate(np.array_split(order, asked.folds), start=1):
            folds.append(fold_of(folder, labels, judged, asked.seed + number, asked.steps))
            STORED.write_text(json.dumps({**about, "folds": folds}, indent=1) + "\n", encoding="utf-8")
            STORED.with_suffix(".md").write_text(page(about, folds), encoding="utf-8")


if __name__ == "__main__":
    main()
