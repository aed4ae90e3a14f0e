"""Attention that opens for one slice of one patient (`attention`), through the real gateway.

The server takes some rounds from the first weights to those that it learnt on patients of its own, and then asks for
READINGS rounds from them. The ratio in which each hidden unit's content weights and its bias moved is the mean of the
features of the slices for which it is open. The claim is the patient who has the slice that is most similar to it.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from federation.protocol.study_config import AggregationTable, Study
from models.network import SeverityNetwork, build_network
from tests.attacks.attention import PATIENTS, Trap, attention_of, compared, own_features, seen, trap
from tests.attacks.imprint import reached
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, released_study, rig
from tests.attacks.score import HOSPITALS, from_matrix

HOLDS = "hidden units of attention{}; a study without sums that the hospital was persuaded to approve"
WHAT = "a slice's features, and so the patient"
SEEDS = range(321, 321 + HOSPITALS)
ROUNDS, READINGS = 7, 4  # until the weights are reached; with them


def study_of_attention() -> Study:
    """Return the release's default study with gated attention over slices, without sums."""
    study = released_study(is_small=False).model_dump()
    study["network"] |= {"architecture": "efficientnet_b0_slices", "pooling": "gated"}
    return Study.model_validate({**study, "aggregation": AggregationTable().model_dump()})


@torch.no_grad()
def on_the_way(first: SeverityNetwork, target: SeverityNetwork, share: float, study: Study) -> SeverityNetwork:
    """Return the weights at a share of the way from the first ones to the target."""
    network = build_network(study.network, seed=study.study.seed)
    pairs = zip(first.parameters(), target.parameters(), strict=True)
    for weight, (start, end) in zip(network.parameters(), pairs, strict=True):
        weight.copy_(start + share * (end - start))
    return network


def replied(attacked: Rig, study: Study, made: Trap) -> Tensor:
    """Return the features that the replies tell of each unit, (units, features). Raises Refused."""
    first = build_network(study.network, seed=study.study.seed)
    for number in range(1, ROUNDS):
        model = on_the_way(first, made.network, (number - 1) / (ROUNDS - 1), study)
        attacked.must("train", study, model, round_number=number)
    sent, moved, by = attention_of(made.network).content, torch.zeros(1), torch.zeros(1)
    for number in range(ROUNDS, ROUNDS + READINGS):
        answer = attacked.must("train", study, made.network, round_number=number).network(study)
        content = attention_of(answer).content
        moved, by = moved + content.weight - sent.weight, by + content.bias - sent.bias
    return (moved / by[:, None])[made.units].detach()


def attacks() -> Iterator[Result]:
    """Ask five hospitals, with hidden units of any kind and with those that the bounds allow."""
    study = study_of_attention()
    first = build_network(study.network, seed=study.study.seed).train()
    own = own_features(first)
    free = trap(first, own, is_held=False)
    yield attack("attention that opens for one slice", HOLDS.format(""), study, free)
    held = trap(first, own, is_held=True)
    held = Trap(reached(study, held.network), held.units)
    yield attack("attention that opens for few slices", HOLDS.format(" near the seed's"), study, held)


def attack(name: str, holds: str, study: Study, made: Trap) -> Result:
    """Compare the claims about each hospital with the patients of each."""
    told, there = [], []
    for seed in SEEDS:
        with rig(seed=seed, patients={"train": PATIENTS, "validation": 24, "test": 40}) as attacked:
            attacked.talk_into(study)
            try:
                told.append(replied(attacked, study, made))
            except Refused as refused:
                return Result(name, holds, WHAT, 0, 0, len(made.units), refused.code)
            there.append(seen(made.network.train(), attacked.hospital.of("train"), seed=seed))
    right = np.array([[compared(made, features, each).is_patient.sum() for features in there] for each in told])
    total = len(made.units) * len(told)
    scored = from_matrix(right, claimed=total, of=total)
    return Result.scored(name, holds, WHAT, scored, note=f"{ROUNDS + READINGS - 1} rounds at each hospital")
