"""Updates of a head on a frozen encoder: who of the patients whose scans the server has took part in training?

The server knows the encoder, and so the features of each scan that it gets hold of. Each update is compared with the
change that the patient alone would make, whitened by the features of patients of its own (`whitened`). If it has the
scans of all of the hospital's patients, it finds the part of each by regression (`jointly`). The comparison is added up
over the rounds, and the half of the candidates that fit best are claimed to have taken part.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from federation.approval.encoders import EncoderApprovals
from federation.client.site_tasks import load_examples
from federation.node.site_encoding import encode_site
from federation.protocol.study_config import AggregationTable, Study
from models.encoders import Encoder
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from pipeline.cohort.dataset import Examples
from pipeline.site.folder import Site
from tests.attacks.cohort import PREPROCESSING, make_hospital
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, released_study, rig
from tests.attacks.score import HOSPITALS, from_matrix
from tests.helpers.encoders import Silent, head_on, small_encoder

NAME = "updates of a head on a frozen encoder, default settings"
ALL = "updates of a head on a frozen encoder, scans of all patients"
HOLDS = "the encoder, and scans and rows of {}; a study without sums that the hospital was persuaded to approve"
WHAT = "whether a patient took part"
LAYERS = NetworkSettings(architecture="resnet10", widen_factor=0.25)  # 128 features
MEMBERS, OTHERS, OWN = 64, {"validation": 32, "test": 32}, 192  # patients of a hospital; of the server
SEEDS, OWN_SEED = range(301, 301 + HOSPITALS), 9_100
ROUNDS = 20
RIDGE, JOINT_RIDGE = 0.1, 1e-5  # see `with_ridge`; the best of nine at five other hospitals
UNVARIED = {"require_augmentation = true": "require_augmentation = false"}  # features of an encoder cannot vary
Weights = NDArray[np.float64]  # of a head with its bias, shape (labels, inputs + 1)


class Round(NamedTuple):
    """What the server sees of one round: the weights that it sent, and by how much they changed."""

    sent: Weights
    change: Weights


class Patients(NamedTuple):
    """Inputs of the head with a 1 for its bias, shape (patients, inputs + 1), and labels, NaN if unknown."""

    inputs: Weights
    targets: Weights


def weights_of(network: SeverityNetwork) -> Weights:
    """Return weights and bias of the head."""
    head = network.head
    return torch.cat([head.weight, head.bias[:, None]], dim=1).detach().double().numpy()


@torch.no_grad()
def patients_of(network: SeverityNetwork, examples: Examples) -> Patients:
    """Return what the server computes from scans, ages and sexes that it has."""
    scans, tabular, targets = examples.batch(np.arange(len(examples)), None)
    inputs = network.eval().joined(scans, tabular).double().numpy()
    return Patients(np.column_stack([inputs, np.ones(len(inputs))]), targets.double().numpy())


def whitened(candidates: Patients, known: Patients, ridge: float) -> Weights:
    """Return what takes a change to how much it looks like each candidate, (candidates, inputs + 1).

    The change of the bias tells how much of the change is due to what is common to all patients; this part is left out.
    """
    own, others = candidates.inputs[:, :-1], known.inputs[:, :-1]
    middle = others.mean(axis=0)
    white = np.linalg.solve(with_ridge(np.cov((others - middle).T), ridge), (own - middle).T).T
    return np.column_stack([white, -white @ middle])


def jointly(candidates: Patients, ridge: float) -> Weights:
    """Return what takes a change to each candidate's part in it, by ridge regression on all of them together."""
    inputs = candidates.inputs
    return np.linalg.solve(with_ridge(inputs @ inputs.T, ridge), inputs)


def with_ridge(spread: Weights, ridge: float) -> Weights:
    return spread + ridge * np.trace(spread) / len(spread) * np.eye(len(spread))


def fits(rounds: Sequence[Round], candidates: Patients, way: Weights) -> tuple[Weights, Weights]:
    """Return how well the updates fit that each candidate took part, and that its PCR is positive, (candidates,) both.

    `way`: what a change is multiplied with, shape (candidates, inputs + 1), see `whitened` and `jointly`.
    """
    member, positive = np.zeros(len(way)), np.zeros(len(way))
    for sent, change in rounds:
        probabilities = 1 / (1 + np.exp(-candidates.inputs @ sent.T))
        part = way @ change.T
        member += np.nansum((candidates.targets - probabilities) * part, axis=1)
        positive += part[:, 0]
    return member, positive


def joined(parts: Sequence[Patients]) -> Patients:
    return Patients(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def study_on(encoder: Encoder) -> Study:
    """Return the release's default study with a head on the encoder, without sums."""
    study = released_study().model_dump()
    study["network"] = {name: study["network"][name] for name in ("tabular", "age_band_years")} | head_on(encoder)
    study |= {"training": {**study["training"], "augment": False}, "aggregation": AggregationTable().model_dump()}
    return Study.model_validate(study)


def approve(site: Site, folder: Path) -> None:
    """Approve the encoder at a hospital, and compute the features of its scans."""
    EncoderApprovals(site).approve(folder, by="the hospital")
    encode_site(site, Silent())


def rounds_at(attacked: Rig, study: Study) -> list[Round]:
    """Ask for ROUNDS rounds, each from the answer to the one before. Raises Refused."""
    model, seen = build_network(study.network, seed=study.study.seed), []
    for number in range(1, ROUNDS + 1):
        sent, model = model, attacked.must("train", study, model, round_number=number).network(study)
        seen.append(Round(weights_of(sent), weights_of(model) - weights_of(sent)))
    return seen


def own_patients(study: Study, encoder: Path, folder: Path) -> Patients:
    """Return patients that the server has, and no hospital."""
    site = make_hospital(folder, seed=OWN_SEED, patients={"train": OWN}, settings=UNVARIED).site
    approve(site, encoder)
    return patients_of(build_network(study.network, seed=1), load_examples(site, study, "train"))


def attacks() -> Iterator[Result]:
    """Ask five hospitals; compare what is claimed about each with what is claimed of another hospital's patients."""
    with TemporaryDirectory(prefix="encoder-") as folder:
        made = Path(folder) / "encoder"
        study = study_on(small_encoder(made, PREPROCESSING, layers=LAYERS))
        known = own_patients(study, made, Path(folder) / "own")
        rounds, candidates = [], []
        for seed in SEEDS:
            with rig(seed=seed, patients={"train": MEMBERS, **OTHERS}, settings=UNVARIED) as attacked:
                approve(attacked.hospital.site, made)
                attacked.talk_into(study)
                try:
                    rounds.append(rounds_at(attacked, study))
                except Refused as refused:
                    for name, whose in ((NAME, "some patients"), (ALL, "all patients")):
                        yield Result(name, HOLDS.format(whose), WHAT, 0, 0, MEMBERS, refused.code)
                    return
                network = build_network(study.network, seed=study.study.seed)
                examples = load_examples(attacked.hospital.site, study, "train", *OTHERS)
                candidates.append(patients_of(network, examples))
    one = [whitened(each, known, RIDGE) for each in candidates]
    yield result(NAME, "some patients", rounds, candidates, one)
    yield result(ALL, "all patients", rounds, candidates, [jointly(each, JOINT_RIDGE) for each in candidates])


def claimed_right(rounds: Sequence[Round], candidates: Patients, way: Weights) -> int:
    """Claim that the MEMBERS who fit best took part; return how many of them did. They are the first candidates."""
    fit, _ = fits(rounds, candidates, way)
    return int((np.argsort(-fit)[:MEMBERS] < MEMBERS).sum())


def result(
    name: str, whose: str, rounds: Sequence[Sequence[Round]], candidates: Sequence[Patients], ways: Sequence[Weights]
) -> Result:
    """Compare what is claimed about each hospital with claims of each hospital's patients by the same updates."""
    right = [[claimed_right(seen, *each) for each in zip(candidates, ways, strict=True)] for seen in rounds]
    total = MEMBERS * len(rounds)
    scored = from_matrix(np.array(right), claimed=total, of=total)
    return Result.scored(name, HOLDS.format(whose), WHAT, scored, note=f"{ROUNDS} rounds at each hospital")
