"""A port of the baseline that the organisers of STOIC2021 published, trained on all sites' patients in one place.

Own code, from the facts of their repositories (github.com/luukboulogne/stoic2021-baseline and -baseline-finalphase).
EQUAL and OTHER say what is equal and what is not; the tables print both.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from inflated_inception import IMAGES, InflatedInception
from numpy.typing import NDArray
from stoic2021_sites import Say
from torch import Tensor, nn

from federation.client.site_tasks import load_examples
from federation.protocol.study_config import Study
from models.calibration import fit_platt
from models.compute import Compute
from models.network_settings import LABELS
from pipeline.cohort.dataset import Example
from pipeline.evaluation.discrimination import auroc
from pipeline.site.folder import Site, Split

SPACING_MM, SIDE = 1.6, 240
WINDOW_HU = (-1100.0, 300.0)
EPOCHS, BATCH, RATE = 40, 2, 1e-4
# fastai's Adam, the default of its Learner; batch norm and biases do not decay.
BETAS, EPSILON, DECAY = (0.9, 0.99), 1e-5, 0.01
EQUAL = (
    f"the network (I3D with two outputs, the scan repeated in {IMAGES} channels); trilinear resampling to "
    f"{SPACING_MM} mm; {SIDE} x {SIDE} x {SIDE} voxels, the last slices of the file and the middle of the other two "
    f"axes, 0 HU beyond the scan; the window {WINDOW_HU[0]:g} to {WINDOW_HU[1]:g} HU, scaled to 0 to 1; binary "
    "cross-entropy over both outputs, in which a PCR-negative patient is not severe; batches of "
    f"{BATCH}; {EPOCHS} epochs at the constant rate {RATE:g}; fastai's Adam with its defaults; no augmentation; "
    "16 bits on a GPU; the epoch with the highest validation AUROC of severe among PCR-positive patients"
)
OTHER = (
    "random first weights (theirs may start from Kinetics, which this project does not have); validation patients are "
    "those of our split, not a fifth at random, and our test patients are in neither, so fewer patients train; "
    "patients whom our ingest refuses are missing; prepared scans are kept as float16; probabilities are calibrated on "
    "validation patients, as ours are; PyTorch's AdamW takes the place of fastai's"
)


@dataclass(frozen=True)
class Recipe:
    """The settings of the port. The defaults are the published ones; smaller ones are for tests.

    `side`: voxels of each axis; `width`: share of the network's usual channels.
    """

    spacing_mm: float = SPACING_MM
    side: int = SIDE
    epochs: int = EPOCHS
    width: float = 1.0

    @property
    def is_published(self) -> bool:
        return self == Recipe()

    @property
    def preparation(self) -> str:
        """The name of the folder of prepared scans."""
        return f"{self.side}-{self.spacing_mm:g}mm"

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:8]


def prepare(scan: Path, recipe: Recipe) -> NDArray[np.float16]:
    """Return a scan as the baseline's network reads it, shape (side, side, side), 0 to 1."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(scan))
    spacing = [recipe.spacing_mm] * 3
    size = [round(n * mm / recipe.spacing_mm) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    resampled = SimpleITK.Resample(
        image,
        size,
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        image.GetOrigin(),
        spacing,
        image.GetDirection(),
        0.0,
        SimpleITK.sitkFloat32,
    )
    low, high = WINDOW_HU
    hu = _cut(SimpleITK.GetArrayFromImage(resampled), recipe.side)
    return ((hu.clip(low, high) - low) / (high - low)).astype(np.float16)


def _cut(hu: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Return the last `side` slices and the middle of rows and columns; 0 HU where the scan ends."""
    cut = np.zeros((side, side, side), np.float32)
    slices, *plane = hu.shape
    starts = [slices - side, *(length // 2 - side // 2 for length in plane)]
    source = tuple(
        slice(max(0, start), min(length, start + side)) for start, length in zip(starts, hu.shape, strict=True)
    )
    target = tuple(slice(s.start - start, s.stop - start) for s, start in zip(source, starts, strict=True))
    cut[target] = hu[source]
    return cut


@dataclass(frozen=True)
class Scans:
    """Prepared scans and both labels; `targets`: shape (patients, labels). A PCR-negative patient is not severe."""

    files: list[Path]
    targets: NDArray[np.float32]

    def batch(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return scans (batch, 1, side, side, side) and targets (batch, labels)."""
        scans = np.stack([np.load(self.files[place]) for place in index]).astype(np.float32)
        return torch.from_numpy(scans[:, None]), torch.from_numpy(self.targets[index])

    def logits(self, network: nn.Module, compute: Compute) -> NDArray[np.float32]:
        network.eval()
        with torch.inference_mode(), _precision(compute):
            found = [network(compute.move(self.batch(np.array([k]))[0])).float().cpu() for k in range(len(self.files))]
        return torch.cat(found).numpy()


def scans_of(study: Study, sites: Sequence[Site], split: Split, folder: Path, recipe: Recipe) -> Scans:
    """Return the prepared scans of a split of all sites; prepare those that are not in `folder` yet."""
    files, targets = [], []
    for site in sites:
        sources = {site.pseudonym(path.name.removesuffix(".mha")): path for path in (site.folder / "ct").iterdir()}
        for example in load_examples(site, study, split).examples:
            files.append(_prepared(sources[example.pseudonym], folder / f"{site.name}-{example.pseudonym}.npy", recipe))
            targets.append(_labels(example))
    return Scans(files, np.array(targets, np.float32).reshape(-1, len(LABELS)))


def _labels(example: Example) -> tuple[float, float]:
    return float(bool(example.pcr_positive)), float(bool(example.pcr_positive and example.severe))


def _prepared(scan: Path, file: Path, recipe: Recipe) -> Path:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npy")
        np.save(part, prepare(scan, recipe))
        part.rename(file)
    return file


def train_baseline_port(
    study: Study, sites: Sequence[Site], folder: Path, recipe: Recipe, *, seed: int, say: Say
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Train, and return the logits of the test patients (patients, labels) and slopes and intercepts (labels, 2).

    `folder`: for prepared scans. An interrupted training begins again; prepared scans are kept.
    """
    compute = Compute.open(sites[0].settings.compute)
    train, validation, test = (
        scans_of(study, sites, split, folder, recipe) for split in ("train", "validation", "test")
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = InflatedInception(len(LABELS), width=recipe.width)
    with compute.use(network):
        best = _fitted(network, train, validation, recipe, compute, np.random.default_rng(seed), say)
        network.load_state_dict(best)
        logits = validation.logits(network, compute)
        known = _severe_if_positive(validation.targets)
        fits = [fit_platt(logits[:, k], known[:, k]) for k in range(len(LABELS))]
        return test.logits(network, compute), np.array([(fit.slope, fit.intercept) for fit in fits])


def _severe_if_positive(targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the targets with severity unknown for PCR-negative patients, as it is judged."""
    known = targets.copy()
    known[targets[:, 0] == 0, 1] = np.nan
    return known


def _fitted(
    network: nn.Module,
    train: Scans,
    validation: Scans,
    recipe: Recipe,
    compute: Compute,
    rng: np.random.Generator,
    say: Say,
) -> dict[str, Tensor]:
    """Train for all epochs; return the weights of the best one, or the last one's if none can be judged."""
    optimiser = _adam(network)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.device.type == "cuda")
    best, weights = -1.0, copy.deepcopy(network.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        for index in _batches(len(train.files), rng):
            scans, targets = train.batch(index)
            optimiser.zero_grad(set_to_none=True)
            with _precision(compute):
                logits = network(compute.move(scans))
            loss = F.binary_cross_entropy_with_logits(logits.float(), compute.move(targets))
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
        found = auroc(validation.logits(network, compute)[:, 1], _severe_if_positive(validation.targets)[:, 1]).value
        say(f"port: epoch {epoch} of {recipe.epochs}, validation AUROC of severe {found:.3f}")
        if found > best or np.isnan(found):
            best, weights = max(best, np.nan_to_num(found, nan=best)), copy.deepcopy(network.state_dict())
    return weights


def _batches(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield shuffled batches; a last one that is not full is dropped."""
    order = rng.permutation(count)
    for start in range(0, count - BATCH + 1, BATCH):
        yield order[start : start + BATCH]


def _adam(network: nn.Module) -> torch.optim.AdamW:
    decaying = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)


def _precision(compute: Compute) -> torch.autocast:
    """16 bits on a GPU; the precision of the scan on a CPU."""
    on_gpu = compute.device.type == "cuda"
    return torch.autocast(compute.device.type, torch.float16 if on_gpu else torch.bfloat16, enabled=on_gpu)
