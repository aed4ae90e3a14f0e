"""The work of one site in a round, as plain functions: arrays in, arrays and allowed figures out."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from federation.rounds.packing import Arrays, pack, unpack
from federation.study import Study
from models.calibration import fit_platt
from models.network import LABELS, SeverityNetwork, build_network
from models.refusal import Refusal
from pipeline.cohort import Cohort
from pipeline.evaluate import site_metrics
from pipeline.examples import Examples
from pipeline.preprocess import settings_digest
from pipeline.privacy_budget import check_and_spend
from pipeline.reasons import PREPROCESSING, TOO_FEW_PATIENTS
from pipeline.site import Site, Split
from pipeline.train import predict, train


@dataclass(frozen=True)
class Trained:
    """The site's weights after its local epochs, and its figures; `examples` is the weight it asks for."""

    arrays: dict[str, NDArray]
    buffers: dict[str, NDArray]
    metrics: dict[str, float]
    examples: int


@dataclass(frozen=True)
class Evaluated:
    """The site's figures on its test patients, with slopes and intercepts fitted to its validation patients."""

    metrics: dict[str, float]
    examples: int


def load_network(study: Study, arrays: Arrays, buffers: Arrays) -> SeverityNetwork:
    """The study's network with these packed tensors."""
    network = build_network(study.network, seed=study.study.seed)
    unpack(network, arrays, buffers)
    return network


def load_examples(site: Site, study: Study, *splits: Split) -> Examples:
    """The site's examples of some splits. Raises Refusal E_PREPROCESSING where they were prepared otherwise."""
    with Cohort.read(site) as cohort:
        if cohort.settings() - {settings_digest(study.preprocessing)}:
            raise Refusal(PREPROCESSING)
        return Examples(cohort.examples(*splits))


def _enough(site: Site, examples: Examples) -> Examples:
    """Raises Refusal E_TOO_FEW_PATIENTS under the site's own minimum."""
    needed = site.settings.site.min_patients
    if len(examples) < needed:
        raise Refusal(TOO_FEW_PATIENTS, patients=len(examples), needed=needed)
    return examples


def train_site(
    site: Site,
    study: Study,
    arrays: Arrays,
    buffers: Arrays,
    *,
    round_number: int,
    run: str = "",
    charged: bool = False,
) -> Trained:
    """One site's round: figures of the model that came in, on validation patients; then local epochs.

    In a private study the round is first charged to the site's budget, in the name of `run`; not where the gateway has
    done so already (`charged`). Raises Refusal: E_TOO_FEW_PATIENTS, E_PREPROCESSING, and those of `check_and_spend`.
    """
    if site.settings.training.threads:
        torch.set_num_threads(site.settings.training.threads)
    network = load_network(study, arrays, buffers)
    examples = _enough(site, load_examples(site, study, "train"))
    validation = load_examples(site, study, "validation")
    least = site.settings.site.min_patients
    metrics = site_metrics(predict(network, validation), validation.targets, min_patients=least)
    if study.private_round is not None and not charged:
        metrics["epsilon"] = check_and_spend(site, study.private_round, run=run)
    metrics |= _train(network, examples, study, round_number)
    trained, trained_buffers = pack(network)
    return Trained(trained, trained_buffers, metrics, len(examples))


def _train(network: SeverityNetwork, examples: Examples, study: Study, round_number: int) -> dict[str, float]:
    """The local epochs of a round; their loss, which a private study does not tell."""
    schedule, seed = study.schedule(round_number), study.study.seed
    if study.privacy is None:
        loss = train(network, examples, study.training, schedule, seed=seed, proximal_mu=study.proximal_mu)
        return {"train_loss": loss}
    from pipeline.private_training import train_privately  # Opacus takes a second, and most studies need none

    train_privately(network, examples, study.training, study.privacy, schedule, seed=seed)
    return {}


def evaluate_site(site: Site, study: Study, arrays: Arrays, buffers: Arrays) -> Evaluated:
    """Figures on the site's test patients; calibration from its validation patients."""
    if site.settings.training.threads:
        torch.set_num_threads(site.settings.training.threads)
    network = load_network(study, arrays, buffers)
    least = site.settings.site.min_patients
    test = _enough(site, load_examples(site, study, "test"))
    metrics = site_metrics(predict(network, test), test.targets, min_patients=least)
    validation = load_examples(site, study, "validation")
    logits = predict(network, validation)
    for column, label in enumerate(LABELS):
        targets = validation.targets[:, column]
        if np.count_nonzero(~np.isnan(targets)) >= least:
            fitted = fit_platt(logits[:, column], targets)
            metrics |= {f"slope_{label}": fitted.slope, f"intercept_{label}": fitted.intercept}
    return Evaluated(metrics, len(test))
