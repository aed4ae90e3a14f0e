"""Does a study of labels gain by first weights from a pretraining without labels?

    python benchmarks/pretraining.py [--labelled 90] [--unlabelled 900] [--seeds 101 102 ...]
    python benchmarks/pretraining.py --small --labelled 24 --unlabelled 12 --rounds 2 --seeds 101     # in a minute

Three synthetic hospitals have patients with and without labels. For each seed the default study is trained on the
labelled ones three times: from its seed, and from the start of each kind of pretraining on all of them. The models are
judged on all patients of a fourth hospital, which no training saw. The differences to the study from its seed are
paired by seed. Each seed is added to results/pretraining.json, from which results/pretraining.md is written; with
`--small` nothing is stored. With `--tables` only the tables are written.

With `--keep DIR` the hospitals and the starts are made once, in DIR, and serve all seeds. A seed then draws which of
three times as many patients have their labels, and the first weights. So the intervals hold for these starts alone.
Several processes may share the seeds, each with its own copy of DIR (`cp -a`).
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_heads import interval
from learning_sites import FORMS, coarser
from run import RESULTS, circumstances, markdown

from federation.client.site_tasks import load_examples
from federation.comparison.signed_release import release_run
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import PRETRAINING_RATE, Study
from models.network_settings import LABELS
from models.release import load_release
from models.settings import load_settings
from pipeline.cohort.store import Cohort, PatientRow, UnlabelledRow
from pipeline.evaluation.discrimination import auroc
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import hospital
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from pipeline.training.train import predict

STUDY = Path(__file__).parents[1] / "configs" / "study.toml"
CANDIDATES = 3  # for each patient with labels, with `--keep`
SITES, UNSEEN = 3, 3  # hospitals that train, and the number of the one that judges
SMALL = Preprocessing(method=1, shape=(16, 16, 16), working_spacing_mm=8.0)
COARSE = Grid((30, 48, 48), (9.6, 7.8, 7.8))
QUICK = FORMS["quick"]
STORE = RESULTS / "pretraining.json"
Differences = dict[str, list[list[float]]]  # of AUROC, by what is compared: for each seed, one of each label
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
    tables["evaluation"] |= {"shortcut_audit": False}  # which changes no weight
    if asked.quick:
        tables = {name: table | QUICK.study.get(name, {}) for name, table in tables.items()}
    if asked.small:
        tables["network"] |= {"architecture": "resnet10", "widen_factor": 0.0625}
        tables["preprocessing"] = SMALL.model_dump()
    if outputs != "labels":
        tables["training"]["learning_rate"] = PRETRAINING_RATE
    return Study.model_validate(tables)


def site_of(folder: Path, number: int, seed: int, asked: argparse.Namespace, *, patients: int) -> Site:
    """Make a hospital, all of whose patients have labels at first."""
    at, settings = hospital(number), study_of(seed, asked).preprocessing
    if asked.quick:
        at = coarser(at, QUICK.pixel)
    if asked.small:
        at = replace(at, scanner=replace(at.scanner, grid=COARSE))
    site = synthetic_site(folder, at.name, seed=seed, min_patients=2, tables="[training]\nthreads = 1")
    text = (folder / "site.toml").read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace("[site]", "[site]\nunlabelled_patients = true"), encoding="utf-8")
    write_cohort(site, at, patients=patients, seed=seed, settings=settings, anatomy="template", workers=asked.workers)
    return Site.open(folder)


def rows_of_site(folder: Path) -> list[PatientRow]:
    with Cohort.read(Site.open(folder)) as cohort:
        return cohort.patients()


def unlabel(folder: Path, rows: Sequence[PatientRow], labelled: Sequence[PatientRow]) -> None:
    """Leave labels to some of a hospital's patients only. The patients in `rows` are all that it has then."""
    kept = {row.pseudonym for row in labelled}
    scans = [UnlabelledRow(row.pseudonym, row.tensor) for row in rows if row.pseudonym not in kept]
    with Cohort(Site.open(folder)) as cohort:
        cohort.replace(list(labelled), [], cohort.fingerprints(without=()), scans)


def judged(release: Path, study: Study, unseen: Site) -> dict[str, float]:
    """Return the AUROC of each label at the unseen hospital."""
    examples = load_examples(unseen, study, "train", "validation", "test")
    logits = predict(load_release(release).network, examples)
    return {label: auroc(logits[:, place], examples.targets[:, place]).value for place, label in enumerate(LABELS)}


def made(root: Path, seed: int, asked: argparse.Namespace, *, patients: int) -> tuple[list[Path], Site]:
    """Make the hospitals that train, and the one that judges."""
    folders = [site_of(root / str(number), number, seed, asked, patients=patients).folder for number in range(SITES)]
    return folders, site_of(root / "unseen", UNSEEN, seed, asked, patients=asked.judging)


def start_of(outputs: str, seed: int, asked: argparse.Namespace, server: Path, folders: Sequence[Path]) -> str:
    """Pretrain on all patients of the hospitals; return the SHA-256 of the start."""
    run = rehearse(study_of(seed, asked, outputs=outputs), server, folders)
    release_run(run.name, server, lambda _: None)
    return load_release(run / "release", pretrained=True).sha256


def areas_of(
    seed: int,
    asked: argparse.Namespace,
    server: Path,
    folders: Sequence[Path],
    unseen: Site,
    start: Callable[[str], str],
) -> dict[str, dict[str, float]]:
    """Train and judge the three models of a seed. `start`: the SHA-256 of the start of a kind of pretraining."""
    found = {}
    for name, outputs in FIRST.items():
        if outputs not in ("labels", *asked.kinds):
            continue
        study = study_of(seed, asked, begin_from="" if outputs == "labels" else start(outputs))
        found[name] = judged(rehearse(study, server, folders) / "release", study, unseen)
        print(seed, name, {label: round(value, 3) for label, value in found[name].items()}, flush=True)
    return found


def alone(seed: int, asked: argparse.Namespace, root: Path) -> dict[str, dict[str, float]]:
    """Make hospitals and starts of this seed's own, and train."""
    folders, unseen = made(root, seed, asked, patients=asked.labelled + asked.unlabelled)
    for folder in folders:
        rows = rows_of_site(folder)
        unlabel(folder, rows, rows[: asked.labelled])
    server = root / "server"
    return areas_of(seed, asked, server, folders, unseen, lambda kind: start_of(kind, seed, asked, server, folders))


class Kept:
    """Hospitals and starts that serve all seeds, in a folder. What is not there yet is made."""

    def __init__(self, root: Path, asked: argparse.Namespace) -> None:
        self.asked, self.server, self._file = asked, root / "server", root / "kept.json"
        self.folders, unseen = [root / str(number) for number in range(SITES)], root / "unseen"
        if not self._file.is_file():
            made(root, asked.seeds[0], asked, patients=CANDIDATES * asked.labelled + asked.unlabelled)
            rows = [[asdict(row) for row in rows_of_site(folder)] for folder in self.folders]
            self._file.write_text(json.dumps({"seed": asked.seeds[0], "rows": rows, "starts": {}}), encoding="utf-8")
        self._content = json.loads(self._file.read_text(encoding="utf-8"))
        self._rows = [[PatientRow(**row) for row in rows] for rows in self._content["rows"]]
        self._unseen = Site.open(unseen)
        for kind in asked.kinds:
            self._start(kind)

    def _name(self, kind: str) -> str:
        return f"{kind}, {self.asked.pretraining_rounds} rounds"

    def _start(self, kind: str) -> None:
        """Make the start of a kind, with the labels of the folder's first seed, if it is not there."""
        starts, seed = self._content["starts"], self._content["seed"]
        if self._name(kind) not in starts:
            self._label(seed)
            starts[self._name(kind)] = start_of(kind, seed, self.asked, self.server, self.folders)
            self._file.write_text(json.dumps(self._content), encoding="utf-8")

    def _label(self, seed: int) -> None:
        """Draw the patients who have labels. All others of the candidates are left out."""
        for place, (folder, rows) in enumerate(zip(self.folders, self._rows, strict=True)):
            candidates, others = rows[: -self.asked.unlabelled], rows[-self.asked.unlabelled :]
            drawn = np.random.default_rng((seed, place)).permutation(len(candidates))[: self.asked.labelled]
            labelled = [candidates[index] for index in sorted(drawn)]
            unlabel(folder, [*labelled, *others], labelled)

    def areas(self, seed: int) -> dict[str, dict[str, float]]:
        self._label(seed)
        starts = self._content["starts"]
        return areas_of(
            seed, self.asked, self.server, self.folders, self._unseen, lambda kind: str(starts[self._name(kind)])
        )


def stored() -> list[dict[str, Any]]:
    """Return the seeds of all sizes."""
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else []


def size_of(asked: argparse.Namespace) -> dict[str, int]:
    sizes = ("labelled", "unlabelled", "judging", "rounds", "pretraining_rounds")
    return {name: getattr(asked, name) for name in sizes} | {
        "kept": int(asked.keep is not None),
        "quick": int(asked.quick),
    }


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables of all sizes as Markdown."""
    lines = ["# First weights from a pretraining without labels", ""]
    for size in _sizes(rows):
        lines += _section(size, [each for each in rows if each["size"] == size])
    lines += _shorter(rows) + _half(rows)
    lines += ["`benchmarks/pretraining.py` explains the rows.", ""]
    return "\n".join(lines)


def _section(size: dict[str, int], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of one size."""
    usual, *others = [name for name in FIRST if name in rows[0]["areas"]]
    of = {(name, label): [each["areas"][name][label] for each in rows] for name in (usual, *others) for label in LABELS}
    table = [[name, *(interval(of[name, label]) for label in LABELS)] for name in (usual, *others)]
    for name in others:
        gains = (np.subtract(of[name, label], of[usual, label]) for label in LABELS)
        table.append([f"{name} less {usual}", *(interval(gain) for gain in gains)])
    about = rows[-1]["about"]
    quick, usual = "in the quick form of learning.py (24 x 32 x 32 voxels, ResNet-10)", "in the default form"
    form = f"{quick}, " if size["quick"] else f"{usual} ({' x '.join(map(str, Preprocessing().shape))} voxels), "
    kept = "one pretraining of each kind for all seeds, " if size["kept"] else ""
    rounds = f"{size['rounds']} rounds of the study, " if size["rounds"] else ""
    return [
        f"{about['date']}; {about['machine']}. {SITES} synthetic hospitals, each with {size['labelled']} patients with "
        f"labels and {size['unlabelled']} without, {form}{rounds}{size['pretraining_rounds']} rounds of "
        f"pretraining, {kept}{len(rows)} seeds; 95 % intervals over the seeds, differences paired by seed.",
        "",
        *markdown(["AUROC at the unseen hospital", *LABELS], table),
    ]


def _shorter(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how studies of other than the usual rounds compare with the usual study from the seed, by seed."""
    usual = next(iter(FIRST))
    less: Differences = {}
    for name in FIRST:
        for size in _sizes(rows):
            if size["rounds"]:
                what = f"{size['labelled']} labels: {_rounds(size)} {name} less the usual rounds {usual}"
                _add(less, what, rows, size, name, size | {"rounds": 0})
    return _table("fewer rounds", less)


def _half(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how half of the labels after a pretraining compare with all of them from the seed, by seed.

    Studies of other than the usual rounds are compared with studies of both lengths.
    """
    usual, *others = FIRST
    less: Differences = {}
    for name in others:
        for size in _sizes(rows):
            for rounds in dict.fromkeys((size["rounds"], 0)):
                twice = size | {"labelled": 2 * size["labelled"], "rounds": rounds}
                half = f"{size['labelled']} labels, {_rounds(size)}, {name} ({size['pretraining_rounds']} rounds)"
                what = f"{half} less {twice['labelled']}, {_rounds(twice)}, {usual}"
                _add(less, what, rows, size, name, twice)
    return _table("half of the labels", less)


def _sizes(rows: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    return [json.loads(size) for size in dict.fromkeys(json.dumps(each["size"]) for each in rows)]


def _add(
    less: Differences,
    what: str,
    rows: Sequence[dict[str, Any]],
    size: dict[str, int],
    name: str,
    other: dict[str, int],
) -> None:
    """Add the differences of a model of one size to the model from the seed of another size, of the same seeds."""
    usual = next(iter(FIRST))
    of_other = {each["seed"]: each["areas"][usual] for each in rows if each["size"] == other}
    found = [
        [each["areas"][name][label] - of_other[each["seed"]][label] for label in LABELS]
        for each in rows
        if each["size"] == size and name in each["areas"] and each["seed"] in of_other
    ]
    if found:
        less.setdefault(what, []).extend(found)


def _table(head: str, less: Differences) -> list[str]:
    rows = [[what, *map(interval, zip(*found, strict=True))] for what, found in less.items()]
    return markdown([head, *LABELS], rows) if rows else []


def _rounds(size: dict[str, int]) -> str:
    return f"{size['rounds']} rounds" if size["rounds"] else "the usual rounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=int, default=90, help="patients with labels of each hospital")
    parser.add_argument("--unlabelled", type=int, default=900, help="patients without labels of each hospital")
    parser.add_argument("--judging", type=int, default=300, help="patients of the unseen hospital")
    parser.add_argument("--rounds", type=int, default=0, help="of each study of labels; 0: those of configs/study.toml")
    parser.add_argument("--pretraining-rounds", type=int, default=5, help="of each pretraining; 0: as above")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(101, 109)))
    kinds = [kind for kind in FIRST.values() if kind != "labels"]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="of pretraining")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="hospitals and starts for all seeds")
    parser.add_argument("--workers", type=int, default=1, help="processes that make the scans")
    parser.add_argument("--small", action="store_true", help="scans of 16 voxels a side and the smallest network")
    parser.add_argument("--quick", action="store_true", help="the quick form of learning.py: coarse scans, ResNet-10")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    kept = Kept(asked.keep, asked) if asked.keep and not asked.tables else None
    known = [] if asked.small else stored()
    for seed in () if asked.tables else asked.seeds:
        if any(each["seed"] == seed and each["size"] == size_of(asked) for each in known):
            continue
        if kept:
            areas = kept.areas(seed)
        else:
            with tempfile.TemporaryDirectory() as folder:
                areas = alone(seed, asked, Path(folder))
        known = [*(known if asked.small else stored()), {"seed": seed, "size": size_of(asked), "areas": areas}]
        known[-1]["about"] = circumstances()
        if not asked.small:  # other processes add theirs meanwhile
            STORE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    text = page(known)
    if not asked.small:
        (RESULTS / "pretraining.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
