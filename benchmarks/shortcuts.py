"""Does the audit flag a planted shortcut, and not flag a clean study? Twenty seeds of three synthetic hospitals.

    python benchmarks/shortcuts.py [--seeds 20] [--first 1] [--method 8]

For each seed there are three studies, trained by plain federated averaging in this process, with the audit of a run:

- clean: every hospital has two scanners, and all patients are equally likely to be scanned with either;
- marked: at the first hospital most of the severe patients, and few others, have the rails of a frame beside the
  thorax, and their tags name another kernel;
- unmarked tags: the same scans, with tags that do not depend on the label.

Twenty clean studies cannot show a rate of one false alarm in a hundred. So many more are simulated without scans,
with random tags and scores. One file for each seed is stored in the folder of --work, by method of preprocessing, so
that an interrupted run can continue.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from federation.coordinator.shortcut_audit import discriminants, judge, probe
from models.network import SeverityNetwork, build_network
from models.network_settings import LABELS, NetworkSettings
from pipeline.cohort.dataset import Example, Examples
from pipeline.cohort.store import Cohort
from pipeline.evaluation.discrimination import auroc
from pipeline.evaluation.shortcuts import assigned_shares, embed, moments, shortcut_figures, tags_auroc
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import Acquisition, synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.marks import Shortcut, TwoScanners
from pipeline.phantom.patients import CaseMix
from pipeline.preprocessing.measures import Measures
from pipeline.preprocessing.preprocess_settings import SEGMENTER, THRESHOLD, Preprocessing
from pipeline.site.folder import Site
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule, TrainSettings

RESULTS = Path(__file__).with_name("results")
PATIENTS = (160, 40, 40)
SECOND = (("GE MEDICAL", "LUNG"), ("SIEMENS", "B30f"), ("PHILIPS", "B"))
SHAPE, SPACING_MM = (20, 28, 28), 9.0  # of the network's input, and of the grid on which the lungs are found
GRID = Grid((32, 48, 48), (9.0, 8.5, 8.5))
NETWORK = NetworkSettings(architecture="resnet10", widen_factor=0.125)
TRAINING = TrainSettings(augment=False)
ROUNDS, EPOCHS = 6, 3
MIN_PATIENTS = 10
MIX = CaseMix(pcr_prevalence=0.9, mean_age_years=64, median_load=0.16)  # many severe: few patients are enough

Split = dict[str, Examples]


def hospital(index: int) -> Hospital:
    known = HOSPITALS[index]
    return replace(known, mix=MIX, scanner=replace(known.scanner, grid=GRID))


def split_patients(folder: Path, index: int, seed: int, acquisition: Acquisition, settings: Preprocessing) -> Split:
    """Write one hospital's cohort; return its patients: all, held out, and by split."""
    at = hospital(index)
    site: Site = synthetic_site(folder, at.name, seed=seed, min_patients=MIN_PATIENTS)
    write_cohort(
        site,
        at,
        patients=PATIENTS[index],
        seed=seed,
        settings=settings,
        acquisition=acquisition,
        anatomy="template",
    )
    with Cohort.read(site) as cohort:
        return {
            "all": Examples(cohort.examples("train", "validation", "test")),
            "train": Examples(cohort.examples("train")),
            "validation": Examples(cohort.examples("validation")),
            "held out": Examples(cohort.examples("validation", "test")),
            "test": Examples(cohort.examples("test")),
        }


def without_telling_tags(site: Split) -> Split:
    """Return the same scans, all with the tags of one scanner."""
    kernel = HOSPITALS[0].scanner.kernel.upper()

    def retag(examples: Examples) -> Examples:
        return Examples(
            [replace(e, measures=replace(e.measures, kernel=kernel, sharpness="soft")) for e in examples.examples]
        )

    return {name: retag(examples) for name, examples in site.items()}


def federate(sites: Sequence[Examples], seed: int) -> SeverityNetwork:
    """Train by federated averaging (McMahan et al., AISTATS 2017); batch-norm statistics are averaged like weights."""
    network = build_network(NETWORK, seed=seed)
    weights = [len(site) / sum(map(len, sites)) for site in sites]
    for number in range(ROUNDS):
        states = []
        for site in sites:
            local = copy.deepcopy(network)
            train(local, site, TRAINING, Schedule(number * EPOCHS, EPOCHS, ROUNDS * EPOCHS), seed=seed)
            states.append(local.state_dict())
        mean = {
            name: sum(w * state[name] for w, state in zip(weights, states, strict=True)).to(first.dtype)
            for name, first in states[0].items()
        }
        network.load_state_dict(mean)
    return network


def audit(network: SeverityNetwork, sites: dict[str, Split]) -> dict[str, Any]:
    """Make the audit as a run does; also return the model's own AUROC at the first hospital."""
    train = {name: embed(network, site["train"]) for name, site in sites.items()}
    table = discriminants({name: moments(found) for name, found in train.items()})
    shares = {name: assigned_shares(embed(network, site["test"]), table, len(sites)) for name, site in sites.items()}
    figures = {
        name: shortcut_figures(
            network, {split: site[split] for split in ("train", "validation", "test")}, min_patients=MIN_PATIENTS
        )
        for name, site in sites.items()
    }
    held_out = next(iter(sites.values()))["held out"]
    own = auroc(predict(network, held_out)[:, 1], held_out.targets[:, 1])
    return {"auroc_severe": own.value, **judge(figures, probe(shares, list(sites))).model_dump()}


def run_seed(seed: int, settings: Preprocessing) -> dict[str, Any]:
    names = [hospital(index).name for index in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        clean = {
            name: split_patients(Path(folder) / name, index, seed, TwoScanners(*SECOND[index]), settings)
            for index, name in enumerate(names)
        }
        with_mark = split_patients(Path(folder) / "marked", 0, seed, Shortcut(kernel="B70f"), settings)
        marked = clean | {names[0]: with_mark}
        found = {"clean": audit(federate([site["train"] for site in clean.values()], seed), clean)}
        network = federate([site["train"] for site in marked.values()], seed)
        found["marked"] = audit(network, marked)
        found["unmarked tags"] = audit(network, marked | {names[0]: without_telling_tags(marked[names[0]])})
    return found


def false_alarms(studies: int) -> int:
    """Count the flagged studies among simulated studies of three sites with random tags and scores."""
    flagged = 0
    for number in range(studies):
        rng = np.random.default_rng(number)
        sites = {}
        for name, count in zip("abc", PATIENTS, strict=True):
            examples = [
                Example(
                    Path(),
                    age_years=60.0,
                    sex="F",
                    pcr_positive=bool(positive),
                    severe=bool(rng.random() < 0.35),
                    measures=chance_measures(rng),
                )
                for positive in rng.random(count) < 0.7
            ]
            patients = Examples(examples)
            severe = patients.targets[: round(0.4 * count), 1]
            found = {f"auroc_{label}_tags": tags_auroc(patients, k) for k, label in enumerate(LABELS)}
            found["auroc_severe_outside"] = auroc(rng.normal(size=len(severe)), severe)
            sites[name] = {
                f"{figure}{end}": value
                for figure, each in found.items()
                if np.isfinite(each.value)
                for end, value in (("", each.value), ("_low", each.low), ("_high", each.high))
            }
        flagged += bool(judge(sites, None).flags)
    return flagged


def chance_measures(rng: np.random.Generator) -> Measures:
    """Draw tags of three scanners and of protocols, independent of the patient."""
    manufacturer, kernel = [("SIEMENS", "B30F"), ("GE", "LUNG"), ("PHILIPS", "B")][int(rng.integers(3))]
    return Measures(
        slice_mm=float(rng.choice([1.0, 3.0, 5.0])),
        pixel_mm=float(rng.uniform(0.6, 0.9)),
        thickness_mm=float(rng.choice([1.0, 3.0, 5.0])),
        slices=int(rng.integers(50, 300)),
        lungs_ml=4000,
        is_cut=False,
        air_hu=-1000,
        aerated_hu=-900,
        spine_behind_mm=40,
        windpipe_above_mm2=200,
        heart_left=0.1,
        position="HFS" if rng.random() < 0.9 else "HFP",
        manufacturer=manufacturer,
        kernel=kernel,
        sharpness="sharp" if kernel == "LUNG" else "soft",
    )


def summary(seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By kind of study: number of flagged studies, by code, and medians of the metrics at the first hospital."""
    rows = []
    for kind in seeds[0]:
        studies = [each[kind] for each in seeds]
        first = next(iter(studies[0]["sites"]))
        codes = [{flag["code"] for flag in study["flags"]} for study in studies]
        at_first = [study["sites"][first] for study in studies]
        rows.append(
            {
                "study": kind,
                "seeds": len(studies),
                "flagged": sum(bool(each) for each in codes),
                "flagged elsewhere": sum(any(f["site"] != first for f in study["flags"]) for study in studies),
                "by tags": sum("W_SHORTCUT_TAGS" in each for each in codes),
                "outside": sum("W_SHORTCUT_OUTSIDE" in each for each in codes),
                "auroc_severe": [study["auroc_severe"] for study in studies],
                "auroc_severe_tags": [f["auroc_severe_tags"] for f in at_first if "auroc_severe_tags" in f],
                "auroc_severe_outside": [f["auroc_severe_outside"] for f in at_first if "auroc_severe_outside" in f],
                "outside, all sites": [
                    f["auroc_severe_outside"]
                    for study in studies
                    for f in study["sites"].values()
                    if "auroc_severe_outside" in f
                ],
                "scanner_from_embedding": [
                    f["scanner_from_embedding"] for f in at_first if "scanner_from_embedding" in f
                ],
                "site_from_embedding": [study["probe"]["accuracy"] for study in studies],
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    def cell(values: list[float]) -> str:
        return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "–"

    columns = (
        "auroc_severe",
        "auroc_severe_tags",
        "auroc_severe_outside",
        "scanner_from_embedding",
        "site_from_embedding",
    )
    head = ["study", "flagged", "by tags", "outside the lungs", *(f"`{name}`" for name in columns)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        counts = [f"{row[name]} of {row['seeds']}" for name in ("flagged", "by tags", "outside")]
        lines.append([row["study"], *counts, *(cell(row[name]) for name in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--by-chance", type=int, default=500)
    parser.add_argument("--method", type=int, choices=(THRESHOLD, SEGMENTER), default=SEGMENTER)
    parser.add_argument("--work", type=Path, default=Path("build/shortcuts"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Preprocessing(method=arguments.method, shape=SHAPE, working_spacing_mm=SPACING_MM)
    work = arguments.work / f"method-{settings.method}"
    work.mkdir(parents=True, exist_ok=True)
    seeds = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        file = work / f"{seed}.json"
        if not file.is_file():
            file.write_text(json.dumps(run_seed(seed, settings)))
        seeds.append(json.loads(file.read_text()))
        print(
            seed, {kind: sorted({f["code"] for f in study["flags"]}) for kind, study in seeds[-1].items()}, flush=True
        )
    rows = summary(seeds)
    intro = (
        "# The shortcut audit on synthetic hospitals\n\nThree hospitals, plain federated averaging, preprocessing with "
        f"method {settings.method}; metrics of the first hospital, where the mark is planted: median (minimum to "
        "maximum) over the seeds.\n\n"
    )
    RESULTS.mkdir(exist_ok=True)
    flagged = false_alarms(arguments.by_chance)
    chance = f"Of {arguments.by_chance} simulated studies with random tags and scores, {flagged} are flagged.\n"
    found = {
        "method": settings.method,
        "studies": rows,
        "by chance": {"studies": arguments.by_chance, "flagged": flagged},
    }
    (RESULTS / "shortcuts.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "shortcuts.md").write_text(f"{intro}{markdown(rows)}\n\n{chance}")
    print(markdown(rows), chance, sep="\n\n")


if __name__ == "__main__":
    main()
