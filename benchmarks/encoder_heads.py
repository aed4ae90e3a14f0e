"""Does a head that hospitals learn together on a frozen encoder equal a head on all patients in one place?

    python benchmarks/encoder_heads.py [--seeds 1 2 ...]     # 20 seeds: half an hour

The encoder is the backbone of a ResNet-10 that was trained on the three hospitals of `scanner`, on other patients. The
three hospitals of `label` (`learning_sites`) then train heads on its features, and the unseen hospital tests them: by
federation with the default study's rounds and strategy, pooled, pooled with as many scans in each step as the hospitals
have together, and with differential privacy at every hospital.
Synthetic patients; coarse grids, as in the quick form of learning.py. Writes results/encoder_heads.{json,md}.
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from learning_methods import OURS, POOLED, Cost, Job, trained
from learning_sites import FORMS, UNSEEN, Form, Order, areas, orders, test_orders, write
from run import RESULTS, circumstances, markdown
from scipy import stats

from configs import preset_files
from federation.client.site_tasks import load_examples
from federation.coordinator.baselines import pooled_examples, train_together
from federation.protocol.study_config import Study
from models.encoders import Encoder, EncoderCard, save_encoder
from models.network import SeverityNetwork, build_network
from models.network_settings import LABELS
from models.settings import load_settings
from pipeline.cohort.encoding import encode_cohort
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import epsilon_of, step_costs
from pipeline.training.train import predict, train

TAUGHT_ON, KIND, TAUGHT_SEED = "scanner", "label", 1000
HOSPITALS, BATCH = 3, 8  # that train; scans in a step of the default study
PRIVATE, EPSILON = "with differential privacy", 8.0
POOLED_STEPS = "pooled, in as few steps as ours"
POOLED_ROUNDS, OURS_ROUNDS = "pooled, in four steps a round", "ours, in four steps a round"
METHODS = (POOLED, POOLED_STEPS, OURS, POOLED_ROUNDS, OURS_ROUNDS, PRIVATE)
# The head that equals the pooled one, as docs/encoders.md gives it: within a site's usual limits on batches and steps.
FEW_STEPS: dict[str, dict[str, object]] = {
    "study": {"rounds": 60, "local_epochs": 1, "local_steps": 4},
    "strategy": {"name": "FedAvg", "options": {}},
    "training": {
        "augment": False,
        "batch_size": 16,
        "learning_rate": 0.01,
        "loss": "cross_entropy_by_patient",
    },
}


def taught(root: Path) -> Encoder:
    """Train the encoder, on patients that are used for nothing else."""
    form = FORMS["quick"]
    made = orders(root, form, TAUGHT_ON, TAUGHT_SEED)
    for order in made:
        write(order)
    study = form.settings(TAUGHT_SEED, len(made))
    network = train_together(study, [Site.open(order.folder) for order in made])
    card = EncoderCard(
        name="ResNet-10 on phantoms",
        layers=study.network,
        features=network.features,
        preprocessing=study.preprocessing.model_dump(mode="json"),
        source=f"three synthetic hospitals, kind {TAUGHT_ON}, seed {TAUGHT_SEED}",
        licence="Apache-2.0",
        weights_sha256="0" * 64,
    )
    return save_encoder(root / "encoder", card, network.backbone)


def forms(encoder: Encoder) -> dict[str, Form]:
    """Return the study of heads, and the same with the privacy of the preset `private`, at its ε."""
    quick, card = FORMS["quick"], encoder.card
    head = {"encoder": card.sha256, "encoder_features": card.features, "architecture": "resnet18", "norm": "group"}
    tables: dict[str, dict[str, object]] = {
        "network": head,
        "training": {"augment": False},
        "preprocessing": quick.study["preprocessing"],
    }
    form = replace(quick, name="heads", study=tables)
    together = {"training": tables["training"] | {"batch_size": HOSPITALS * BATCH}}
    few_steps = replace(form, name="heads in four steps a round", study=tables | FEW_STEPS)
    return {
        POOLED: form,
        POOLED_STEPS: replace(form, name="pooled heads", study=tables | together),
        OURS: form,
        POOLED_ROUNDS: few_steps,
        OURS_ROUNDS: few_steps,
        PRIVATE: replace(form, name="private heads"),
    }


class PrivateForm(Form):
    """The study of heads with [privacy], which the default study does not have."""

    def settings(self, seed: int, sites: int) -> Study:
        """Return the study with the preset's privacy, its noise raised until ε is at most EPSILON."""
        usual, private = super().settings(seed, sites), load_settings(preset_files()["private"], Study)
        assert private.privacy is not None
        content = usual.model_dump()
        content["study"]["rounds"] = private.study.rounds
        content["training"]["learning_rate"] = private.training.learning_rate
        content["evaluation"] = {"shortcut_audit": False}
        for noise in np.arange(1.0, 10.0, 0.1):
            content["privacy"] = private.privacy.model_dump() | {"noise_multiplier": round(float(noise), 2)}
            study = Study.model_validate(content)
            if epsilon(study) <= EPSILON:
                return study
        raise AssertionError("no noise is enough")


def epsilon(study: Study) -> float:
    """Return ε of the whole training."""
    assert study.privacy is not None and study.private_round is not None
    a_round = step_costs(study.private_round.noise_multiplier, study.private_round.sample_rate)
    return epsilon_of(a_round * study.private_round.steps * study.study.rounds, study.private_round.delta)


def row(root: Path, form: Form, method: str, seed: int) -> dict[str, Any]:
    """Train a head and test it at the unseen hospital."""
    job = Job(root, form, KIND, seed, POOLED if method in (POOLED, POOLED_STEPS, POOLED_ROUNDS) else OURS)
    network, cost = pooled_rounds(job) if method == POOLED_ROUNDS else trained(job)
    (unseen,) = [order for order in test_orders(root, form, seed) if order.place.at.name == UNSEEN]
    examples = load_examples(Site.open(unseen.folder), job.settings(), "train", "validation", "test")
    found = areas(predict(network, examples), examples.targets)
    weights = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    return {"seed": seed, "method": method, "areas": found, "weights": weights, "cost": asdict(cost)}


def pooled_rounds(job: Job) -> tuple[SeverityNetwork, Cost]:
    """Train on all patients in one place in the same steps, each with as many scans as the hospitals have together.

    The optimiser of each round is a new one, as it is at a hospital.
    """
    study, sites = job.settings(), [Site.open(order.folder) for order in orders(job.root, job.form, KIND, job.seed)]
    network, examples = build_network(study.network, seed=study.study.seed), pooled_examples(sites, study, "train")
    settings = study.training.model_copy(update={"batch_size": HOSPITALS * study.training.batch_size})
    began = time.process_time()
    for number in range(1, study.study.rounds + 1):
        train(network, examples, settings, study.schedule(number), seed=study.study.seed)
    return network, Cost(0, 0, 0, study.total_epochs, time.process_time() - began)


def made_ready(root: Path, form: Form, encoder: Encoder, seed: int) -> list[Order]:
    """Write and encode the hospitals of a seed."""
    wanted = [*orders(root, form, KIND, seed), *(o for o in test_orders(root, form, seed) if o.place.at.name == UNSEEN)]
    for order in wanted:
        write(order)
        encode_cohort(Site.open(order.folder), encoder, lambda done, total: None)
    return wanted


def interval(values: Sequence[float], digits: int = 4) -> str:
    """Return mean and 95 % interval by Student's t."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    margin = error * float(stats.t.ppf(0.975, len(values) - 1))
    return f"{mean:.{digits}f} ({mean - margin:.{digits}f} to {mean + margin:.{digits}f})"


def page(rows: Sequence[dict[str, Any]], private: Study, about: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    by = {(each["method"], each["seed"]): each for each in rows}
    seeds = sorted({seed for _, seed in by})
    assert private.privacy is not None and private.private_round is not None
    delta = private.private_round.delta
    table = [
        [method, *(interval([by[method, seed]["areas"][label] for seed in seeds]) for label in LABELS)]
        for method in METHODS
    ]
    for method, other in (
        (OURS, POOLED),
        (OURS, POOLED_STEPS),
        (OURS_ROUNDS, POOLED_ROUNDS),
        (OURS_ROUNDS, POOLED),
        (PRIVATE, OURS),
    ):
        less = (interval([_less(by, method, other, seed, label) for seed in seeds]) for label in LABELS)
        table.append([f"{method} less {other}", *less])
    one = by[OURS, seeds[0]]
    apart = max(abs(_less(by, OURS_ROUNDS, POOLED_ROUNDS, seed, label)) for seed in seeds for label in LABELS)
    sent_kb = one["cost"]["bytes_up"] / one["cost"]["rounds"] / 1000
    lines = [
        "# Heads on a frozen encoder",
        "",
        f"{about['date']}; {about['machine']}. Three synthetic hospitals of 100 patients with few, usual and many "
        f"PCR-positive ones, {len(seeds)} seeds; 95 % intervals over the seeds. The encoder was trained on other "
        "synthetic patients. `benchmarks/encoder_heads.py` explains the rows.",
        "",
        *markdown(["AUROC at the unseen hospital", *LABELS], table),
        f"{one['weights']} weights are trained. A round sends {sent_kb:.1f} kB from each hospital. Privacy: "
        f"ε = {epsilon(private):.2f} at δ = {delta:g}, noise {private.privacy.noise_multiplier:g}. In four steps "
        f"a round, the two heads' AUROC differ by at most {apart:.5f} in any seed.",
        "",
    ]
    return "\n".join(lines)


def _less(by: dict[tuple[str, int], dict[str, Any]], method: str, other: str, seed: int, label: str) -> float:
    return float(by[method, seed]["areas"][label] - by[other, seed]["areas"][label])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 21)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # Flower logs every round
    about, rows = circumstances(), []
    with TemporaryDirectory() as folder:
        encoder = taught(Path(folder))
        made = forms(encoder)
        made[PRIVATE] = PrivateForm(**asdict(made[PRIVATE]))
        for seed in chosen.seeds:
            made_ready(Path(folder), made[POOLED], encoder, seed)
            for method, form in made.items():
                rows.append(row(Path(folder), form, method, seed))
                print(method, seed, rows[-1]["areas"], flush=True)
    private = made[PRIVATE].settings(1, 3)
    (chosen.out / "encoder_heads.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    text = page(rows, private, about)
    (chosen.out / "encoder_heads.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
