"""Baselines for a model: age and sex alone, and a simple measure of the diseased share of the lungs."""

import numpy as np
from numpy.typing import NDArray

from pipeline.cohort.dataset import Examples
from pipeline.cohort.tensor_files import load_tensor
from pipeline.evaluation.discrimination import classes_of

# Poorly aerated and non-aerated lung, which predicts oxygen support and intubation: Lanza et al., Eur Radiol 2020;
# 30:6770,
# https://doi.org/10.1007/s00330-020-07013-2.
COMPROMISED_HU = (-500.0, 100.0)


def age_sex_scores(train: Examples, test: Examples, column: int, *, min_patients: int) -> NDArray[np.float64] | None:
    """Return log odds of the test patients from a logistic regression on age and sex, fitted to `train`.

    `column`: of the targets. Missing values have their own indicators (`models.network.tabular`). None if a class
    has fewer than `min_patients` train patients.
    """
    from sklearn.linear_model import LogisticRegression

    targets = train.targets[:, column]
    known = ~np.isnan(targets)
    if min(classes_of(targets)) < min_patients:
        return None
    return LogisticRegression().fit(train.tabular[known], targets[known]).decision_function(test.tabular)


def lesion_load(tensor: NDArray[np.floating], window_hu: tuple[float, float]) -> float:
    """Return the share of the lung mask's voxels within COMPROMISED_HU, 0 to 1, including vessels.

    `tensor`: as in `preprocess.Prepared`, (2, slices, rows, columns), made with this window. Its HU values are those
    after the alignment of the aerated lung.
    """
    low, high = window_hu
    hu = (tensor[0].astype(np.float32) + 1) / 2 * (high - low) + low
    lung = tensor[1] > 0.5
    compromised = lung & (hu >= COMPROMISED_HU[0]) & (hu <= COMPROMISED_HU[1])
    return float(compromised.sum() / max(lung.sum(), 1))


def lesion_loads(examples: Examples, window_hu: tuple[float, float]) -> NDArray[np.float64]:
    """Return the lesion load of each example, shape (patients,); one tensor is in memory at a time."""
    return np.array([lesion_load(load_tensor(example.tensor), window_hu) for example in examples.examples])
