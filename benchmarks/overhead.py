"""Processor time of federated training compared with pooled training of the same number of steps.

Three synthetic sites with a study's default network and preprocessing. The processor time of whole rounds in one
process is measured: opening the cohorts, building the network, validation metrics, packing, the guard's checks,
aggregation, the checkpoint. Start-up and polling, for which a round waits, depend on the server, not on the steps. They
are reported separately.
"""

import itertools
import json
import logging
from pathlib import Path

import torch
from common import Figure, Part, processor_seconds

from federation.coordinator.baselines import train_together
from federation.coordinator.inprocess import sites_here
from federation.coordinator.rounds import Training
from federation.protocol.study_config import Study
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.site.folder import Site

REPEATS = 3
PATIENTS = 100  # at each site: some 60 for training, 15 for validation
STEPS = (26, 16)  # steps of each site in the round: two passes over 100 patients, and over 64, in batches of 8
ROUNDS = Path(__file__).with_name("results") / "rounds.json"


def study(steps: int) -> Study:
    table = {"rounds": 1, "local_steps": steps, "sites": 3, "quorum": 3, "synthetic": True}
    return Study.model_validate({"study": {"name": "overhead", **table}})


def make_sites(folder: Path) -> list[Site]:
    sites = []
    for at in HOSPITALS[:3]:
        site = synthetic_site(folder / at.name, at.name, seed=1, tables="[training]\nthreads = 1")
        write_cohort(site, at, patients=PATIENTS, seed=1, anatomy="template")
        sites.append(site)
    return sites


def measure(folder: Path) -> Part:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # Flower logs every round
    sites, runs = make_sites(folder), itertools.count()

    def federated(what: Study) -> None:
        Training(what, folder / f"run-{next(runs)}", "bench").execute(sites_here(what, [site.folder for site in sites]))

    def figure(steps: int) -> Figure:
        what = study(steps)
        ours, theirs = processor_seconds(REPEATS, lambda: federated(what), lambda: train_together(what, sites))
        name = f"a round of {steps} steps at each of 3 sites"
        return Figure(name, f"{3 * steps} steps pooled", "processor s", ours, theirs, "at most 1.10")

    return Part([*_notes(), *_waiting()], [figure(steps) for steps in STEPS])


def _notes() -> list[str]:
    return [
        f"Three synthetic sites of {PATIENTS} patients, ResNet-18 of the default study, batches of 8, augmented; one "
        "thread. Federated: whole rounds with the sites' validation metrics, the guard's checks, aggregation, "
        "checkpoint. The added cost is the same for each round, so its share is larger if a round has fewer steps."
    ]


def _waiting() -> list[str]:
    """Describe a round's waiting time with real processes, as measured by the part `rounds`."""
    if not ROUNDS.is_file():
        return []
    found = {figure["name"]: figure for figure in json.loads(ROUNDS.read_text())["figures"]}
    rest = found.get("a round with a model of 8 MB: all but the training")
    if rest is None:
        return []
    return [
        f"Start-up and polling, from the part `rounds`: a round with real processes, TLS and the gateway takes "
        f"{rest['ours'][1]:.1f} s in addition to its training with a model of 8 MB, for any number of steps."
    ]
