"""Training examples: the two targets, the content of a batch, and any number of patients."""

import math
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.refusal import Refusal
from pipeline.cohort.dataset import Example, Examples, target
from pipeline.training.train import augmentation


def example(folder: Path, number: int, **known: object) -> Example:
    path = folder / f"{number}.npy"
    np.save(path, np.full((2, 4, 5, 6), number, np.float16))
    facts: dict[str, object] = {"age_years": 60.0, "sex": "F", "pcr_positive": True, "severe": False}
    return Example(path, **(facts | known))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pcr_positive", "severe", "expected"),
    [
        (True, True, [1.0, 1.0]),
        (True, False, [1.0, 0.0]),
        (True, None, [1.0, math.nan]),
        (False, True, [0.0, math.nan]),
        (False, False, [0.0, math.nan]),
        (None, True, [math.nan, 1.0]),
    ],
)
def test_severity_target_is_missing_for_pcr_negative_patients(
    pcr_positive: bool | None, severe: bool | None, expected: list[float]
) -> None:
    found = target(Example(Path(), None, None, pcr_positive, severe))
    assert np.array_equal(found, expected, equal_nan=True)


def test_batch_contains_the_requested_patients_in_order(tmp_path: Path) -> None:
    examples = Examples([example(tmp_path, n, age_years=60.0 + 20 * n, severe=n == 2) for n in range(4)])
    scans, tabular, targets = examples.batch(np.array([2, 0]), None)
    assert scans.shape == (2, 2, 4, 5, 6)
    assert scans.dtype == tabular.dtype == targets.dtype == torch.float32
    assert scans[:, 0, 0, 0, 0].tolist() == [2, 0]
    assert tabular.tolist() == [[2, 1, -1, 1], [0, 1, -1, 1]]
    assert targets.tolist() == [[1, 1], [1, 0]]


def test_augmented_scan_is_a_plain_tensor_and_the_stored_scan_is_unchanged(tmp_path: Path) -> None:
    examples = Examples([example(tmp_path, 1)])
    scans, _, _ = examples.batch(np.array([0, 0]), augmentation(3))
    assert type(scans) is Tensor
    assert not torch.equal(scans[0], scans[1])
    assert torch.equal(examples.batch(np.array([0]), None)[0], torch.ones(1, 2, 4, 5, 6))


def test_empty_examples_are_allowed() -> None:
    examples = Examples([])
    assert len(examples) == 0
    assert examples.targets.shape == (0, 2)


@pytest.fixture
def few_files() -> Iterator[int]:
    """Limit the number of open files: a scaled-down limit of most systems, for more than this process has open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(list(Path("/dev/fd").iterdir())) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_patients_than_allowed_open_files_can_be_read(tmp_path: Path, few_files: int) -> None:
    one = example(tmp_path, 1)
    examples = Examples([one] * (few_files + 50))
    scans, _, _ = examples.batch(np.arange(len(examples)), None)
    assert len(scans) == few_files + 50


def test_pickle_in_place_of_a_tensor_is_not_loaded(tmp_path: Path) -> None:
    one = example(tmp_path, 1)
    one.tensor.write_bytes(pickle.dumps({"scan": 1}))
    with pytest.raises(Refusal, match="E_COHORT_FILE"):
        Examples([one]).batch(np.array([0]), None)
