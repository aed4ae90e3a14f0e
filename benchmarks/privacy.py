"""Effect of differential privacy on AUROC at another site and on membership inference. Not part of `make bench`.

    python benchmarks/privacy.py --test SITE_DIR SITE_DIR [SITE_DIR ...]

The training patients of the given sites, whose cohorts must have the same settings, are pooled as one hospital and
trained with the private step of a federated round. All patients of the test site are used for testing. Membership
inference, by the joint loss, distinguishes the training patients from the others of the same sites. It takes hours on
two cores.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from models.membership import JOINT, infer_membership
from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.evaluation.discrimination import auroc
from pipeline.site.folder import Site, Split
from pipeline.training.privacy_budget import PrivacySettings, epsilon_of, step_costs
from pipeline.training.private_training import train_privately
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule, TrainSettings

EPOCHS, SAMPLE_RATE = 40, 0.1


def noise_for(epsilon: float, delta: float) -> float:
    """Return the smallest noise multiplier, to two digits, for which EPOCHS cost at most `epsilon`."""
    steps = EPOCHS * round(1 / SAMPLE_RATE)
    enough = (
        k / 100 for k in range(30, 2000) if epsilon_of(steps * step_costs(k / 100, SAMPLE_RATE), delta) <= epsilon
    )
    return next(enough)


def patients(folders: list[Path], *splits: Split) -> Examples:
    found = []
    for folder in folders:
        with Cohort.read(Site.open(folder)) as cohort:
            found += cohort.examples(*splits)
    return Examples(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sites", nargs="+", type=Path)
    parser.add_argument("--test", required=True, type=Path)
    parser.add_argument("--epsilon", nargs="*", type=float, default=[8.0, 3.0, 1.0])
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--architecture", default="resnet10")
    parser.add_argument("--widen-factor", type=float, default=0.0625)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    examples, others = patients(arguments.sites, "train"), patients(arguments.sites, "validation", "test")
    test = patients([arguments.test], "train", "validation", "test")
    delta = 1 / (10 * len(examples))
    print(f"{len(examples)} patients, {len(others)} others, tested on {len(test)}, delta {delta:.1g}", flush=True)
    print(f"| seed | epsilon | noise | {' | '.join(LABELS)} | membership inference |", flush=True)
    for seed in range(1, arguments.seeds + 1):
        for epsilon in (None, *arguments.epsilon):
            network = build_network(
                NetworkSettings(architecture=arguments.architecture, widen_factor=arguments.widen_factor, norm="group"),
                seed=seed,
            )
            schedule = Schedule(0, EPOCHS, EPOCHS)
            noise = 0.0
            if epsilon is None:
                train(network, examples, TrainSettings(), schedule, seed=seed)
            else:
                noise = noise_for(epsilon, delta)
                settings = TrainSettings(learning_rate=arguments.learning_rate)
                privacy = PrivacySettings(
                    noise_multiplier=noise,
                    sample_rate=SAMPLE_RATE,
                    max_grad_norm=arguments.max_grad_norm,
                    delta=delta,
                )
                train_privately(network, examples, settings, privacy, schedule, seed=seed)
            logits = predict(network, test)
            found = [str(auroc(logits[:, k], np.asarray(test.targets[:, k]))) for k in range(len(LABELS))]
            inside, outside = ((predict(network, some), some.targets) for some in (examples, others))
            inferred = infer_membership(inside, outside, min_patients=1)[JOINT].auroc
            found.append(f"{inferred.value:.2f} ({inferred.low:.2f}–{inferred.high:.2f})")
            print(f"| {seed} | {epsilon or 'not private'} | {noise:.2f} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
