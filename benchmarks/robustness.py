"""The effect of one hostile hospital under each strategy, and the cost of each strategy for honest, different ones.

    python benchmarks/robustness.py [--seeds 10]             the small task of the tests; writes results/robustness.md
    python benchmarks/robustness.py --phantoms [--seeds 2]   the benchmark of learning, without hostile hospitals

Both write results/robustness.json, and each keeps the results of the other. The small task is a network with batch norm
on 12 synthetic features (tests/helpers/toy_task.py), in a study of 4 rounds with the real guard. Phantoms are the
synthetic hospitals of learning.py with a 3D network. Not in `make bench`: some two minutes of one core for each seed
of the small task, and three minutes for each seed of the phantoms.
"""

import argparse
import json
import logging
import math
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the task of the tests

from robustness_tables import write

RESULTS = Path(__file__).with_name("results")
PHANTOM_SEEDS = range(11, 31)

Options = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """A strategy; `norm_factor` is the guard's bound in multiples of the median update norm."""

    strategy: str
    options: Options
    least_sites: int = 3
    norm_factor: float = 2.0


AS_IT_WAS = "FedAvg, as it was"
CONTENDERS = {
    AS_IT_WAS: Contender("FedAvg", {}, norm_factor=math.inf),
    "FedAvg, clipped": Contender("FedAvg", {}),
    "FedMedian": Contender("FedMedian", {}),
    "CenteredClip": Contender("CenteredClip", {}),
    "FedTrimmedAvg": Contender("FedTrimmedAvg", {"beta": 0.2}, least_sites=5),
    "MultiKrum": Contender("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}, least_sites=5),
}


STRONGEST = ("reversed update", "inner product, 4 times", "label flip, at the bound")


@dataclass(frozen=True)
class Job:
    """One study. `place`: index of the hostile site; `silent_from`: the round from which the last site is missing."""

    contender: str
    kind: str
    sites: int
    attack: str | None
    place: int
    seed: int
    rounds: int = 4
    silent_from: int = 0


def jobs(seed: int) -> list[Job]:
    """Return all studies of a seed."""
    from tests.helpers.hostile_sites import ATTACKS
    from tests.helpers.toy_task import KINDS

    made = []
    for name, contender in CONTENDERS.items():
        for sites in (3, 5, 7):
            if sites >= contender.least_sites and (name, sites) != ("MultiKrum", 7):
                middle = Job(name, KINDS[0], sites, None, (sites + 1) // 2, seed)
                made += [replace(middle, attack=attack) for attack in (None, *ATTACKS)]
                made += [replace(middle, kind=kind) for kind in KINDS[1:]]
        if name not in (AS_IT_WAS, "MultiKrum"):
            five = Job(name, KINDS[0], 5, None, 3, seed)
            made += [replace(five, kind=kind, attack=attack) for kind in KINDS[1:] for attack in STRONGEST]
            made += [replace(five, kind="size", place=5, attack=attack) for attack in STRONGEST]
    for name in (AS_IT_WAS, "CenteredClip"):
        long = Job(name, KINDS[0], 5, None, 3, seed, rounds=12)
        made += [long, *(replace(long, attack=attack) for attack in STRONGEST if name != AS_IT_WAS)]
    for name in (AS_IT_WAS, "FedAvg, clipped", "CenteredClip"):
        two = Job(name, KINDS[0], 3, None, 2, seed, rounds=8, silent_from=4)
        made += [two, *(replace(two, attack=attack) for attack in ("reversed update", "label flip, at the bound"))]
    return made


def as_it_was(norms: Sequence[float], model: float) -> float:
    """The former bound: updates above ten median norms or a tenth of the model were refused instead of clipped."""
    return max(10 * statistics.median_low(norms), model / 10)


def run(job: Job) -> dict[str, float]:
    """Run one study in a worker process; return its AUROC, and the share of marked patients that it calls severe."""
    from tests.helpers.hostile_sites import ATTACKS, hostile, twice_the_median
    from tests.helpers.toy_task import auroc, backdoor_success, hospitals, play

    contender = CONTENDERS[job.contender]
    at = hospitals(job.kind, job.sites, job.seed)
    bound = as_it_was if job.contender == AS_IT_WAS else twice_the_median
    attacker = hostile(ATTACKS[job.attack], at[job.place - 1], bound) if job.attack else None
    trained = play(
        contender.strategy,
        contender.options,
        at,
        hostile=attacker,
        place=job.place,
        seed=job.seed,
        rounds=job.rounds,
        norm_factor=contender.norm_factor,
        absent=lambda number: (job.sites,) if job.silent_from and number >= job.silent_from else (),
    )
    lost = job.rounds - sum(not report.lost for report in trained.reports)
    backdoor = backdoor_success(trained.model, job.seed)
    return {"auroc": auroc(trained.model, job.seed), "backdoor": backdoor, "lost_rounds": lost}


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # Flower logs every round


def small_task(seeds: Iterable[int], processes: int) -> Iterable[list[dict[str, Any]]]:
    """Yield the outcomes of each seed in turn."""
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_worker) as pool:
        for seed in seeds:
            what = jobs(seed)
            yield [vars(job) | found for job, found in zip(what, pool.map(run, what, chunksize=4), strict=True)]


def phantoms(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Run FedAvg and the robust strategies possible with three sites on learning.py's hospitals, in its quick form."""
    from learning import Plan, make_cells, read_cells
    from learning_methods import OURS
    from learning_sites import FORMS, UNSEEN

    found = []
    with TemporaryDirectory() as folder:
        for name in ("FedAvg", "CenteredClip", "FedMedian"):
            form = FORMS["quick"].changed([f'strategy.name="{name}"'])
            plan = Plan(form, dict.fromkeys(("label", "scanner", "size"), seeds), only=[OURS])
            make_cells(plan, Path(folder), workers=os.cpu_count() or 1)
            found += [
                {"kind": cell.kind, "seed": cell.seed, "method": name, "unseen": cell.areas[UNSEEN]}
                for cell in read_cells(Path(folder), form).values()
            ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--phantoms", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    file = RESULTS / "robustness.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    if chosen.phantoms:
        found["phantoms"] = phantoms(PHANTOM_SEEDS[: chosen.seeds or 2])
        write(found, RESULTS)
        return
    found["small_task"] = []
    for outcomes in small_task(range(chosen.seeds or 10), chosen.processes):
        found["small_task"] += outcomes
        write(found, RESULTS)
        print(f"seed {outcomes[0]['seed']} done", flush=True)


if __name__ == "__main__":
    main()
