"""Does a federation learn as much as pooled training? The defaults that a user gets, on synthetic hospitals.

    make learning                             all kinds and seeds, on all cores; about four hours on two
    python benchmarks/learning.py --tables    only the tables, from the cells that are there
    python benchmarks/learning.py --form quick --kinds "8 small" --seeds 101 102 --methods pooled ours \\
        --set study.rounds=40 study.local_epochs=1   other settings, on seeds that the tables do not have

A cell is one trained model: a kind of difference, a seed and a method. Finished cells are lines of
results/learning/cells.jsonl, or of another folder (`--cells DIR`), so that the tables can be made again, and an
interrupted run goes on where it was. Each names the settings it was trained with, and cells of different settings are
never mixed. After a change of the defaults the tables are those of the earlier settings, until as many cells are made
again; one more table compares both, seed by seed. `learning_sites` has the hospitals, `learning_methods` the methods,
`learning_tables` the tables.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np
from common import Part
from learning_methods import ALONE, NAIVE, NAIVE_EPOCHS, OURS, POOLED, Cost, Job, methods, trained
from learning_sites import FORMS, KINDS, Form, Order, areas, orders, test_orders, write

SEEDS = tuple(range(1, 21))
# The seeds of each kind in the full table; see docs/learning.md for why they are not twenty everywhere.
FULL = {"8 small": 20, "label": 4, "scanner": 4, "size": 4, "20 small": 2}
CELLS = "cells.jsonl"
CELLS_FOLDER = Path(__file__).parent / "results" / "learning"
COHORTS_FOLDER = Path(__file__).parents[1] / "build" / "learning"


@dataclass(frozen=True)
class Cell:
    """A finished model: its AUROC by test hospital and label, its cost, its logits and the labels (patients, labels).

    `settings`: digest of everything that the cell depends on, except seed and method. Labels that are not known are
    NaN.
    """

    settings: str
    form: str
    kind: str
    seed: int
    method: str
    areas: dict[str, dict[str, float]]
    logits: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    cost: Cost

    @property
    def key(self) -> tuple[str, int, str]:
        return self.kind, self.seed, self.method

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "logits": _packed(self.logits), "targets": _packed(self.targets)})

    @classmethod
    def from_json(cls, line: str) -> Self:
        content: dict[str, Any] = json.loads(line)
        arrays = {name: _unpacked(content[name]) for name in ("logits", "targets")}
        return cls(**{**content, **arrays, "cost": Cost(**content["cost"])})


def _packed(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: base64.b64encode(each.astype("<f2").tobytes()).decode("ascii") for name, each in arrays.items()}


def _unpacked(packed: dict[str, str]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(base64.b64decode(each), "<f2").reshape(-1, 2).astype(np.float32)
        for name, each in packed.items()
    }


def cell_settings(form: Form, kind: str) -> str:
    """Return a digest of what the cells of a kind depend on: the study, the hospitals, how scans are prepared here, and
    the method of comparison.
    """
    places = KINDS[kind].places
    study = form.settings(0, len(places)).model_dump_json()
    described = f"{study}|{places}|{test_orders(Path(), replace(form, name=''), 0)}|{NAIVE_EPOCHS}|{form.golden}"
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def read_cells(folder: Path, form: Form) -> dict[tuple[str, int, str], Cell]:
    """Return the finished cells of a form whose settings are today's; the last of a key counts."""
    today = {kind: cell_settings(form, kind) for kind in KINDS}
    return {cell.key: cell for cell in _finished(folder, form) if cell.settings == today[cell.kind]}


def read_earlier_cells(folder: Path, form: Form) -> dict[tuple[str, int, str], Cell]:
    """Return the finished cells of the settings before today's if they are more than those of today's, otherwise none.

    A change of a study's defaults leaves such cells. Tables of them are better than tables of a few new cells, until
    `make learning` has made as many again.
    """
    today = {kind: cell_settings(form, kind) for kind in KINDS}
    others = [cell for cell in _finished(folder, form) if cell.settings != today[cell.kind]]
    last = {cell.kind: cell.settings for cell in others}
    earlier = {cell.key: cell for cell in others if cell.settings == last[cell.kind]}
    return earlier if len(earlier) > len(read_cells(folder, form)) else {}


def _finished(folder: Path, form: Form) -> list[Cell]:
    """Return all cells of a form. A last line without an end was being written when the run was interrupted."""
    file = folder / CELLS
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    cells = [Cell.from_json(line) for line in lines if line.endswith("\n")]
    return [cell for cell in cells if cell.form == form.name and cell.kind in KINDS]


def run(job: Job) -> Cell:
    """Train one model and apply it to the test hospitals, in a worker process."""
    from federation.client.site_tasks import load_examples
    from pipeline.training.train import predict

    network, cost = trained(job)
    found, logits, targets = {}, {}, {}
    for order in test_orders(job.root, job.form, job.seed):
        examples = load_examples(_opened(order), job.settings(), "train", "validation", "test")
        name = order.place.at.name
        logits[name], targets[name] = predict(network, examples), examples.targets
        found[name] = areas(logits[name], examples.targets)
    settings = cell_settings(job.form, job.kind)
    return Cell(settings, job.form.name, job.kind, job.seed, job.method, found, logits, targets, cost)


def _opened(order: Order) -> Any:
    from pipeline.site.folder import Site

    return Site.open(order.folder)


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # Flower logs every round


@dataclass(frozen=True)
class Plan:
    """Which cells to make: of a form, the seeds of each kind. `only`: the methods; empty: all."""

    form: Form
    seeds: dict[str, Sequence[int]]
    only: Sequence[str] = ()

    def by_seed(self, root: Path) -> Iterator[tuple[int, list[Job]]]:
        """Yield the jobs of each seed in turn, those of the kinds with most seeds last."""
        for seed in sorted({seed for seeds in self.seeds.values() for seed in seeds}):
            kinds = [kind for kind, seeds in self.seeds.items() if seed in seeds]
            jobs = [Job(root, self.form, kind, seed, method) for kind in kinds for method in methods(kind)]
            yield seed, [job for job in jobs if not self.only or job.method in self.only]


def make_cells(plan: Plan, folder: Path, *, workers: int) -> None:
    """Make the cells that are missing, and append each to the file of cells when it is finished.

    The cohorts of a seed are kept in `build/learning`, and deleted when its cells are finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root, began, done = COHORTS_FOLDER, time.monotonic(), 0
    missing = [
        (seed, [j for j in jobs if j.key not in read_cells(folder, plan.form)]) for seed, jobs in plan.by_seed(root)
    ]
    count = sum(len(jobs) for _, jobs in missing)
    _end_last_line(folder / CELLS)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        for seed, jobs in missing:
            if not jobs:
                continue
            kinds = {job.kind for job in jobs}
            wanted = [
                *test_orders(root, plan.form, seed),
                *(o for kind in kinds for o in orders(root, plan.form, kind, seed)),
            ]
            list(pool.map(write, {order.folder: order for order in wanted}.values()))
            largest_first = sorted(jobs, key=lambda job: -_work(job))
            for future in as_completed([pool.submit(run, job) for job in largest_first]):
                cell = future.result()
                with (folder / CELLS).open("a") as file:
                    file.write(cell.to_json() + "\n")
                done += 1
                print(progress(cell, done, count, time.monotonic() - began), flush=True)
            for used in (plan.form.cohorts(root) / str(seed), root / "runs"):
                shutil.rmtree(used, ignore_errors=True)


def _work(job: Job) -> int:
    """Return the number of patients that a job trains on."""
    return sum(p.patients for p in KINDS[job.kind].places if not job.method.endswith(ALONE) or p.at.name in job.method)


def _end_last_line(file: Path) -> None:
    """Remove a line that was being written when a run was interrupted."""
    if file.exists() and (text := file.read_text()) and not text.endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1])


def progress(cell: Cell, done: int, count: int, seconds: float) -> str:
    """Return a line about a finished cell."""
    figures = ", ".join(f"{label} {value:.3f}" for label, value in cell.areas["unseen"].items())
    left = seconds / done * (count - done) / 60
    return f"{done} of {count}, about {left:.0f} minutes left: {cell.kind}, seed {cell.seed}, {cell.method}: {figures}"


def measure(folder: Path, *, is_short: bool = False) -> Part:
    """Make all cells and tables; the short form has one kind, three seeds, no local models and the coarse grids.

    The full form keeps its cells, so that it continues after an interruption.
    """
    from learning_tables import report

    form = FORMS["quick" if is_short else "default"]
    cells = folder if is_short else CELLS_FOLDER
    seeds = {"8 small": SEEDS[:3]} if is_short else {kind: SEEDS[:count] for kind, count in FULL.items()}
    only = [POOLED, OURS, NAIVE] if is_short else []
    make_cells(Plan(form, seeds, only), cells, workers=os.cpu_count() or 1)
    return report(read_cells(cells, form).values(), form)


def main(arguments: Iterable[str] | None = None) -> None:
    from learning_tables import report
    from run import as_stored, circumstances, store, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=CELLS_FOLDER, help="the folder of finished cells")
    parser.add_argument("--form", choices=FORMS, default="default")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(FULL), metavar="KIND")
    parser.add_argument("--seeds", type=int, nargs="+", help="the same for all these kinds")
    parser.add_argument("--methods", nargs="+", default=[], help="only these, such as: pooled ours")
    changes = "other settings of the study, such as study.rounds=40; only on seeds that are not reported"
    parser.add_argument("--set", nargs="+", default=[], metavar="TABLE.KEY=VALUE", help=changes)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--tables", action="store_true", help="make no cells, only the tables")
    chosen = parser.parse_args(arguments)
    seeds = {kind: chosen.seeds or SEEDS[: FULL[kind]] for kind in chosen.kinds}
    if chosen.set and set(chosen.seeds or SEEDS) & set(SEEDS):
        parser.error("settings must not be chosen on the seeds that are reported")
    try:
        form, before = FORMS[chosen.form].changed(chosen.set), circumstances()
    except ValueError as error:
        parser.error(f"argument --set: {error}")
    if not chosen.tables:
        make_cells(Plan(form, seeds, chosen.methods), chosen.cells, workers=chosen.workers)
    made = report(read_cells(chosen.cells, form).values(), form, read_earlier_cells(chosen.cells, form).values())
    print(table("learning", as_stored(made, before)))
    if form.name == "default" and not chosen.seeds:
        store("learning", made, before)


if __name__ == "__main__":
    main()
