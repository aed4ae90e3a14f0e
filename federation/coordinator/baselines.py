"""Baselines: a model of one hospital, or of all hospitals pooled, trained with the step of a federated round.

A real federation must not pool data. It is possible here because synthetic hospitals are on one machine. The pooled
model shows how much performance the federation costs.
"""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from federation.client.site_tasks import load_examples
from federation.coordinator import reasons
from federation.protocol.first_weights import begin_network
from federation.protocol.study_config import Study
from models.calibration import fit_platt
from models.compute import Compute
from models.description import Description
from models.network import SeverityNetwork
from models.network_settings import LABELS
from models.refusal import Refusal
from models.release import Release, save_release
from pipeline.cohort.dataset import Examples
from pipeline.site.folder import Site, Split
from pipeline.system.malloc import keep_memory
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule


def pooled_examples(sites: Sequence[Site], study: Study, *splits: Split) -> Examples:
    """The examples of several sites as one dataset."""
    return Examples([e for site in sites for e in load_examples(site, study, *splits).examples])


def train_together(study: Study, sites: Sequence[Site], *, rounds: int | None = None) -> SeverityNetwork:
    """Train a network on the patients of all given sites, for as many epochs (or steps) as in a federation.

    `rounds`: held by a federation that stopped early; None: all. The processor is that of the first site. Raises
    Refusal: those of `Compute.open`, `begin_network` and `train`.
    """
    keep_memory()
    compute = Compute.open(sites[0].settings.compute)
    network = begin_network(study, Path())  # a study that begins from a release has no such models
    examples = pooled_examples(sites, study, "train")
    steps = study.study.local_steps * len(sites)  # the sum of the sites' steps
    epochs = study.kept_epochs(study.study.rounds if rounds is None else rounds)
    schedule = Schedule(first_epoch=0, epochs=epochs, total_epochs=study.total_epochs, steps=steps)
    train(network, examples, study.training, schedule, seed=study.study.seed, compute=compute)
    return network


def train_baseline(study: Study, sites: Sequence[Site], out: Path, *, threads: int = 1) -> Release:
    """Train on the given sites as `train_together` does, calibrate, and write a release to `out`.

    Raises Refusal: E_BASELINE_UNLIKE if the study asks for more than that, and those of `train_together`.
    """
    _require_plain(study)
    torch.set_num_threads(threads)
    network = train_together(study, sites)
    validation = pooled_examples(sites, study, "validation")
    logits = predict(network, validation, compute=Compute.open(sites[0].settings.compute))
    return save_release(
        out,
        network,
        Description(
            network=study.network,
            preprocessing=study.preprocessing.model_dump(mode="json"),
            calibration={label: fit_platt(logits[:, k], validation.targets[:, k]) for k, label in enumerate(LABELS)},
            study=study.study.name,
            run="baseline",
            rounds=0,
            sites=len(sites),
            strategy="pooled" if len(sites) > 1 else "local",
            software=f"fedthorax {version('fedthorax')}",
            trained_on_synthetic_data=study.study.synthetic,
        ),
    )


def _require_plain(study: Study) -> None:
    """Raise Refusal E_BASELINE_UNLIKE if a model that is trained here would not be the study's."""
    others = {
        "begin_from": study.study.begin_from,
        "[privacy]": study.privacy is not None,
        "[network] tuned_stages": study.network.tuned_stages,
        "[network] outputs": study.network.pretrains,
    }
    if unlike := [name for name, is_set in others.items() if is_set]:
        raise Refusal(reasons.BASELINE_UNLIKE, what=", ".join(unlike))


def train_in_background(study: Study, folders: Sequence[Path], out: Path) -> str:
    """Run `train_baseline` in a worker process with lower priority than the federation; return `out`'s name."""
    os.nice(19)
    train_baseline(study, [Site.open(folder) for folder in folders], out)
    return out.name
