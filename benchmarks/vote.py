"""What hostile hospitals cost a masked study, with one sum or with groups, and what the hospitals' vote changes.

    python benchmarks/vote.py [--seeds 3] [--honest-seeds 10]

Writes results/vote.json and results/vote.md, and goes on with what the JSON file has: remove it after a change. Not in
`make bench`. The small task is that of robustness.py; tests/helpers/masked_task.py has the attacks. About three minutes
of one idle core for each seed, and half a minute for each further seed with honest hospitals only.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the task of the tests

from learning_tables import Mean
from robustness_tables import signed, table

RESULTS = Path(__file__).with_name("results")
ROUNDS = 9  # the last one only judges: eight steps
NO_VOTE, BY_LOSS, VOTE = "no vote", "vote by the loss alone", "vote"
VOTES = (NO_VOTE, BY_LOSS, VOTE)
CLIPS, CHANGED = "unchanged gateway", "changed gateway"
WHEN = {"from round 1": (1, ROUNDS), "from round 5": (5, ROUNDS), "in round 5": (5, 5)}
SIZES = {3: (0,), 5: (0,), 9: (0, 3), 12: (0, 3)}
PIECE = 30  # studies, after which the results are written
KINDS = ("alike", "label shift", "feature shift", "size")
VALIDATION = (40, 12)  # patients of each hospital who judge
ATTACKS = {
    CHANGED: ("reversed update", "noise", "inner product, 4 times", "label flip"),
    CLIPS: ("reversed update", "noise", "inner product, 4 times", "label flip, at the bound"),
}


@dataclass(frozen=True)
class Job:
    """One study. `groups`: how many; 0 for one sum. `hostile`: how many hospitals, each in another group if possible.

    `when`: in which rounds they attack. `votes`: how hospitals judge. `validation`: patients of each who judge.
    """

    sites: int
    groups: int
    votes: str
    seed: int
    attack: str = ""
    gateway: str = CHANGED
    hostile: int = 0
    when: str = ""
    kind: str = KINDS[0]
    validation: int = VALIDATION[0]


def jobs(seed: int) -> list[Job]:
    """Return the studies of a seed with hostile hospitals, and those that they are compared with."""
    made = []
    for sites, counts in SIZES.items():
        for groups in counts:
            one = Job(sites, groups, VOTE, seed, hostile=1)
            made += [replace(one, votes=NO_VOTE, hostile=0)]
            for hostile in (1, 2) if sites >= 9 else (1,):
                for when in WHEN:
                    for votes in VOTES if when == "from round 5" else (VOTE,):
                        of_these = replace(one, votes=votes, hostile=hostile, when=when)
                        made += [replace(of_these, attack=attack) for attack in ATTACKS[CHANGED]]
            if sites in (3, 9) and not groups:
                unchanged = replace(one, when="from round 5", gateway=CLIPS)
                made += [
                    replace(unchanged, attack=attack, votes=votes)
                    for attack in ATTACKS[CLIPS]
                    for votes in (NO_VOTE, VOTE)
                ]
    # What matters most comes first: a run may be ended early, and go on later.
    return sorted(made, key=lambda job: (bool(job.attack), job.when != "from round 5", job.sites < 9))


def honest_jobs(seed: int) -> list[Job]:
    """Return the studies of a seed in which nobody is hostile."""
    return [
        Job(sites, groups, VOTE, seed, kind=kind, validation=validation)
        for sites, counts in SIZES.items()
        for groups in counts
        for kind in KINDS
        for validation in VALIDATION
    ]


def places_of(job: Job) -> tuple[int, ...]:
    """Return the hostile hospitals (1, 2, ...)."""
    from tests.helpers.masked_task import groups_in

    first = (job.sites + 1) // 2
    own = next(group for group in groups_in(job.sites, job.groups) if first in group)
    others = [n for n in range(1, job.sites + 1) if n not in own] or [n for n in own if n != first]
    return (first, *others)[: job.hostile]


def run(job: Job) -> dict[str, Any]:
    """Run one study in a worker process; return its AUROC and what became of its rounds."""
    from tests.helpers.masked_task import HostileHospitals, play_masked
    from tests.helpers.toy_task import auroc, hospitals

    hostile = None
    if job.attack:
        begins, ends = WHEN[job.when]
        hostile = HostileHospitals(job.attack, places_of(job), begins, ends, clips=job.gateway == CLIPS)
    found = play_masked(
        hospitals(job.kind, job.sites, job.seed),
        hostile,
        groups=job.groups,
        votes=job.votes != NO_VOTE,
        by_auroc=job.votes == VOTE,
        validation=job.validation,
        seed=job.seed,
        rounds=ROUNDS,
    )
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


# --- the page -----------------------------------------------------------------------------------------------

Outcome = dict[str, Any]


class Found:
    """Lookup of the studies by their settings."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.by_job = {job_of(each): each for each in outcomes}
        self.seeds = sorted({job.seed for job in self.by_job if job.attack})

    def cell(self, job: Job) -> str:
        """Return the AUROC's change against honest hospitals with one sum, studies ended early, steps taken back."""
        mine = {seed: self.by_job[each] for seed in self.seeds if (each := replace(job, seed=seed)) in self.by_job}
        if not mine:
            return "–"
        base = {seed: self.by_job[Job(job.sites, 0, NO_VOTE, seed)] for seed in mine}
        change = signed([mine[seed]["auroc"] - base[seed]["auroc"] for seed in mine])
        if job.votes == NO_VOTE:
            return change
        ended = sum(bool(each["stopped"]) for each in mine.values())
        undone = sum(each["undone"] for each in mine.values()) / len(mine)
        return f"{change} ({ended}/{len(mine)}, {undone:.1f})"

    def level(self, sites: int) -> Mean:
        return Mean.of([self.by_job[Job(sites, 0, NO_VOTE, seed)]["auroc"] for seed in self.seeds])

    def alarms(self) -> list[list[str]]:
        """Return for each kind of honest hospitals: studies, rounds, those with a vote against, steps taken back."""
        rows = []
        for kind in KINDS:
            for validation in VALIDATION:
                honest = [
                    each
                    for job, each in self.by_job.items()
                    if (job.attack, job.votes, job.kind, job.validation) == ("", VOTE, kind, validation)
                ]
                counts = [sum(each[what] for each in honest) for what in ("rounds", "voted", "undone")]
                rows.append([f"{kind}, {validation} validation patients", *map(str, (len(honest), *counts))])
        return rows


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the results as tables."""
    found = Found(outcomes)
    lines = [
        "# Hostile hospitals in masked studies, with and without the vote",
        "",
        f"Synthetic data only; see benchmarks/vote.py. Small task, FedAvg, {len(found.seeds)} seeds, {ROUNDS} rounds "
        "of which the last only judges. Mean change of the AUROC on held-out patients against honest hospitals with "
        "one sum, and half of its 95 % interval (Student's t over the seeds); then how many studies ended early of how "
        f"many, and how many steps were taken back in a study. {VALIDATION[0]} validation patients judge at each "
        "hospital.",
        "",
        "Hostile hospitals know all replies. An unchanged gateway cuts their update to the longest that it lets pass. "
        "With a changed gateway they choose the mean of their sum, as long as the server accepts it. Two work "
        "together: with groups they are in two groups and choose the same mean; with one sum the second adds only its "
        "vote. They never vote against a model.",
        "",
    ]
    for sites, counts in SIZES.items():
        for groups in counts:
            rows = []
            for gateway in (CHANGED, CLIPS):
                for hostile in (1, 2):
                    for attack in ATTACKS[gateway]:
                        for when in WHEN:
                            job = Job(sites, groups, VOTE, 0, attack, gateway, hostile, when)
                            cells = [found.cell(replace(job, votes=votes)) for votes in VOTES]
                            who = f"{('one', 'two')[hostile - 1]}, {gateway}" if sites >= 9 else gateway
                            rows += [] if set(cells) == {"–"} else [[f"{who}: {attack}, {when}", *cells]]
            honest = [found.cell(Job(sites, groups, votes, 0)) for votes in VOTES]
            what = f"median of {groups} groups" if groups else "one sum"
            title = f"{sites} hospitals, {what}; honest with one sum: AUROC {found.level(sites)}"
            lines += table(title, VOTES, [["nobody hostile", *honest], *rows])
    head = ["studies", "rounds", "with a vote that the model is much worse", "steps taken back"]
    return "\n".join([*lines, *table("Honest hospitals: false alarms", head, found.alarms())])


# --- running ------------------------------------------------------------------------------------------------


def job_of(outcome: Outcome) -> Job:
    return Job(**{name: outcome[name] for name in Job.__dataclass_fields__})


def read() -> list[Outcome]:
    """Return the outcomes of an earlier call."""
    file = RESULTS / "vote.json"
    return json.loads(file.read_text()) if file.is_file() else []


def write(outcomes: Sequence[Outcome], *, is_whole: bool) -> None:
    """Write the outcomes, and the page if all studies of a seed are there."""
    (RESULTS / "vote.json").write_text("[\n" + ",\n".join(map(json.dumps, outcomes)) + "\n]\n")
    if is_whole:
        (RESULTS / "vote.md").write_text(page(outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--honest-seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    found, begun = read(), time.monotonic()
    known = {job_of(each) for each in found}
    with ProcessPoolExecutor(chosen.processes, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        for seed in range(1, max(chosen.seeds, chosen.honest_seeds) + 1):
            what = (jobs(seed) if seed <= chosen.seeds else []) + honest_jobs(seed) * (seed <= chosen.honest_seeds)
            what = [job for job in what if job not in known]
            for start in range(0, len(what), PIECE):
                piece = what[start : start + PIECE]
                found += [asdict(job) | outcome for job, outcome in zip(piece, pool.map(run, piece), strict=True)]
                write(found, is_whole=start + PIECE >= len(what))
            print(f"seed {seed} done after {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
