"""Time and memory of 20 rounds with one hundred synthetic hospitals in Flower's simulation. Not in `make bench`.

    python benchmarks/run.py hundred

Two runs are started with the command line, as a data scientist does. `drawn`: 30 of the 100 sites in each round. At any
time one site in ten is unavailable, because its folder is moved away, and answers with a code. In two rounds another
process locks one site's cohort file beyond the round's deadline. `all`: every site in every round, without faults.
After the rounds all sites evaluate the model, as in every study. Memory is the proportional set size (PSS) of all
processes together, sampled twice a second: command line, SuperLink, the ServerApp, Ray and its workers.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from common import Figure, Part, Table
from hundred_faults import AWAY, HELD_UP, Faults, history_of
from hundred_sites import PREPROCESSING, orders, write_all

from federation.client.site_tasks import train_site
from federation.protocol.flat_weights import pack
from federation.protocol.study_config import Study
from federation.server.start import SUPERLINK
from federation.system.reaper import descendants, read_parents
from models.network import build_network
from pipeline.site.folder import Site

SITES, ROUNDS, DRAWN = 100, 20, 30
DEADLINE_S = 25.0  # less than the 30 s that a site waits for its cohort's file
LIMIT_S, LIMIT_MB = 900.0, 6000.0
_LOOK_S = 0.5
_KINDS = {  # kinds of processes, by a part of their command line
    "workers that play sites": "ray::ClientAppActor",
    "the server's app": "flwr-simulation",
    "SuperLink": SUPERLINK,
    "command line": "fedthorax study run",
}


def measure(folder: Path) -> Part:
    began = time.perf_counter()
    wanted = orders(folder / "sites", SITES, seed=1)
    patients = write_all(wanted, os.cpu_count() or 1)
    written_s = time.perf_counter() - began
    sites = [order.folder for order in wanted]
    floor_s = _training_alone(study(), sites[:DRAWN])
    runs = {"drawn": simulate(folder / "drawn", study(per_round=DRAWN), sites, faults=True)}
    runs["all"] = simulate(folder / "all", study(), sites, faults=False)
    largest = max(order.patients for order in wanted)
    notes = [
        f"{SITES} synthetic hospitals with {patients} patients, {largest} at most, volumes of {PREPROCESSING.shape}; "
        f"{ROUNDS} rounds of one local epoch with a model of 8 MB. Writing the hospitals took {written_s:.0f} s.",
        f"drawn: {DRAWN} of them a round, {AWAY} away at any time, a straggler in rounds {HELD_UP}, and a deadline of "
        f"{DEADLINE_S:.0f} s. all: every one in every round. Memory is the PSS of all processes together.",
    ]
    figures = [
        figure
        for name, run in runs.items()
        for figure in (
            Figure(f"{name}: from start to results", "the limit", "s", [run.wall_s], [LIMIT_S], "at most 1"),
            Figure(f"{name}: memory at most", "the limit", "MB", [run.peak_mb], [LIMIT_MB], "at most 1"),
        )
    ]
    a_training = [runs["all"].workers_s / runs["all"].trainings]  # the questions after the last round included
    figures.append(
        Figure("all: the workers' processor, by site and round", "training alone", "s", a_training, [floor_s])
    )
    return Part(notes, figures, tables(runs), {name: run.to_json() for name, run in runs.items()})


def study(*, per_round: int = 0, rounds: int = ROUNDS, sites: int = SITES, deadline_s: float = DEADLINE_S) -> Study:
    """Make the study. `per_round`: 0 means all sites, and then none is late."""
    table: dict[str, Any] = {"name": "hundred", "rounds": rounds, "local_epochs": 1, "sites": sites, "quorum": 3}
    table |= {"sites_per_round": per_round, "round_timeout_s": deadline_s if per_round else 600.0, "synthetic": True}
    return Study.model_validate({"study": table, "preprocessing": PREPROCESSING.model_dump()})


def _training_alone(what: Study, folders: Sequence[Path]) -> float:
    """Mean processor seconds of a site's round in this process, without Flower, over `folders`."""
    arrays, buffers = pack(build_network(what.network, seed=1))
    times = []
    for folder in (folders[0], *folders):  # the first one is a warm-up
        began = time.process_time()
        train_site(Site.open(folder), what, arrays, buffers, round_number=1)
        times.append(time.process_time() - began)
    return sum(times[1:]) / len(folders)


@dataclass
class Measured:
    """One simulated run: samples of its processes, and its history."""

    wall_s: float = 0.0
    peak_mb: float = 0.0
    peak_by_kind: dict[str, float] = field(default_factory=dict)
    processor_s: dict[str, float] = field(default_factory=dict)  # by kind of process
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return [entry for entry in self.history if "round" in entry]

    @property
    def trainings(self) -> int:
        return sum(len(entry["sites"]) for entry in self.rounds)

    @property
    def workers_s(self) -> float:
        return self.processor_s[next(iter(_KINDS))]

    def codes(self) -> dict[str, int]:
        """Count how often a round continued without a site, by code."""
        return dict(Counter(code for entry in self.rounds for code in entry["refused"].values()))

    def to_json(self) -> dict[str, Any]:
        rounded = {
            name: {k: round(v, 1) for k, v in getattr(self, name).items()} for name in ("processor_s", "peak_by_kind")
        }
        seconds = [entry["seconds"] for entry in self.rounds]
        return {
            "wall_s": round(self.wall_s, 1),
            "peak_mb": round(self.peak_mb),
            **rounded,
            "round_s": seconds,
            "trainings": self.trainings,
            "codes": self.codes(),
            "lost_rounds": sum(entry["lost"] for entry in self.rounds),
            "bytes_up": sum(entry["bytes_up"] for entry in self.rounds),
            "bytes_down": sum(entry["bytes_down"] for entry in self.rounds),
        }


def simulate(folder: Path, what: Study, sites: Sequence[Path], *, faults: bool) -> Measured:
    """Run a study on site folders with the command line, and sample its processes."""
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(_as_toml(what))
    command = [Path(sys.executable).with_name("fedthorax"), "study", "run", folder / "study.toml", "--json"]
    command += ["--server", folder / "server", "--simulate", sites[0].parent]
    measured, began = Measured(), time.perf_counter()
    with (
        (folder / "log").open("w") as log,
        Faults(folder / "server", what, sites).while_running(active=faults),
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        _watch(process, measured)
    measured.wall_s = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"the run failed:\n{(folder / 'log').read_text()[-3000:]}")
    measured.history = history_of(folder / "server")
    return measured


def _as_toml(what: Study) -> str:
    tables = {
        "study": what.study.model_dump(exclude={"seeds"}),
        "preprocessing": what.preprocessing.model_dump(mode="json"),
    }
    return "\n".join(
        line
        for name, table in tables.items()
        for line in (f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items()))
    )


# --- memory and processors ---------------------------------------------------------------------------------


def _watch(process: "subprocess.Popen[bytes]", measured: Measured) -> None:
    """Sample a process and its descendants until it ends. Processor time is that of the last sample of each."""
    kinds: dict[int, str] = {}
    used: dict[int, float] = {}
    while process.poll() is None:
        held: Counter[str] = Counter()
        for pid in (process.pid, *descendants(process.pid, read_parents())):
            try:
                command, used[pid], pss_mb = _look(Path("/proc", str(pid)))
            except (OSError, StopIteration):  # it has ended
                continue
            kinds[pid] = next((kind for kind, part in _KINDS.items() if part in command), "Ray and others")
            held[kinds[pid]] += pss_mb
        if held.total() > measured.peak_mb:
            measured.peak_mb, measured.peak_by_kind = held.total(), dict(held)
        time.sleep(_LOOK_S)
    for pid, kind in kinds.items():
        measured.processor_s[kind] = measured.processor_s.get(kind, 0.0) + used[pid]


def _look(of: Path) -> tuple[str, float, float]:
    """Return a process's command line, its processor seconds and its share of memory in MB (proc(5))."""
    command = (of / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    after_name = (of / "stat").read_text().rpartition(")")[2].split()
    seconds = (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
    shares = (of / "smaps_rollup").read_text().splitlines()
    return command, seconds, int(next(line for line in shares if line.startswith("Pss:")).split()[1]) / 1000


# --- tables ------------------------------------------------------------------------------------------------


def tables(runs: dict[str, Measured]) -> list[Table]:
    kinds = list(dict.fromkeys(kind for run in runs.values() for kind in (*run.processor_s, *run.peak_by_kind)))
    by_kind = [
        [
            kind,
            *(f"{run.processor_s.get(kind, 0):.0f} s, {run.peak_by_kind.get(kind, 0):.0f} MB" for run in runs.values()),
        ]
        for kind in kinds
    ]
    by_kind.append(["together", *(f"{sum(r.processor_s.values()):.0f} s, {r.peak_mb:.0f} MB" for r in runs.values())])
    rows = {
        "sites asked in a round": lambda run: f"{median(len(e['sites']) + len(e['refused']) for e in run.rounds):.0f}",
        "seconds of a round": lambda run: _spread([entry["seconds"] for entry in run.rounds]),
        "went on without": lambda run: ", ".join(f"{c} {n} times" for c, n in sorted(run.codes().items())) or "nobody",
        "rounds lost": lambda run: str(sum(entry["lost"] for entry in run.rounds)),
        "MB to a site, and from it, in a round": lambda run: " and ".join(
            f"{sum(e[way] for e in run.rounds) / 1e6 / count:.2f}"
            for way, count in (
                ("bytes_down", sum(len(e["sites"]) + len(e["refused"]) for e in run.rounds)),
                ("bytes_up", run.trainings),
            )
        ),
    }
    return [
        Table(
            "Processor seconds, and memory when all of it was at its most, by process",
            ["process", *runs],
            by_kind,
        ),
        Table("The rounds", ["", *runs], [[what, *map(tell, runs.values())] for what, tell in rows.items()]),
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
