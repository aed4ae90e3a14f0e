"""The examples of one split: tensors read from the site's cache, tabular data and targets beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network_settings import LABELS, TABULAR, tabular
from pipeline.cohort.tensor_files import load_tensor
from pipeline.preprocessing.measures import Measures

Batch = tuple[Tensor, Tensor, Tensor]  # scans, tabular, targets, as `Examples.batch` says


@dataclass(frozen=True)
class Example:
    """One patient as the network sees them; `severe` and `pcr_positive` are None where missing.

    `measures`: what is known of the scan itself, for figures by scanner; no network sees them. `pseudonym`: the
    patient's, which only this site can make; "" outside a cohort. `features`: those of a frozen encoder, which a
    network with this encoder receives instead of the scan.
    """

    tensor: Path
    age_years: float | None
    sex: str | None
    pcr_positive: bool | None
    severe: bool | None
    measures: Measures | None = None
    pseudonym: str = ""
    features: Path | None = None


def target(example: Example) -> list[float]:
    """The two targets in the order of LABELS; NaN where missing.

    Severity is learnt and judged among PCR-positive patients, and those of data sets that know no PCR result.
    """
    severe = None if example.pcr_positive is False else example.severe
    return [float("nan") if value is None else float(value) for value in (example.pcr_positive, severe)]


class Examples:
    """All examples of a split; a tensor is read when a batch needs it, so that any number of patients fits.

    `targets`: (patients, labels), NaN where missing; `tabular`: (patients, 4), as `models.network.tabular`. What reads
    tensors raises Refusal E_COHORT_FILE if one is missing or damaged.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)
        self.targets = np.array([target(e) for e in self.examples], dtype=np.float32).reshape(-1, len(LABELS))
        tabulars = [tabular(e.age_years, e.sex) for e in self.examples]
        self.tabular = np.array(tabulars, dtype=np.float32).reshape(-1, TABULAR)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, index: NDArray[np.int64], augment: Callable[[Tensor], Tensor] | None) -> Batch:
        """Scans (batch, 2, slices, rows, columns) float32, tabular (batch, 4), targets (batch, 2).

        Where the examples have features of an encoder, these (batch, features) take the place of the scans, and
        `augment` has no effect.
        """
        features = self._features(index)
        scans = self.scans(index, augment) if features is None else features
        return scans, torch.from_numpy(self.tabular[index]), torch.from_numpy(self.targets[index])

    def scans(self, index: NDArray[np.int64], augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Read scans (batch, 2, slices, rows, columns), float32."""
        scans = [torch.from_numpy(load_tensor(self.examples[i].tensor)) for i in index]
        if augment is not None:
            scans = [augment(scan.float()) for scan in scans]
        # Stacked in half precision, then widened at once; by torch, which is ten times as fast at it as numpy.
        return torch.stack(scans).float()

    @property
    def has_features(self) -> bool:
        """Whether the network receives features of an encoder."""
        return any(example.features is not None for example in self.examples)

    def _features(self, index: NDArray[np.int64]) -> Tensor | None:
        files = [self.examples[i].features for i in index]
        return torch.stack([torch.from_numpy(load_tensor(file)) for file in files if file]) if all(files) else None
