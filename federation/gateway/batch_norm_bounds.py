"""Bounds on how one round of training can change batch-norm counters, means and variances.

A counter rises by one per step. PyTorch computes running = 0.9 running + 0.1 batch, and a batch's variance is never
negative. A running variance therefore keeps at least 0.9^steps of its previous value. How much it can rise depends on
the activations, and no formula bounds those. `MAX_GROWTH` is measured in honest rounds on synthetic patients
(docs/one-reply.md).
"""

import numpy as np
from numpy.typing import NDArray

MOMENTUM = 0.1  # PyTorch's default, used by all our networks
MAX_GROWTH = 2.0**14  # of mean² + variance in a round; honest rounds: 42 by default, 5,230 at a learning rate of 0.5
LEAST = 0.01  # lower limit of the old mean² + variance: an input that was always zero may become active
_ROUNDING = 1e-3  # of float32, over thousands of steps


def steps_of_round(patients: int, *, batch_size: int, epochs: int, steps: int) -> int:
    """Return the number of optimiser steps in a site's round, as `pipeline.training.train.epoch_batches` forms batches.

    `steps`: the configured number of steps if the study counts rounds in steps; else 0.
    """
    if steps:
        return steps
    batches = -(-patients // batch_size)
    joined = batches > 1 and patients % batch_size == 1  # a last batch of one patient is joined to the batch before it
    return epochs * (batches - joined)


def could_follow(
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
    old_mean: NDArray[np.float32],
    old_variance: NDArray[np.float32],
    *,
    steps: int,
) -> bool:
    """Tell whether `steps` steps can turn the old values into the new ones, element by element; all must be finite."""
    new, old = variance.astype(np.float64), old_variance.astype(np.float64)
    kept = (1 - MOMENTUM) ** steps * (1 - _ROUNDING)
    power, old_power = mean.astype(np.float64) ** 2 + new, old_mean.astype(np.float64) ** 2 + old
    return bool((new >= kept * old).all() and (power <= MAX_GROWTH * np.maximum(old_power, LEAST)).all())
