"""The whole federated experiment on the public folder of STOIC2021: one command, on the day somebody brings the data.

    make stoic DATA=DIR                                  everything; continues where it was if interrupted
    python benchmarks/stoic2021.py DIR --seeds 1         a first look
    python benchmarks/stoic2021.py DIR --split skewed    sites that differ in age and slice spacing
    python benchmarks/stoic2021.py DIR --grid fine --set network.widen_factor=0.5

DIR is the unpacked data set: data/mha/*.mha and metadata/reference.csv. It becomes N sites, each is ingested, and the
study that `fedthorax study init --sites N` writes runs in a simulation, for each seed. Beside it: the same training on
all patients in one place, at each site alone, and a port of the baseline that the organisers published. Tables, JSON
and the report of the first seed's run are written to the out folder, which only its owner can read. No scan is copied.
docs/stoic2021.md explains the rows and what it costs.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoic2021_baseline import Recipe
from stoic2021_models import PORT, Answers, Experiment
from stoic2021_sites import (
    GRIDS,
    NETWORK,
    Tables,
    bring,
    check_folders,
    label_counts,
    sites_folder,
    study_of,
    test_patients,
)
from stoic2021_tables import Made, write

from federation.cli.console import print_refusal, say
from federation.report.page import write_report
from federation.runs.results import read_results
from models.network_settings import ARCHITECTURES
from models.refusal import Refusal
from pipeline.datasets.stoic2021 import is_synthetic

OUT = Path(__file__).parents[1] / "build" / "stoic2021"
SEEDS = (1, 2, 3, 4, 5)
_SETTING = "TABLE.KEY=VALUE"
_SETTINGS = "network.widen_factor=0.5 or network.norm=group"
_TOML_WORDS = ("true", "false", "inf", "nan")  # words that TOML knows; others are strings


def has_gpu() -> bool:
    """Return whether sites with the usual [compute] train on a GPU."""
    from models.compute import Compute
    from models.compute_settings import ComputeSettings

    return Compute.open(ComputeSettings()).device.type == "cuda"


def changes(chosen: argparse.Namespace, *, synthetic: bool) -> Tables:
    """Return the settings that differ from the study of `study init`."""
    tables: Tables = {
        "study": {"name": "stoic2021", "synthetic": synthetic},
        "network": {"architecture": chosen.network},
        "preprocessing": dict(GRIDS[chosen.grid]),
    }
    for table, keys in chosen.set:
        tables.setdefault(table, {}).update(keys)
    return tables


def setting(text: str) -> tuple[str, dict[str, Any]]:
    """Return the table, and the key with its value, of TABLE.KEY=VALUE. Raises ArgumentTypeError."""
    import tomllib

    place, _, value = text.partition("=")
    table, _, key = place.partition(".")
    if re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", value) and value not in _TOML_WORDS:
        value = f'"{value}"'
    try:
        if not table or not key:
            raise ValueError
        return table, tomllib.loads(f"{key} = {value}")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_SETTING}, such as {_SETTINGS}") from None


def run(chosen: argparse.Namespace, recipe: Recipe) -> Path:
    """Do everything that is not done yet; return the page.

    Raises Refusal: those of the importer, of the ingest and of `fedthorax study run`.
    """
    data, out = chosen.data, chosen.out
    check_folders(data, out)
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    study = study_of(out, chosen.sites, changes(chosen, synthetic=is_synthetic(data)))
    folder = sites_folder(out, chosen.sites, chosen.split, study.preprocessing)
    brought = bring(data, folder, sites=chosen.sites, split=chosen.split, settings=study.preprocessing, say=say)
    sites = [folder / name for name in brought.sites]
    experiment = Experiment.open(out, chosen.split, study, sites, say, in_process=chosen.in_process)
    rows = [*experiment.rows(), *([PORT] if chosen.baseline else [])]
    answers: dict[str, dict[int, Answers]] = {row: {} for row in rows}
    patients, counts = test_patients(study, sites), label_counts(study, sites)
    for seed in chosen.seeds:  # all rows of a seed, so that the tables of an interrupted run have whole seeds
        for row in rows:
            answers[row][seed] = experiment.answers(row, seed, recipe)
        made = Made(study, chosen.split, brought, patients, counts, answers, recipe)
        page, text = write(made, experiment.folder)
    print(text)
    first = experiment.run_of(chosen.seeds[0])
    assert first is not None
    report = write_report(read_results(first), experiment.folder / "report").page
    say(f"Wrote {page}, its numbers beside it, and the report of the first seed's run: {report}")
    return page


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR", help="the unpacked data set")
    parser.add_argument("--out", type=Path, default=OUT, help="default: build/stoic2021")
    parser.add_argument("--sites", type=int, default=3, metavar="N", help="number of sites, three or more; default: 3")
    parser.add_argument("--split", choices=("equal", "skewed"), default="equal", help="default: equal")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default: 1 2 3 4 5")
    parser.add_argument("--network", default=NETWORK, choices=ARCHITECTURES, help=f"default: {NETWORK}")
    parser.add_argument("--grid", choices=GRIDS, help="default: fine with a GPU, else default")
    parser.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        help="the port of the published baseline; default: with a GPU",
    )
    parser.add_argument(
        "--in-process", action="store_true", help="run federations without Flower's processes: the same weights"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        type=setting,
        default=[],
        metavar=_SETTING,
        help=f"other settings of the study, such as {_SETTINGS}: a value of TOML, or one word without quotes",
    )
    chosen = parser.parse_args(arguments)
    if len(set(chosen.seeds)) < len(chosen.seeds):
        parser.error("a seed appears twice")
    gpu: Any = has_gpu() if chosen.grid is None or chosen.baseline is None else None
    chosen.grid = chosen.grid or ("fine" if gpu else "default")
    chosen.baseline = gpu if chosen.baseline is None else chosen.baseline
    return chosen


def main(arguments: Sequence[str] | None = None, recipe: Recipe | None = None) -> int:
    """Run the command; 0 if it is done, 1 after a refusal, 130 after Ctrl-C. `recipe`: a smaller port, for tests."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        run(parsed(arguments), recipe or Recipe())
    except Refusal as refusal:
        print_refusal(refusal, as_json=False)
        return 1
    except KeyboardInterrupt:
        say("Stopped. The same command continues.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
