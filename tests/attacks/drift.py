"""A slow drift into a trap: from the seed's own weights, each tensor by at most a share of its length in each round.

`python -m tests.attacks.drift` prints how many patients are revealed, by the allowed share and the round.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from tests.attacks.result import Result, compare
from tests.attacks.rig import Refused, Rig, any_study, rig, seed_network
from tests.attacks.trap import influence, keys, moved_biases, row_of

ADVERSARY = "the weights of each round, which drift by a bounded share"
SHARES = (0.05, 0.1, 0.25, 0.5)
_SLOPE = 3e-4  # of a unit, per year
_HEAD = 0.15  # weight of each unit
_UNITS = 8


def drift_study() -> Study:
    """Return default settings with a small learning rate."""
    return any_study(training={"learning_rate": 3e-5}, study={"rounds": 1000})


def towards(network: SeverityNetwork, seed: SeverityNetwork, target: Mapping[str, Tensor], share: float) -> None:
    """Move the weights of `network` in place, each tensor by at most `share` of its length, now or at the seed."""
    first = seed.state_dict()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            way = target[name] - weight
            allowed = share * max(float(weight.norm()), float(first[name].norm()))
            weight.add_(way * min(1.0, allowed / max(float(way.norm()), 1e-30)))


def stairs_target(study: Study, thresholds: Sequence[float]) -> dict[str, Tensor]:
    """Return the seed's weights with one threshold of age and sex in each tabular unit, and equal head weights."""
    target = {name: weight.clone() for name, weight in seed_network(study).state_dict().items()}
    for unit, threshold in enumerate(thresholds):
        target["tabular.0.weight"][unit] = torch.tensor([20.0, 0.0, 60.0, 0.0]) * _SLOPE
        target["tabular.0.bias"][unit] = _SLOPE * (120.0 - threshold)
    target["head.weight"][:, -len(thresholds) :] = _HEAD
    return target


def read(attacked: Rig, share: float, rounds: int) -> list[tuple[int, str, bool]]:
    """Return what is revealed over all ages after the model has drifted this many rounds towards each trap. Raises
    Refused.
    """
    study, found = drift_study(), []
    seed = seed_network(study)
    for start in range(0, len(keys()), _UNITS - 1):
        some = keys()[start : start + _UNITS - 1]
        network = seed_network(study)
        target = stairs_target(study, [key - 0.5 for key in (*some, some[-1] + 1)])
        for _ in range(rounds):
            towards(network, seed, target, share)
        answer = attacked.must("train", study, network, round_number=rounds + 1)
        found += signs(study, network, answer.network(study), some, rounds + 1, int(answer.metrics["num-examples"]))
    return found


def signs(
    study: Study,
    before: SeverityNetwork,
    after: SeverityNetwork,
    some: Sequence[int],
    round_number: int,
    patients: int,
) -> Iterator[tuple[int, str, bool]]:
    """Return a patient for each age at which the sum is not zero; its sign reveals the label at any probability."""
    weights = influence(study, patients, round_number)
    shrunk = 2 * study.training.weight_decay * weights.sum()
    bias = before.tabular[0].bias.detach().double().numpy()
    head = before.head.weight[0, before.features :].detach().double().numpy()
    sums: NDArray[np.float64] = -(moved_biases(before, after) + shrunk * bias) / head
    for key, value in zip(some, sums[: len(some)] - sums[1 : len(some) + 1], strict=True):
        if abs(value) > 0.2 * weights.mean():
            yield (*row_of(key), bool(value < 0))


def slow_drift(attacked: Rig, share: float, rounds: int) -> Result:
    name, what = f"a drift of {share:g} of each tensor's length a round, {rounds} rounds", "age, sex, PCR"
    truth = attacked.hospital.of("train")
    try:
        found = read(attacked, share, rounds)
    except Refused as refused:
        return Result(name, ADVERSARY, what, 0, 0, len(truth), refused.code)
    right, wrong = compare(found, [patient.row for patient in truth])
    return Result(name, ADVERSARY, what, right, wrong, len(truth))


def attacks() -> Iterator[Result]:
    """Run at a separate hospital."""
    with rig() as attacked:
        yield slow_drift(attacked, 0.1, 12)


def main() -> int:
    with rig() as attacked:
        for share in SHARES:
            for rounds in sorted({1, *(max(1, round(part / share)) for part in (0.25, 0.5, 0.75, 1.0, 1.25))}):
                result = slow_drift(attacked, share, rounds)
                sys.stdout.write(f"{share:g} {rounds} {result.learnt} {result.wrong} {result.stopped_by}\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
