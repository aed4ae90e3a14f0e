"""What a round of training can make of batch-norm buffers: of their counters, means and variances.

A counter rises by one with each step. PyTorch keeps running = 0.9 running + 0.1 batch, and a batch's variance is not
negative: so a running variance keeps at least 0.9^steps of what it was. How far it rises depends on the activations,
which no formula bounds. `MAX_GROWTH` is taken from honest rounds on synthetic patients (docs/one-reply.md).
"""

import numpy as np
from numpy.typing import NDArray

MOMENTUM = 0.1  # PyTorch's default, which all our networks have
MAX_GROWTH = 2.0**14  # of mean² + variance in a round; honest rounds: 42 by default, 5,230 at a learning rate of 0.5
LEAST = 0.01  # what mean² + variance counts at least: an input that was silent may begin to speak
_ROUNDING = 1e-3  # float32's, over thousands of steps


def steps_of_round(patients: int, *, batch_size: int, epochs: int, steps: int) -> int:
    """How many optimiser steps a round takes at a site, as `pipeline.training.train.epoch_batches` makes batches.

    `steps`: of a round that is counted in steps; else 0.
    """
    if steps:
        return steps
    batches = -(-patients // batch_size)
    joined = batches > 1 and patients % batch_size == 1  # a last batch of one joins the one before
    return epochs * (batches - joined)


def could_follow(
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
    old_mean: NDArray[np.float32],
    old_variance: NDArray[np.float32],
    *,
    steps: int,
) -> bool:
    """Whether so many steps can have made this mean and variance of the old ones, number by number; all are finite."""
    new, old = variance.astype(np.float64), old_variance.astype(np.float64)
    kept = (1 - MOMENTUM) ** steps * (1 - _ROUNDING)
    power, old_power = mean.astype(np.float64) ** 2 + new, old_mean.astype(np.float64) ** 2 + old
    return bool((new >= kept * old).all() and (power <= MAX_GROWTH * np.maximum(old_power, LEAST)).all())
