"""What the preset `private` reaches on synthetic hospitals, with its privacy and without. Not part of `make bench`.

    python benchmarks/private_preset.py [--patients 100] [--seeds 1 2 3]

Three hospitals run the preset in this process, with the preset's grid, network and number of rounds. The models are
tested on all patients of a fourth hospital. Without privacy the same study runs without [privacy], with the default
learning rate. The noise has no seed, so a repetition gives other figures.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

import torch
from learning_sites import areas

from configs import preset_files
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import Study
from models.network_settings import LABELS
from models.release import load_release
from models.settings import load_settings
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.site.folder import Site, Split
from pipeline.training.privacy_budget import epsilon_of, step_costs
from pipeline.training.train import predict
from pipeline.training.train_settings import TrainSettings

UNSEEN_PATIENTS = 200
ALL: tuple[Split, ...] = ("train", "validation", "test")


def preset() -> Study:
    study = load_settings(preset_files()["private"], Study)
    fast = study.evaluation.model_copy(update={"shortcut_audit": False})
    table = study.study.model_copy(update={"synthetic": True})
    return study.model_copy(update={"evaluation": fast, "study": table})


def without_privacy(study: Study) -> Study:
    training = TrainSettings(batch_size=study.training.batch_size)
    return study.model_copy(update={"privacy": None, "training": training})


def cohorts(place: Path, patients: int, seed: int) -> list[Site]:
    """Write the cohorts of three hospitals that train, and of one that does not."""
    sites = []
    for at, count in zip(HOSPITALS[:4], [patients] * 3 + [UNSEEN_PATIENTS], strict=True):
        site = synthetic_site(place / at.name, at.name, seed=seed, tables="[training]\nthreads = 1")
        write_cohort(site, at, patients=count, seed=seed)
        sites.append(site)
    return sites


def examples(site: Site, *splits: Split) -> Examples:
    with Cohort.read(site) as cohort:
        return Examples(cohort.examples(*splits))


def spent(study: Study, delta: float) -> float:
    """Return ε of a whole run at one hospital."""
    private = study.private_round
    if private is None:
        return float("inf")
    costs = step_costs(private.noise_multiplier, private.sample_rate)
    return epsilon_of(study.study.rounds * private.steps * costs, delta)


def measure(studies: Sequence[tuple[str, Study]], place: Path, patients: int, seed: int) -> None:
    """Run the studies over the same hospitals and print a row for each."""
    *training, unseen = cohorts(place / f"sites-{patients}-{seed}", patients, seed)
    at_unseen, count = examples(unseen, *ALL), sum(len(examples(site, "train")) for site in training)
    for name, study in studies:
        run = rehearse(study.with_seed(seed), place / "server", [site.folder for site in training])
        scores = predict(load_release(run / "release").network, at_unseen)
        found = areas(scores, at_unseen.targets)
        cells = [name, str(count), str(seed), *(f"{found[label]:.2f}" for label in LABELS)]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, nargs="*", default=[100], help="of each hospital, all splits together")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = preset()
    print(f"epsilon of a run: {spent(study, 1e-4):.2f} at 1e-4, {spent(study, 1e-5):.2f} at 1e-5", flush=True)
    print(
        f"| training | training patients | seed | {' | '.join(LABELS)} |\n|{' --- |' * (3 + len(LABELS))}", flush=True
    )
    place = Path(mkdtemp(prefix="fedthorax-private-"))
    for patients in arguments.patients:
        for seed in arguments.seeds:
            measure([("private", study), ("not private", without_privacy(study))], place, patients, seed)


if __name__ == "__main__":
    main()
