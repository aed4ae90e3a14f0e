"""What does an adaptation change at a hospital with another scanner? AUROC before and after, on synthetic hospitals.

    python benchmarks/adaptation.py [--seeds 1]

For each seed, a small network is trained at one hospital, on phantoms of one scanner. Then it is adapted, as
`fedthorax adapt` does, to scans without labels of a hospital with another scanner: the same (a check), more noise, a
smoother kernel, an offset in HU. The hospital has the same patients each time: 96 without labels and 160 others to
judge. The table has the AUROC of `severe` before and after, and the share of the scans outside the limit for unfamiliar
scans: an adaptation is refused above 20 %. For comparison, the AUROC after an adaptation to scans of which a quarter
were chosen by an attacker: lungs without air, which pass no check for unfamiliar scans here.

The phantoms are coarse (9 mm) and their bodies simple: two minutes of one core for each seed. They say nothing about
patients.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.familiarity import Distances, Familiarity, limit, log_distances
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from models.norm_statistics import adapt_statistics
from pipeline.adaptation.adapt import MOST_UNFAMILIAR
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.evaluation.discrimination import auroc, auroc_difference
from pipeline.evaluation.shortcuts import appearance
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Scanner
from pipeline.phantom.patients import CaseMix
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule, TrainSettings

RESULTS = Path(__file__).with_name("results")
PREPROCESSING = Preprocessing(method=1, shape=(20, 28, 28), working_spacing_mm=9)
NETWORK = NetworkSettings(architecture="resnet10", widen_factor=0.125)
TRAINING = TrainSettings(augment=False)
EPOCHS = 12
TRAINED_ON, UNLABELLED, JUDGED_ON = 160, 96, 160
MIX = CaseMix(pcr_prevalence=0.9, mean_age_years=64, median_load=0.16)
HOME = replace(HOSPITALS[0].scanner, grid=Grid((32, 48, 48), (9.0, 8.5, 8.5)), noise=None)
SEVERE = 1  # column of the label


def scanners() -> dict[str, Scanner]:
    """Return the scanners of the other hospitals; the changes are relative to the first one."""
    return {
        "same": HOME,
        "noise": replace(HOME, noise_hu=HOME.noise_hu * 6),
        "smooth": replace(HOME, blur_mm=HOME.blur_mm + 8),
        "offset": replace(HOME, offset_hu=HOME.offset_hu + 40),
    }


def patients(folder: Path, name: str, scanner: Scanner, count: int, seed: int) -> Examples:
    """Write the cohort of one hospital; return all patients. The name and the seed give the patients."""
    site = synthetic_site(folder, name, seed=seed)
    at = replace(HOSPITALS[0], name=name, mix=MIX, scanner=scanner)
    write_cohort(site, at, patients=count, seed=seed, settings=PREPROCESSING, anatomy="template")
    with Cohort.read(site) as cohort:
        return Examples(cohort.examples("train", "validation", "test"))


def familiarity(training: Examples) -> Familiarity:
    """Return the limit of a study of this hospital: three quarters give the mean, the others the distances."""
    looks = appearance(training)
    known, other = np.split(looks, [3 * len(looks) // 4])
    mean, variance = known.mean(axis=0), known.var(axis=0, ddof=1)
    logs = log_distances(other, mean, variance)
    found = Distances(float(logs.mean()), float(logs.std(ddof=1)), len(logs))
    values = {"mean": tuple(mean.tolist()), "variance": tuple(variance.tolist())}
    return Familiarity(**values, limit=limit([found], robust=False), sites=1)


def adapted(network: SeverityNetwork, scans: Sequence[torch.Tensor]) -> SeverityNetwork:
    """Return a copy of the network, adapted to the scans."""
    made = copy.deepcopy(network)
    adapt_statistics(made, lambda: iter(scans))
    return made


def chosen(scans: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Replace a quarter of the scans by lungs without air."""
    count = len(scans) // 4
    solid = [torch.stack([torch.where(scan[1] > 0.5, 1.0, scan[0]), scan[1]]) for scan in scans[:count]]
    return [*solid, *scans[count:]]


def at_hospital(network: SeverityNetwork, known: Familiarity, found: Examples) -> dict[str, Any]:
    """Adapt to the first UNLABELLED patients, whose labels are not used, and judge on the others."""
    scans = [found.scans(np.array([index]))[0] for index in range(UNLABELLED)]
    looks = appearance(Examples(found.examples[:UNLABELLED]))
    distances = np.exp(log_distances(looks, np.array(known.mean), np.array(known.variance)))
    judged = Examples(found.examples[UNLABELLED:])
    y = judged.targets[:, SEVERE]
    before, after, attacked = (
        predict(each, judged)[:, SEVERE] for each in (network, adapted(network, scans), adapted(network, chosen(scans)))
    )
    change = auroc_difference(after, before, y)
    return {
        "before": auroc(before, y).value,
        "after": auroc(after, y).value,
        "change": [change.value, change.low, change.high],
        "after an attack": auroc(attacked, y).value,
        "unfamiliar": float(np.mean(distances > known.limit)),
    }


def run_seed(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        training = patients(folder / "home", "home", HOME, TRAINED_ON, seed)
        network = build_network(NETWORK, seed=seed)
        train(network, training, TRAINING, Schedule(0, EPOCHS, EPOCHS), seed=seed)
        known = familiarity(training)
        return {
            name: at_hospital(network, known, patients(folder / name, "other", scanner, UNLABELLED + JUDGED_ON, seed))
            for name, scanner in scanners().items()
        }


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Adaptation to another scanner: AUROC of `severe` on phantoms",
        "",
        f"`python benchmarks/adaptation.py --seeds {len(found)}` repeats it. The change has a 95 % interval.",
        "",
        "| seed | scanner | before | after | change | a quarter chosen by an attacker | unfamiliar | refused |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for seed, hospitals in found.items():
        for name, f in hospitals.items():
            value, low, high = f["change"]
            refused = "yes" if f["unfamiliar"] > MOST_UNFAMILIAR else "worse" if high < 0 else "no"
            lines.append(
                f"| {seed} | {name} | {f['before']:.3f} | {f['after']:.3f} | {value:+.3f} ({low:+.3f} to {high:+.3f}) "
                f"| {f['after an attack']:.3f} | {100 * f['unfamiliar']:.0f} % | {refused} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for seed in range(1, options.seeds + 1):
        found[str(seed)] = run_seed(seed)
        (RESULTS / "adaptation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "adaptation.md").write_text(table(found), encoding="utf-8")
        print(table({str(seed): found[str(seed)]}))


if __name__ == "__main__":
    main()
