"""The results of robustness.py as tables; results/robustness.json contains every study."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning_tables import Mean

Outcome = dict[str, Any]
BASE = "FedAvg, as it was"
ALIKE = "alike"


class Found:
    """Lookup of the studies by their settings, in the order of their seeds."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.by_job: dict[tuple[Any, ...], dict[int, Outcome]] = defaultdict(dict)
        for each in outcomes:
            self.by_job[self._key(each)][each["seed"]] = each

    @staticmethod
    def _key(job: Outcome) -> tuple[Any, ...]:
        keys = ("contender", "kind", "sites", "attack", "place", "rounds", "silent_from")
        return tuple(job[key] for key in keys)

    def job(self, contender: str, sites: int, attack: str | None = None, **other: Any) -> dict[int, Outcome]:
        job = {"kind": ALIKE, "place": (sites + 1) // 2, "rounds": 4, "silent_from": 0} | other
        return self.by_job.get(self._key(job | {"contender": contender, "sites": sites, "attack": attack}), {})

    def lost(self, contender: str, sites: int, attack: str | None = None, **other: Any) -> str:
        """Return the AUROC's change against honest sites under the former mean, by seed, and its mean with interval."""
        honest = {key: value for key, value in other.items() if key != "place"}
        base, mine = self.job(BASE, sites, **honest), self.job(contender, sites, attack, **other)
        changes = [mine[seed]["auroc"] - base[seed]["auroc"] for seed in sorted(mine) if seed in base]
        return signed(changes)

    def backdoor(self, contender: str, sites: int, attack: str | None) -> str:
        rates = [each["backdoor"] for each in self.job(contender, sites, attack).values()]
        return f"{Mean.of(rates).value:.2f}" if len(rates) > 1 else "–"

    def values(self, key: str) -> list[Any]:
        """Return all values of a job's setting, in the order of their first study."""
        place = ("contender", "kind", "sites", "attack", "place", "rounds", "silent_from").index(key)
        return list(dict.fromkeys(job[place] for job in self.by_job))


def signed(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "–"
    mean = Mean.of(values)
    return f"{mean.value:+.3f} ± {mean.high - mean.value:.3f}"


def write(found: dict[str, Any], folder: Path) -> None:
    """Write the raw outcomes and the page."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(key) + ": [\n" + ",\n".join(map(json.dumps, value)) + "\n]" for key, value in found.items()]
    (folder / "robustness.json").write_text("{" + ",\n".join(lines) + "}\n")
    parts = [_small_task(Found(found["small_task"]))] if found.get("small_task") else []
    parts += [_phantoms(found["phantoms"])] if found.get("phantoms") else []
    intro = (
        "# One hostile hospital, and honest ones that differ\n\nSynthetic data only; see benchmarks/robustness.py.\n"
    )
    (folder / "robustness.md").write_text("\n".join([intro, *parts]))


def _small_task(found: Found) -> str:
    contenders = found.values("contender")
    attacks = [attack for attack in found.values("attack") if attack]
    seeds = len(found.job(BASE, 5))
    honest = Mean.of([each["auroc"] for each in found.job(BASE, 5).values()])
    lines = [
        f"Small task, {seeds} seeds: mean change of the AUROC on held-out patients against honest sites under FedAvg "
        f"(five sites: {honest}), and half of its 95 % interval (Student's t over the seeds).",
        "The hostile site knows all replies and stays within the bound on update norms: ten medians or a tenth of the "
        "model for FedAvg as it was, two medians otherwise.",
        "",
    ]
    for sites in (3, 5, 7):

        def row(attack: str | None, sites: int = sites) -> list[str]:
            return [found.lost(each, sites, attack) for each in contenders]

        rows = [["nobody hostile", *row(None)], *([attack, *row(attack)] for attack in attacks)]
        for name, attack in (("backdoor: its success", "backdoor"), ("backdoor: without the attack", None)):
            rows.append([name, *(found.backdoor(each, sites, attack) for each in contenders)])
        lines += table(f"One hostile among {sites} sites", contenders, rows)
    unlike = [kind for kind in found.values("kind") if kind != ALIKE]
    rows = [
        [f"{kind}, {sites} sites", *(found.lost(each, sites, kind=kind) for each in contenders)]
        for kind in unlike
        for sites in (3, 5, 7)
    ]
    lines += table("Honest hospitals that differ", contenders, rows)
    strongest = [attack for attack in attacks if found.job("CenteredClip", 5, attack, rounds=12)]
    some = [each for each in contenders if found.job(each, 5, strongest[0], kind="size")]
    rows = [
        [f"{kind}: {attack}", *(found.lost(each, 5, attack, kind=kind) for each in some)]
        for kind in unlike
        for attack in strongest
    ]
    rows += [
        [f"size, by the largest: {attack}", *(found.lost(each, 5, attack, kind="size", place=5) for each in some)]
        for attack in strongest
    ]
    lines += table("Five hospitals that differ, one of them hostile", some, rows)
    clip = ["CenteredClip"]
    rows = [[attack or "nobody hostile", found.lost(clip[0], 5, attack, rounds=12)] for attack in [None, *strongest]]
    lines += table("Five sites, 12 rounds in place of 4", clip, rows)
    few = [BASE, "FedAvg, clipped", *clip]
    rows = [
        [attack or "nobody hostile", *(found.lost(each, 3, attack, rounds=8, silent_from=4) for each in few)]
        for attack in (None, "reversed update", "label flip, at the bound")
    ]
    return "\n".join([*lines, *table("Three sites, of which an honest one is missing from round 4 of 8", few, rows)])


def _phantoms(outcomes: Sequence[Outcome]) -> str:
    seeds = sorted({each["seed"] for each in outcomes})
    methods = list(dict.fromkeys(each["method"] for each in outcomes))
    unseen = {(each["kind"], each["seed"], each["method"]): each["unseen"] for each in outcomes}
    rows = []
    for kind in dict.fromkeys(each["kind"] for each in outcomes):
        for label in outcomes[0]["unseen"]:
            base = [unseen[kind, seed, "FedAvg"][label] for seed in seeds]
            row = [f"{sum(base) / len(base):.3f}"]
            for method in methods[1:]:
                changes = [unseen[kind, seed, method][label] - one for seed, one in zip(seeds, base, strict=True)]
                row.append(f"{signed(changes)} ({', '.join(f'{change:+.3f}' for change in changes)})")
            rows.append([f"{kind}, {label}", *row])
    head = ["FedAvg, clipped: AUROC", *(f"{method}: change" for method in methods[1:])]
    title = f"Phantoms, {len(seeds)} seeds, three honest hospitals that differ, a 3D network; each seed in brackets"
    return "\n".join(table(title, head, rows))


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"## {title}", "", f"| | {' | '.join(head)} |", f"| --- |{' --- |' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]
