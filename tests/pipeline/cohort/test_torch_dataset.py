"""A site's cohort as a torch dataset."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from models.refusal import Refusal
from pipeline.cohort.store import Cohort
from pipeline.cohort.torch_dataset import CohortDataset
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site

SPLITS = ("train", "validation", "test")
SMALL = Preprocessing(method=1, shape=(16, 16, 16))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = synthetic_site(tmp_path_factory.mktemp("sites") / "north", "north", seed=1)
    write_cohort(made, HOSPITALS[0], patients=12, seed=1, settings=SMALL, anatomy="template")
    return made


@pytest.mark.slow
def test_item_is_scan_tabular_data_and_targets_of_one_patient(site: Site) -> None:
    patients = CohortDataset(site, *SPLITS)
    with Cohort.read(site) as cohort:
        examples = cohort.examples(*SPLITS)
    assert len(patients) == len(examples) > 6
    for (scan, tabular, target), example in zip(patients, examples, strict=True):
        assert {scan.dtype, tabular.dtype, target.dtype} == {torch.float32}
        assert torch.equal(scan, torch.from_numpy(np.load(example.tensor)).float())
        assert scan.shape == (2, *SMALL.shape) and tabular.shape == (4,)
        assert target[0] == example.pcr_positive
    assert torch.equal(patients[-1][0], patients[len(patients) - 1][0])
    with pytest.raises(IndexError):
        patients[len(patients)]


def test_data_loader_builds_batches(site: Site) -> None:
    patients = CohortDataset(site, *SPLITS)
    batches = list(DataLoader(patients, batch_size=4))
    assert batches[0][0].shape == (4, 2, *SMALL.shape)
    assert sum(len(scans) for scans, _, _ in batches) == len(patients)


def test_splits_partition_the_cohort(site: Site) -> None:
    assert sum(len(CohortDataset(site, split)) for split in SPLITS) == len(CohortDataset(site, *SPLITS))


def test_site_without_a_cohort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="E_COHORT_FILE"):
        CohortDataset(synthetic_site(tmp_path / "empty", "empty", seed=1), "train")
