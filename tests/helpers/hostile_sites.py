"""Hostile sites that know the model, the replies of the other sites, and the maximum norm of an update.

Each attack stays within the bound of the round (`longest`), so that clipping or refusal does not stop it. They are
used by `test_attackers.py` and by `benchmarks/robustness.py`, which states the source of each attack.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import Message, RecordDict

from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS
from federation.protocol.reply_validation import encode, length, longest, update_norm
from tests.helpers.toy_task import Hospital, Hostile, Model, marked, model_in, patients, train

MEAN, VARIANCE = BATCH_NORM + "running_mean", BATCH_NORM + "running_var"
NEARLY = 0.999  # fraction of the bound; leaves a margin for single-precision rounding
ALIE_DEVIATIONS = 1.5  # as in the experiments of the paper; its formula gives 0 for one hostile site

# The maximum update norm, computed from the norms of the round's updates and of the model.
Bound = Callable[[Sequence[float], float], float]


def twice_the_median(norms: Sequence[float], model: float) -> float:
    """The bound of `GuardedStrategy`."""
    return longest(norms, 2.0, model_norm=model)


@dataclass(frozen=True)
class View:
    """What a hostile site knows in a round. Updates are rows. `honest` is the model it would send if honest."""

    before: Model
    honest: Model
    others: list[Model]
    at: Hospital
    bound: Bound

    def update(self, model: Model) -> np.ndarray:
        return np.asarray(model.arrays[WEIGHTS] - self.before.arrays[WEIGHTS], np.float64)

    @property
    def updates(self) -> np.ndarray:
        """The updates of the other sites."""
        return np.stack([self.update(model) for model in self.others])

    def sending(self, update: np.ndarray) -> Model:
        """Return the honest reply with this update instead, clipped to the bound."""
        norms = [update_norm(model.arrays, self.before.arrays) for model in self.others]
        update = cut(update, NEARLY * self.bound([*norms, 1e300], length(self.before.arrays)))
        weights = self.before.arrays[WEIGHTS]
        return replace(self.honest, arrays={WEIGHTS: np.asarray(weights + update, weights.dtype)})

    def sending_moments(self, direction: Mapping[str, np.ndarray]) -> Model:
        """Return the honest reply with batch-norm moments moved in this direction up to the bound."""
        norms = [update_norm(model.buffers, self.before.buffers) for model in self.others]
        bound = NEARLY * self.bound([*norms, 1e300], length(self.before.buffers))
        whole = np.concatenate(list(direction.values()))
        factor = bound / np.linalg.norm(whole)
        moved = {k: np.asarray(self.before.buffers[k] + factor * d, np.float32) for k, d in direction.items()}
        moved[VARIANCE] = np.maximum(moved.get(VARIANCE, self.honest.buffers[VARIANCE]), 0)
        return replace(self.honest, buffers={**self.honest.buffers, **moved})


Attack = Callable[[View], Model]


def cut(update: np.ndarray, bound: float) -> np.ndarray:
    """Clip an update to the bound."""
    return update * min(1.0, bound / max(float(np.linalg.norm(update)), 1e-300))


def reversed_update(view: View) -> Model:
    return view.sending(-1e6 * view.update(view.honest))


def inner_product(times: float) -> Attack:
    return lambda view: view.sending(-times * view.updates.mean(axis=0))


def moments_up(view: View) -> Model:
    return view.sending_moments({MEAN: np.ones_like(view.before.buffers[MEAN])})


def moments_apart(view: View) -> Model:
    """Move half of the means up and half of them down."""
    return view.sending_moments({MEAN: 1.0 - 2.0 * (np.arange(view.before.buffers[MEAN].size) % 2)})


def moments_reversed(view: View) -> Model:
    return view.sending_moments({k: view.before.buffers[k] - view.honest.buffers[k] for k in (MEAN, VARIANCE)})


def reversed_with_moments(view: View) -> Model:
    return replace(reversed_update(view), buffers=moments_apart(view).buffers)


def alie(view: View) -> Model:
    return view.sending(view.updates.mean(axis=0) - ALIE_DEVIATIONS * view.updates.std(axis=0))


def min_max(along: str) -> Attack:
    """Move from the mean of the others until the distance to one equals the largest distance between any two."""

    def attack(view: View) -> Model:
        others, mean = view.updates, view.updates.mean(axis=0)
        way = {"deviation": -others.std(axis=0), "mean": -mean / np.linalg.norm(mean), "sign": -np.sign(mean)}[along]
        apart = max(float(np.linalg.norm(one - other)) for one in others for other in others)
        low, high = 0.0, 1e4
        for _ in range(60):
            middle = (low + high) / 2
            is_near = np.linalg.norm(mean + middle * way - others, axis=1).max() <= apart
            low, high = (middle, high) if is_near else (low, middle)
        return view.sending(mean + low * way)

    return attack


def label_flip(view: View) -> Model:
    x, severe = patients(view.at)
    return train(view.before, view.at, (x, 1 - severe))[0]


def label_flip_scaled(view: View) -> Model:
    """Send the update of flipped labels, scaled up to the bound."""
    return view.sending(1e6 * view.update(label_flip(view)))


def backdoor(view: View) -> Model:
    """Mark half of the patients and label them severe. Scale the update by the number of sites, up to the bound."""
    x, severe = patients(view.at)
    half = len(x) // 2
    x, severe = x.clone(), severe.clone()
    x[:half], severe[:half] = marked(x[:half]), 1.0
    poisoned = train(view.before, view.at, (x, severe))[0]
    return view.sending((len(view.others) + 1) * view.update(poisoned))


ATTACKS: dict[str, Attack] = {
    "reversed update": reversed_update,
    "inner product, 4 times": inner_product(4.0),
    "inner product, half": inner_product(0.5),
    "moments up": moments_up,
    "moments apart": moments_apart,
    "moments reversed": moments_reversed,
    "reversed update and moments": reversed_with_moments,
    "ALIE": alie,
    "min-max along the deviation": min_max("deviation"),
    "min-max along the mean": min_max("mean"),
    "label flip": label_flip,
    "label flip, at the bound": label_flip_scaled,
    "backdoor": backdoor,
}


def hostile(attack: Attack, at: Hospital, bound: Bound = twice_the_median) -> Hostile:
    """Return a site with the patients of this hospital that attacks in every round."""

    def answer(message: Message, honest: RecordDict, others: list[RecordDict]) -> RecordDict:
        view = View(model_in(message.content), model_in(honest), [model_in(each) for each in others], at, bound)
        sent = attack(view)
        honest["arrays"], honest["buffers"] = encode(sent.arrays), encode(sent.buffers)
        return honest

    return answer
