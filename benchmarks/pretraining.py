"""Does a study of labels gain by first weights from a pretraining without labels?

    python benchmarks/pretraining.py [--labelled 90] [--unlabelled 900] [--seeds 101 102 ...]
    python benchmarks/pretraining.py --small --labelled 24 --unlabelled 12 --rounds 2 --seeds 101     # in a minute

Three synthetic hospitals have patients with and without labels. For each seed the default study is trained on the
labelled ones three times: from its seed, and from the start of each kind of pretraining on all of them. The models are
judged on all patients of a fourth hospital, which no training saw. The differences to the study from its seed are
paired by seed. Each seed is added to results/pretraining.json, from which results/pretraining.md is written; with
`--small` nothing is stored. With `--tables` only the tables are written.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_heads import interval
from run import RESULTS, circumstances, markdown

from federation.client.site_tasks import load_examples
from federation.comparison.signed_release import release_run
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import PRETRAINING_RATE, Study
from models.network_settings import LABELS
from models.release import load_release
from models.settings import load_settings
from pipeline.cohort.store import Cohort, UnlabelledRow
from pipeline.evaluation.discrimination import auroc
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import hospital
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from pipeline.training.train import predict

STUDY = Path(__file__).parents[1] / "configs" / "study.toml"
SITES, UNSEEN = 3, 3  # hospitals that train, and the number of the one that judges
SMALL = Preprocessing(method=1, shape=(16, 16, 16), working_spacing_mm=8.0)
COARSE = Grid((30, 48, 48), (9.6, 7.8, 7.8))
STORE = RESULTS / "pretraining.json"
FIRST = {"from the seed": "labels", "after measures": "auxiliary", "after hidden blocks": "hidden_blocks"}


def study_of(seed: int, asked: argparse.Namespace, *, outputs: str = "labels", begin_from: str = "") -> Study:
    rounds = asked.rounds if outputs == "labels" else asked.pretraining_rounds
    tables: dict[str, Any] = load_settings(STUDY, Study).model_dump(exclude_none=True)
    tables["study"] |= {
        "name": f"of-{outputs.replace('_', '-')}",
        "seed": seed,
        "sites": SITES,
        "quorum": SITES,
        "synthetic": True,
    }
    tables["study"] |= {"begin_from": begin_from} | ({"rounds": rounds} if rounds else {})
    tables["network"] |= {"outputs": outputs}
    if asked.small:
        tables["network"] |= {"architecture": "resnet10", "widen_factor": 0.0625}
        tables["preprocessing"] = SMALL.model_dump()
    if outputs != "labels":
        tables["training"]["learning_rate"] = PRETRAINING_RATE
    return Study.model_validate(tables)


def site_of(folder: Path, number: int, seed: int, asked: argparse.Namespace, *, labelled: int, unlabelled: int) -> Site:
    """Make a hospital whose last patients have lost their labels."""
    at, settings = hospital(number), study_of(seed, asked).preprocessing
    if asked.small:
        at = replace(at, scanner=replace(at.scanner, grid=COARSE))
    site = synthetic_site(folder, at.name, seed=seed, min_patients=2, tables="[training]\nthreads = 1")
    text = (folder / "site.toml").read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace("[site]", "[site]\nunlabelled_patients = true"), encoding="utf-8")
    write_cohort(site, at, patients=labelled + unlabelled, seed=seed, settings=settings, anatomy="template")
    with Cohort(site) as cohort:
        rows = cohort.patients()
        kept, without = rows[:labelled], rows[labelled:]
        scans = [UnlabelledRow(row.pseudonym, row.tensor) for row in without]
        cohort.replace(kept, [], cohort.fingerprints(without=()), scans)
    return Site.open(folder)


def judged(release: Path, study: Study, unseen: Site) -> dict[str, float]:
    """Return the AUROC of each label at the unseen hospital."""
    examples = load_examples(unseen, study, "train", "validation", "test")
    logits = predict(load_release(release).network, examples)
    return {label: auroc(logits[:, place], examples.targets[:, place]).value for place, label in enumerate(LABELS)}


def rows_of(seed: int, asked: argparse.Namespace, root: Path) -> dict[str, dict[str, float]]:
    """Train and judge the three models of a seed."""
    folders = [
        site_of(root / str(number), number, seed, asked, labelled=asked.labelled, unlabelled=asked.unlabelled).folder
        for number in range(SITES)
    ]
    unseen = site_of(root / "unseen", UNSEEN, seed, asked, labelled=asked.judging, unlabelled=0)
    rows, server = {}, root / "server"
    for name, outputs in FIRST.items():
        start = ""
        if outputs != "labels":
            run = rehearse(study_of(seed, asked, outputs=outputs), server, folders)
            release_run(run.name, server, lambda _: None)
            start = load_release(run / "release", pretrained=True).sha256
        study = study_of(seed, asked, begin_from=start)
        rows[name] = judged(rehearse(study, server, folders) / "release", study, unseen)
        print(seed, name, {label: round(value, 3) for label, value in rows[name].items()}, flush=True)
    return rows


def stored() -> list[dict[str, Any]]:
    """Return the seeds of all sizes."""
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else []


def size_of(asked: argparse.Namespace) -> dict[str, int]:
    return {
        name: getattr(asked, name) for name in ("labelled", "unlabelled", "judging", "rounds", "pretraining_rounds")
    }


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    usual, *others = FIRST
    of = {(name, label): [each["areas"][name][label] for each in rows] for name in FIRST for label in LABELS}
    table = [[name, *(interval(of[name, label]) for label in LABELS)] for name in FIRST]
    for name in others:
        gains = (np.subtract(of[name, label], of[usual, label]) for label in LABELS)
        table.append([f"{name} less {usual}", *(interval(gain) for gain in gains)])
    size, about = rows[0]["size"], rows[-1]["about"]
    lines = [
        "# First weights from a pretraining without labels",
        "",
        f"{about['date']}; {about['machine']}. {SITES} synthetic hospitals, each with {size['labelled']} patients with "
        f"labels and {size['unlabelled']} without; {size['pretraining_rounds']} rounds of "
        f"pretraining; {len(rows)} seeds; 95 % intervals over the seeds, differences paired by seed. "
        "`benchmarks/pretraining.py` explains the rows.",
        "",
        *markdown(["AUROC at the unseen hospital", *LABELS], table),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=int, default=90, help="patients with labels of each hospital")
    parser.add_argument("--unlabelled", type=int, default=900, help="patients without labels of each hospital")
    parser.add_argument("--judging", type=int, default=300, help="patients of the unseen hospital")
    parser.add_argument("--rounds", type=int, default=0, help="of each study of labels; 0: those of configs/study.toml")
    parser.add_argument("--pretraining-rounds", type=int, default=5, help="of each pretraining; 0: as above")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(101, 109)))
    parser.add_argument("--small", action="store_true", help="scans of 16 voxels a side and the smallest network")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    rows = [] if asked.small else [each for each in stored() if each["size"] == size_of(asked)]
    for seed in () if asked.tables else asked.seeds:
        if seed in [each["seed"] for each in rows]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            areas = rows_of(seed, asked, Path(folder))
        rows.append({"seed": seed, "size": size_of(asked), "areas": areas, "about": circumstances()})
        if not asked.small:
            STORE.write_text(json.dumps([*stored(), rows[-1]], indent=1) + "\n", encoding="utf-8")
    text = page(rows)
    if not asked.small:
        (RESULTS / "pretraining.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
