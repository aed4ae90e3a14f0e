"""False alarms of the hospitals' vote in honest rounds of 3D networks.

    python benchmarks/vote_networks.py

Writes results/vote_networks.json and .md, and goes on with what the JSON file has. Not in `make bench`. Five synthetic
hospitals that differ train small 3D networks with FedAvg. Each reports the losses and AUROCs of its validation patients
to the server here, without masks, and a gateway's own code judges them. Some minutes of one core for each study.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the hospitals of the tests

from robustness_tables import table

RESULTS = Path(__file__).with_name("results")
HOSPITALS, ROUNDS = 5, 15
STUDIES = ((80, 1), (80, 2), (240, 1))  # patients of each hospital, and the seed
RATES = (0.01, 0.05)  # learning rates; 0.05 is the default


def study_of(seed: int, rate: float) -> Any:
    from federation.protocol.study_config import Study

    return Study.model_validate(
        {
            "study": {
                "name": "votes",
                "rounds": ROUNDS,
                "local_epochs": 1,
                "seed": seed,
                "sites": HOSPITALS,
                "quorum": HOSPITALS,
                "synthetic": True,
            },
            "training": {"learning_rate": rate},
            "strategy": {"name": "FedAvg", "options": {}},
            "network": {"architecture": "resnet10", "widen_factor": 0.125},
            "preprocessing": {"method": 1, "shape": (32, 32, 32), "working_spacing_mm": 8.0},
        }
    )


def rounds_of(seed: int, rate: float, folders: Sequence[Path], out: Path) -> Iterator[dict[str, Any]]:
    """Run one study; yield what each hospital found of the model of each round."""
    from federation.coordinator.inprocess import sites_here
    from federation.coordinator.rounds import Training
    from federation.protocol.patient_counts import count_patients
    from federation.strategy.round_report import RoundReport
    from pipeline.site.folder import Site

    reports: list[RoundReport] = []
    study = study_of(seed, rate)
    training = Training(study, out, "votes", lambda report, *_: reports.append(report))
    training.execute(sites_here(study, folders))
    counts = {node: count_patients(Site.open(folder)) for node, folder in enumerate(folders, start=1)}
    for report in reports:
        for node, metrics in report.metrics.items():
            classes = {
                f"{label}_{value:d}": counts[node].with_value.get(("validation", label, value), 0)
                for label in ("pcr_positive", "severe")
                for value in (False, True)
            }
            figures = {name: value for name, value in metrics.items() if name.startswith(("loss_", "auroc_"))}
            yield {"seed": seed, "rate": rate, "round": report.round, "node": node, "classes": classes, **figures}


def sites_in(root: Path, seed: int, patients: int) -> list[Path]:
    from pipeline.phantom.cohorts import synthetic_site, write_cohort
    from pipeline.phantom.hospitals import HOSPITALS as AT
    from tests.federation.coordinator.test_inprocess import coarse

    folders = []
    for number in range(HOSPITALS):
        at = AT[number % len(AT)]
        site = synthetic_site(
            root / f"site-{number}", f"site-{number}", seed=seed, min_patients=3, tables="[training]\nthreads = 1"
        )
        settings = study_of(seed, RATES[0]).preprocessing
        write_cohort(
            site, coarse(at), patients=patients, seed=10 * seed + number, settings=settings, anatomy="template"
        )
        folders.append(site.folder)
    return folders


def answers(rows: Sequence[dict[str, Any]], *, by_auroc: bool) -> list[list[str]]:
    """Return what the hospitals' gateways say of the model of each round of a study."""
    from federation.gateway.model_votes import AUROCS, LOSSES, MODELS, Judged, judge

    said: dict[int, list[str]] = {}
    for node in sorted({row["node"] for row in rows}):
        judged: list[Judged] = []
        for row in sorted((row for row in rows if row["node"] == node), key=lambda row: row["round"]):
            losses, aurocs = (
                {label: row[name] for label, name in names.items() if name in row} for names in (LOSSES, AUROCS)
            )
            classes = {label: (row["classes"][f"{label}_0"], row["classes"][f"{label}_1"]) for label in LOSSES}
            now = Judged(str(row["round"]), losses, aurocs if by_auroc else {})
            said.setdefault(row["round"], []).append(judge(now, judged[-MODELS:], classes))
            judged.append(now)
    return list(said.values())


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as tables."""
    lines = [
        "# False alarms of the vote in honest rounds of 3D networks",
        "",
        f"Synthetic data only; see benchmarks/vote_networks.py. {HOSPITALS} hospitals that differ, {ROUNDS} rounds of "
        "FedAvg.",
        "",
    ]
    head = ["rounds", "answers", "much worse", "rounds with such an answer", "steps that would be taken back"]
    for patients in sorted({row["patients"] for row in rows}):
        of_size = [row for row in rows if row["patients"] == patients]
        rarer = [
            min(row["classes"][f"{label}_{value}"] for value in (0, 1))
            for row in of_size
            for label in ("pcr_positive", "severe")
            if f"auroc_{label}" in row
        ]
        cells = []
        for rate in RATES:
            for by_auroc, how in ((False, "loss alone"), (True, "loss and AUROC")):
                said = []
                for seed in sorted({row["seed"] for row in of_size}):
                    study = [row for row in of_size if (row["seed"], row["rate"]) == (seed, rate)]
                    said += answers(study, by_auroc=by_auroc)
                cells.append([f"learning rate {rate}, {how}", *_counts(said)])
        seeds = len({row["seed"] for row in of_size})
        title = (
            f"{patients} patients at each hospital, {seeds} seeds; {min(rarer)} to {max(rarer)} validation patients "
            "of the rarer class behind a figure"
        )
        lines += table(title, head, cells)
    return "\n".join(lines)


def _counts(said: Sequence[Sequence[str]]) -> list[str]:
    worse = [each.count("worse") for each in said]
    back = sum(2 * count > each.count("not worse") + count for count, each in zip(worse, said, strict=True))
    return [str(n) for n in (len(said), sum(map(len, said)), sum(worse), sum(map(bool, worse)), back)]


def main() -> None:
    logging.disable(logging.WARNING)  # Flower logs every round
    file = RESULTS / "vote_networks.json"
    found = json.loads(file.read_text()) if file.is_file() else []
    for patients, seed in STUDIES:
        known = {(row["patients"], row["seed"], row["rate"]) for row in found}
        rates = [rate for rate in RATES if (patients, seed, rate) not in known]
        with TemporaryDirectory() as root:
            folders = sites_in(Path(root), seed, patients) if rates else []
            for rate in rates:
                out = Path(root) / f"study-{rate}"
                out.mkdir()
                found += [{"patients": patients, **row} for row in rounds_of(seed, rate, folders, out)]
                file.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
                (RESULTS / "vote_networks.md").write_text(page(found))
        print(f"{patients} patients, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
