"""Each size with its own network and spacing, on a tiny grid: a step is trained, and a scan is scored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs import SIZES
from federation.approval.presets import presets
from federation.protocol.study_config import Study
from models.network import SeverityNetwork, build_network
from models.release import load_release, save_release
from pipeline.cohort.dataset import Example, Examples
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring.score import score
from pipeline.training.train import train
from pipeline.training.train_settings import Schedule
from tests.helpers.chests import write_chest
from tests.helpers.descriptions import description

TINY = (16, 24, 24)
PATIENTS = 4


def tiny(size: str) -> Preprocessing:
    """The preprocessing of a size with few voxels: lungs are found on the size's own grid."""
    return presets()[size].preprocessing.model_copy(update={"shape": TINY})


def trained(study: Study, folder: Path) -> SeverityNetwork:
    """Train the study's network for one step on tensors of noise."""
    rng = np.random.default_rng(1)
    for number in range(PATIENTS):
        np.save(folder / f"{number}.npy", rng.uniform(-1, 1, (2, *TINY)).astype(np.float16))
    examples = Examples([Example(folder / f"{n}.npy", 60.0, "F", True, n % 2 == 0) for n in range(PATIENTS)])
    network = build_network(study.network, seed=study.study.seed)
    loss = train(network, examples, study.training, Schedule(0, 1, 1, steps=1), seed=1)
    assert np.isfinite(loss)
    return network


@pytest.mark.parametrize("size", [SIZES[0], *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])])
def test_shrunken_study_of_a_size_trains_a_step_and_scores(tmp_path: Path, size: str) -> None:
    study, settings = presets()[size], tiny(size)
    network = trained(study, tmp_path)
    before = build_network(study.network, seed=study.study.seed)
    assert not torch.equal(network.head.weight, before.head.weight)
    save_release(
        tmp_path / "release",
        network.eval(),
        description(network=study.network, preprocessing=settings.model_dump(mode="json")),
    )
    write_chest(tmp_path / "scan.nii.gz")
    scored = score(tmp_path / "scan.nii.gz", load_release(tmp_path / "release"))
    assert all(0 < probability < 1 for probability in scored.probabilities.values())
    assert scored.prepared.spacing_mm == settings.working_spacing_mm


@pytest.mark.parametrize("size", SIZES)
def test_a_patient_of_a_size_takes_the_disk_that_the_page_says(size: str) -> None:
    shape = presets()[size].preprocessing.shape
    tensor_bytes = 2 * 2 * int(np.prod(shape))  # two channels of float16
    page = (Path(__file__).parents[3] / "docs" / "study-sizes.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| a patient in the cohort")]
    column = 2 + SIZES.index(size)
    assert row.split("|")[column].strip() == f"{tensor_bytes / 1e6:.2g} MB"
