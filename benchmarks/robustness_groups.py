"""Hostile hospitals in studies with secure aggregation: one sum over all hospitals, or a median of sums over groups.

    python benchmarks/robustness_groups.py [--seeds 10]

Writes results/robustness_groups.json and .md, and goes on with what the JSON file has: remove it after a change. The
task is the small one of robustness.py, with 3 to 15 hospitals. The sums are those of the product without the
masks, which cancel: the gateway's clip, the fixed-point words, the groups that follow from the list of hospitals, and
the median. Not in `make bench`: about a minute of one core for each seed.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the task of the tests

import numpy as np
from learning_tables import Mean as Interval
from robustness_tables import signed

RESULTS = Path(__file__).with_name("results")
UNMASKED, ONE_SUM = "CenteredClip, unmasked", "one sum"
IN_CLIP = ("reversed update", "inner product, 4 times", "label flip, at the bound", "ALIE", "backdoor")
FILLED = "changed gateway: the range filled"
LONG, LONG_MOMENTS = "changed gateway: as long as is allowed", "changed gateway: as long, and moments"
CHANGED = (FILLED, LONG, LONG_MOMENTS)
NOBODY = "nobody"
SIZES = {3: (0,), 5: (0,), 7: (0,), 9: (0, 3), 12: (0, 3), 15: (0, 3, 5)}
KINDS = ("alike", "label shift", "feature shift", "size")


@dataclass(frozen=True)
class Job:
    """One study of 4 rounds. `groups`: how many; 0 for one sum, -1 for CenteredClip without masks.

    `hostile`: how many, of which `together` says whether they are in one group. `missing`: whether one honest hospital
    of another group is missing in every round.
    """

    groups: int
    kind: str
    sites: int
    attack: str
    seed: int
    hostile: int = 1
    together: bool = False
    missing: bool = False


def jobs(seed: int) -> list[Job]:
    """Return all studies of a seed."""
    made = []
    for sites, counts in SIZES.items():
        for groups in (-1, *counts):
            attacks = (*IN_CLIP, *(CHANGED if groups >= 0 else ()))
            one = Job(groups, KINDS[0], sites, NOBODY, seed)
            made += [replace(one, kind=kind) for kind in KINDS]
            made += [replace(one, attack=attack) for attack in attacks]
            few = [attack for attack in attacks if attack in (IN_CLIP[0], IN_CLIP[2], LONG)]
            made += [replace(one, kind=kind, attack=attack) for kind in KINDS[1:] for attack in few]
            for together in (False, True) if groups > 0 else (False,):
                made += [replace(one, attack=attack, hostile=2, together=together) for attack in attacks]
            if groups >= 0:
                made += [replace(one, missing=True, attack=attack) for attack in (NOBODY, IN_CLIP[0], LONG)]
    return made


def roster_of(sites: int, seed: int) -> Any:
    """Return a list of hospitals with other keys, and so other groups, for each seed."""
    from federation.secure_aggregation.roster import Member, Roster

    keys = {f"site-{n:02}": hashlib.sha256(f"{seed}|{n}".encode()).digest() for n in range(1, sites + 1)}
    return Roster(members=tuple(Member(name=name, key=key) for name, key in keys.items()))


def places_of(job: Job) -> tuple[list[list[int]], list[int], list[int]]:
    """Return the hospitals (1, 2, ...) of each group, the hostile ones, and those that are missing."""
    from federation.secure_aggregation.groups import groups_of

    rosters = groups_of(roster_of(job.sites, job.seed), max(job.groups, 0))
    groups = [[int(name[-2:]) for name in roster.by_name] for roster in rosters]
    first = (job.sites + 1) // 2
    own = next(group for group in groups if first in group)
    others = [n for n in range(1, job.sites + 1) if n not in own] or [n for n in own if n != first]
    mates = [n for n in own if n != first]
    hostile = [] if job.attack == NOBODY else [first, *(mates if job.together else others)][: job.hostile]
    return groups, hostile, others[-1:] if job.missing else []


# --- one sum, or sums over groups ---------------------------------------------------------------------------


def play_sums(job: Job, at: Sequence[Any]) -> tuple[Any, int]:
    """Run a study whose server learns sums only; return the model and how many rounds were lost."""
    from federation.coordinator.masked_strategy import LONGEST, LONGEST_FIRST
    from federation.protocol.batch_norm import MEAN, VARIANCE
    from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS, pack
    from federation.protocol.reply_validation import length
    from federation.secure_aggregation import reasons
    from federation.secure_aggregation.group_median import GroupSum, Moments, median_of
    from federation.secure_aggregation.reply_vector import Settings, mean_of
    from federation.secure_aggregation.roster import threshold_of
    from models.refusal import Refusal
    from tests.helpers.toy_task import ROUNDS, Model, fresh

    groups, hostile, missing = places_of(job)
    arrays, buffers = pack(deepcopy(fresh(job.seed)))
    model, last, lost = Model(arrays, buffers), 0.0, 0
    mean_name, variance_name = BATCH_NORM + MEAN, BATCH_NORM + VARIANCE
    for _ in range(ROUNDS):
        clip = LONGEST * last if last else LONGEST_FIRST * length(model.arrays)
        replies = _replies(job, at, model, hostile, missing, clip)
        sums, before = [], Moments(*(model.buffers[name].astype(float) for name in (mean_name, variance_name)))
        try:
            for group in groups:
                settings = Settings(
                    weights=model.arrays[WEIGHTS].size,
                    channels=model.buffers[mean_name].size,
                    figures=(),
                    patients=sum(each.patients for each in at),
                    longest=clip,
                    sites=len(group),
                )
                here = {n: replies[n] for n in group if n in replies}
                if len(here) >= threshold_of(len(group)):
                    total = _total(job, model, here, [n for n in here if n in hostile], settings)
                    sums.append(GroupSum(total, settings, tuple(map(str, here))))
            if not job.groups and (not sums or sums[0].length is None):  # longer than unchanged gateways make it
                raise Refusal(reasons.SECAGG_RANGE)
            if job.groups:
                mean = median_of(sums, len(groups), before)
            else:
                mean = mean_of(sums[0].total, sums[0].settings, len(sums[0].names))
        except Refusal:  # also of a gateway whose numbers are too large after the model was spoilt
            lost += 1
            continue
        weights = model.arrays[WEIGHTS]
        moved = {WEIGHTS: (weights + mean.changes).astype(weights.dtype)}
        pooled = {mean_name: mean.means.astype(np.float32), variance_name: mean.variances.astype(np.float32)}
        model, last = Model(moved, {**model.buffers, **pooled}), mean.length
    return model, lost


def _replies(
    job: Job, at: Sequence[Any], model: Any, hostile: Sequence[int], missing: Sequence[int], clip: float
) -> dict[int, Any]:
    """Return what each hospital's gateway would sum; hostile ones that keep their gateway stay within the clip."""
    from federation.protocol.reply_validation import length
    from tests.helpers.hostile_sites import ATTACKS, View
    from tests.helpers.toy_task import train

    after = {n: train(model, each)[0] for n, each in enumerate(at, start=1) if n not in missing}
    others = [after[n] for n in after if n not in hostile]
    # A hostile hospital's view has the bound on weights; its attacks here leave the moments alone.
    bound = length(model.arrays) if math.isinf(clip) else clip
    if job.attack in ATTACKS:
        for n in hostile:
            after[n] = ATTACKS[job.attack](View(model, after[n], others, at[n - 1], lambda norms, size: bound))
    return {n: (at[n - 1].patients, each) for n, each in after.items()}


def _total(job: Job, model: Any, replies: dict[int, Any], hostile: Sequence[int], settings: Any) -> np.ndarray:
    """Return the sum of the replies' words. A changed gateway adds what makes the sum as bad as the words can hold."""
    from federation.protocol.batch_norm import MEAN, VARIANCE
    from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS
    from federation.secure_aggregation.fixed_point import WIDE_WORDS, to_narrow, to_wide
    from federation.secure_aggregation.reply_vector import Reply, vector
    from federation.secure_aggregation.update_checks import clip_factor

    def words(n: int) -> np.ndarray:
        patients, after = replies[n]
        changes = after.arrays[WEIGHTS].astype(np.float64) - model.arrays[WEIGHTS]
        scale = clip_factor([changes], longest=settings.longest, weights=settings.weights)
        means, variances = (after.buffers[BATCH_NORM + kind] for kind in (MEAN, VARIANCE))
        return np.concatenate(list(vector(Reply(patients, {}, means, variances, [changes], scale), settings)))

    total = np.sum([words(n) for n in replies], axis=0, dtype=np.uint32)
    if hostile and job.attack in CHANGED:
        share = sum(patients for patients, _ in replies.values()) / settings.patients
        honest = np.mean([a.arrays[WEIGHTS] - model.arrays[WEIGHTS] for n, (_, a) in replies.items()], axis=0)
        wanted = -np.sign(honest.astype(np.float64)) * settings.limit
        if job.attack != FILLED:
            wanted = -share * 0.999 * settings.longest * honest.astype(np.float64) / np.linalg.norm(honest)
        total[-settings.weights :] = to_narrow(wanted, limit=settings.limit, share=1.0, sites=settings.sites)
        if job.attack == LONG_MOMENTS:  # the channels' means half up and half down, by a thousand
            means = 1000.0 * (1 - 2.0 * (np.arange(settings.channels) % 2))
            wide = np.concatenate([[1.0], means, means**2])
            offsets = np.uint32(len(replies) - 1) * to_wide(0 * wide, share=1.0)
            total[: WIDE_WORDS * settings.wide] = to_wide(wide, share=share) + offsets
    return total


# --- CenteredClip, which sees each update -------------------------------------------------------------------


def play_unmasked(job: Job, at: Sequence[Any]) -> tuple[Any, int]:
    """Run a study with CenteredClip and the real guard; return the model and how many rounds were lost."""
    from flwr.app import Message

    from federation.protocol.flat_weights import pack
    from federation.protocol.reply_validation import encode
    from federation.strategy.flower_strategies import build_strategy
    from federation.strategy.guarded import GuardedStrategy, RoundRules, StartState
    from tests.helpers.fake_grid import over_the_wire
    from tests.helpers.hostile_sites import ATTACKS, View, twice_the_median
    from tests.helpers.toy_task import LOSS, MAX_EXAMPLES, ROUNDS, Model, Sites, fresh, model_in

    _, hostile, _ = places_of(job)

    class Hospitals(Sites):
        """Hospitals of which several may be hostile; these know the others' replies."""

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            if not (asked := [over_the_wire(message) for message in messages]):  # evaluation asks nobody
                return []
            content = {m.metadata.dst_node_id: self._honest(m, self.at[m.metadata.dst_node_id - 1]) for m in asked}
            before, after = model_in(asked[0].content), {node: model_in(each) for node, each in content.items()}
            others = [each for node, each in after.items() if node not in hostile]
            for node in hostile:
                view = View(before, after[node], others, self.at[node - 1], twice_the_median)
                content[node]["arrays"] = encode(ATTACKS[job.attack](view).arrays)
            return [over_the_wire(Message(content[m.metadata.dst_node_id], reply_to=m)) for m in asked]

    arrays, buffers = pack(deepcopy(fresh(job.seed)))
    rules = RoundRules(
        quorum=3,
        metrics=LOSS,
        max_examples=MAX_EXAMPLES,
        enrolled={n: each.patients for n, each in enumerate(at, start=1)},
    )
    reports: list[Any] = []
    strategy = build_strategy("CenteredClip", {})
    guard = GuardedStrategy(strategy, rules, StartState(buffers=buffers), on_round=reports.append)
    guard.start(Hospitals(at, None, 0, lambda _: ()), encode(arrays), num_rounds=ROUNDS)
    return Model(guard.arrays, guard.buffers), sum(report.lost for report in reports)


def run(job: Job) -> dict[str, float]:
    """Run one study in a worker process; return its AUROC, the backdoor's success, and how many rounds were lost."""
    from tests.helpers.toy_task import auroc, backdoor_success, hospitals

    at = hospitals(job.kind, job.sites, job.seed)
    model, lost = (play_unmasked if job.groups < 0 else play_sums)(job, at)
    finite = all(np.isfinite(each).all() for each in (*model.arrays.values(), *model.buffers.values()))
    return {
        "auroc": auroc(model, job.seed) if finite else 0.5,
        "backdoor": backdoor_success(model, job.seed) if finite else math.nan,
        "lost_rounds": lost,
    }


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # Flower logs every round


# --- the page -----------------------------------------------------------------------------------------------


class Found:
    """Lookup of the studies by their settings."""

    def __init__(self, outcomes: Sequence[dict[str, Any]]) -> None:
        self.auroc: dict[Job, float] = {}
        self.other: dict[Job, dict[str, float]] = {}
        for each in outcomes:
            job = Job(**{name: each[name] for name in Job.__dataclass_fields__})
            self.auroc[job], self.other[job] = each["auroc"], each
        self.seeds = sorted({job.seed for job in self.auroc})

    def change(self, groups: int, sites: int, attack: str, **other: Any) -> str:
        """Return the AUROC's change against one sum of honest hospitals of the same kind, with its interval."""
        jobs = [Job(groups, other.get("kind", KINDS[0]), sites, attack, seed, **_rest(other)) for seed in self.seeds]
        jobs = [job for job in jobs if job in self.auroc]
        if not jobs:
            return "–"
        base = [Job(0, job.kind, job.sites, NOBODY, job.seed) for job in jobs]
        lost = sum(self.other[job]["lost_rounds"] for job in jobs) / (4 * len(jobs))
        text = signed([self.auroc[job] - self.auroc[one] for job, one in zip(jobs, base, strict=True)])
        return text + (f" ({lost:.0%} of rounds lost)" if lost else "")

    def backdoor(self, groups: int, sites: int, attack: str) -> str:
        jobs = [Job(groups, KINDS[0], sites, attack, seed) for seed in self.seeds]
        rates = [self.other[job]["backdoor"] for job in jobs if job in self.other]
        return f"{np.mean(rates):.2f}" if rates else "–"

    def count(self, sites: int) -> int:
        """Return how many seeds there are with so many hospitals."""
        return sum(Job(0, KINDS[0], sites, NOBODY, seed) in self.auroc for seed in self.seeds)


def _rest(about: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key != "kind"}


def _name(groups: int, sites: int) -> str:
    if groups < 0:
        return UNMASKED
    return ONE_SUM if not groups else f"median of {groups} groups of {sites // groups}"


def page(outcomes: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    found = Found(outcomes)
    honest = [found.auroc[Job(0, KINDS[0], 9, NOBODY, seed)] for seed in found.seeds]
    lines = [
        "# Hostile hospitals in studies with secure aggregation",
        "",
        "Synthetic data only; see benchmarks/robustness_groups.py.",
        "",
        f"Small task: mean change of the AUROC on held-out patients against one sum of "
        f"honest hospitals of the same kind (9 alike: {Interval.of(honest)}), and half of its 95 % interval (Student's "
        "t over the seeds). A hostile hospital knows all updates. It keeps its gateway, which cuts its update to three "
        "lengths of the last mean, or it has a changed gateway, which adds what it likes: so much that the sum holds "
        "the largest numbers that its words can hold, or so that the mean is reversed and just as long as a single "
        "update may be. A sum whose mean is longer is not used. Without the vote on the model.",
        "",
    ]
    for sites, counts in SIZES.items():
        columns = (-1, *counts)
        rows = [("nobody hostile", dict[str, Any](attack=NOBODY))]
        rows += [(f"one: {attack}", dict(attack=attack)) for attack in (*IN_CLIP, *CHANGED)]
        rows += [
            (f"two{', ' + where if any(counts) else ''}: {attack}", dict(attack=attack, hostile=2, together=together))
            for together, where in ((False, "in two groups"), (True, "in one group"))
            if any(counts) or not together
            for attack in (*IN_CLIP[:3], LONG)
        ]
        rows += [
            (f"{kind}: {'nobody hostile' if attack == NOBODY else attack}", dict(attack=attack, kind=kind))
            for kind in KINDS[1:]
            for attack in (NOBODY, IN_CLIP[0], IN_CLIP[2], LONG)
        ]
        rows += [
            (
                f"one honest missing: {attack if attack != NOBODY else 'nobody hostile'}",
                dict(attack=attack, missing=True),
            )
            for attack in (NOBODY, IN_CLIP[0], LONG)
        ]
        if not found.count(sites):
            continue
        lines += [
            f"## {sites} hospitals, {found.count(sites)} seeds",
            "",
            f"| | {' | '.join(_name(each, sites) for each in columns)} |",
        ]
        lines += [f"| --- |{' --- |' * len(columns)}"]
        for label, about in rows:
            cells = [found.change(each, sites, **about) for each in columns]
            lines += [f"| {label} | {' | '.join(cells)} |"]
        for label, attack in (("backdoor: its success", "backdoor"), ("backdoor: without the attack", NOBODY)):
            lines += [f"| {label} | {' | '.join(found.backdoor(each, sites, attack) for each in columns)} |"]
        lines += [""]
    return "\n".join(lines)


def write(outcomes: Sequence[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "robustness_groups.json").write_text("[\n" + ",\n".join(map(json.dumps, outcomes)) + "\n]\n")
    (RESULTS / "robustness_groups.md").write_text(page(outcomes))


def read() -> dict[Job, dict[str, Any]]:
    """Return the outcomes of an earlier call."""
    file = RESULTS / "robustness_groups.json"
    found = json.loads(file.read_text()) if file.is_file() else []
    return {Job(**{name: each[name] for name in Job.__dataclass_fields__}): each for each in found}


def outcomes_of(seeds: Iterable[int], processes: int, known: Container[Job]) -> Iterable[list[dict[str, Any]]]:
    """Yield the outcomes of each seed in turn, without those that are known."""
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_worker) as pool:
        for seed in seeds:
            what = [job for job in jobs(seed) if job not in known]
            yield [asdict(job) | found for job, found in zip(what, pool.map(run, what, chunksize=4), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    known, begun = read(), time.monotonic()
    found = list(known.values())
    for seed, outcomes in enumerate(outcomes_of(range(chosen.seeds), chosen.processes, known)):
        found += outcomes
        write(found)
        print(f"seed {seed} done after {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
