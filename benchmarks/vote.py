"""What one hostile hospital costs a masked study, and what the hospitals' vote changes.

    python benchmarks/vote.py [--seeds 5]     writes results/vote.json and results/vote.md; not in `make bench`

The small task is that of robustness.py; tests/helpers/masked_task.py has the attacks. Some minutes of one idle core for
each seed.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the task of the tests

from learning_tables import Mean
from robustness_tables import signed, table

RESULTS = Path(__file__).with_name("results")
ROUNDS = 9  # the last one only judges: eight steps
BEGINS = {"from round 1": 1, "from round 5": 5}
CLIPPED, PATCHED, VOTE, PATCHED_VOTE = "clipped", "not clipped", "clipped, vote", "not clipped, vote"
WAYS = (CLIPPED, PATCHED, VOTE, PATCHED_VOTE)


@dataclass(frozen=True)
class Job:
    """One study. `way`: whether the hostile gateway clips, and whether hospitals vote. `begins`: in which round."""

    sites: int
    attack: str | None
    way: str
    begins: int
    seed: int
    kind: str = "alike"


def jobs(seed: int) -> list[Job]:
    """Return all studies of a seed."""
    from tests.helpers.masked_task import HOSTILE
    from tests.helpers.toy_task import KINDS

    honest = [Job(sites, None, way, 1, seed, kind) for sites in (3, 5, 7) for way in (CLIPPED, VOTE) for kind in KINDS]
    return honest + [
        Job(sites, attack, way, begins, seed)
        for sites in (3, 5, 7)
        for attack in HOSTILE
        for way in WAYS
        for begins in BEGINS.values()
    ]


def run(job: Job) -> dict[str, Any]:
    """Run one study in a worker process; return its AUROC and what became of its rounds."""
    from tests.helpers.masked_task import HostileHospital, play_masked
    from tests.helpers.toy_task import auroc, hospitals

    hostile = None
    if job.attack:
        place = (job.sites + 1) // 2
        hostile = HostileHospital(job.attack, place, job.begins, clips="not clipped" not in job.way)
    at = hospitals(job.kind, job.sites, job.seed)
    found = play_masked(at, hostile, votes="vote" in job.way, seed=job.seed, rounds=ROUNDS)
    return {
        "auroc": auroc(found.model, job.seed),
        "rounds": len(found.reports),
        "lost": sum(report.lost for report in found.reports),
        "undone": sum(len(report.undone) for report in found.reports),
        "voted": sum(bool(report.votes.get("worse")) for report in found.reports),
        "stopped": found.stopped,
    }


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # Flower logs every round


Outcome = dict[str, Any]


def page(found: Sequence[Outcome]) -> str:
    """Return the results as tables."""

    def by(**about: Any) -> dict[int, Outcome]:
        return {each["seed"]: each for each in found if all(each[key] == value for key, value in about.items())}

    seeds = len({each["seed"] for each in found})
    lines = [
        "# One hostile hospital in a masked study, with and without the vote",
        "",
        f"Synthetic data only; see benchmarks/vote.py. Small task, FedAvg, {seeds} seeds, {ROUNDS} rounds of which the "
        "last only judges. Mean change of the AUROC on held-out patients against honest hospitals, and half of its "
        "95 % interval (Student's t over the seeds); then how many studies ended early of how many, and how many "
        "rounds were taken back in a study.",
        "",
        "The hostile hospital knows all replies. `clipped`: it keeps to the longest update that a gateway lets pass. "
        "`not clipped`: its gateway is changed, and it chooses the mean as long as the server accepts it.",
        "",
    ]
    for sites in (3, 5, 7):
        base = by(sites=sites, attack=None, way=CLIPPED, kind="alike")
        level = Mean.of([each["auroc"] for each in base.values()])
        rows = []
        for attack in dict.fromkeys(each["attack"] for each in found if each["attack"]):
            for says, begins in BEGINS.items():
                row = [f"{attack}, {says}"]
                for way in WAYS:
                    mine = by(sites=sites, attack=attack, way=way, begins=begins)
                    change = signed([mine[seed]["auroc"] - base[seed]["auroc"] for seed in sorted(mine)])
                    ended = sum(bool(each["stopped"]) for each in mine.values())
                    undone = sum(each["undone"] for each in mine.values()) / len(mine)
                    row.append(change + (f" ({ended}/{len(mine)}, {undone:.1f})" if "vote" in way else ""))
                rows.append(row)
        lines += table(f"One hostile among {sites} hospitals; honest: AUROC {level}", WAYS, rows)
    alarms = []
    for kind in dict.fromkeys(each["kind"] for each in found):
        honest = [each for each in found if each["attack"] is None and each["way"] == VOTE and each["kind"] == kind]
        alarms.append([kind, *(str(sum(each[what] for each in honest)) for what in ("rounds", "voted", "undone"))])
    head = ["rounds", "with a vote that the model is much worse", "taken back"]
    return "\n".join([*lines, *table("Honest hospitals: false alarms", head, alarms)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    found: list[Outcome] = []
    with ProcessPoolExecutor(chosen.processes, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        for seed in range(1, chosen.seeds + 1):
            what = jobs(seed)
            found += [vars(job) | outcome for job, outcome in zip(what, pool.map(run, what, chunksize=4), strict=True)]
            (RESULTS / "vote.json").write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
            (RESULTS / "vote.md").write_text(page(found))
            print(f"seed {seed} done", flush=True)


if __name__ == "__main__":
    main()
