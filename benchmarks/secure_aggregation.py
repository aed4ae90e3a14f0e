"""Cost of masking a reply at a site: time for 30 hospitals, and memory, for a reply of 8 MB and of 133 MB.

Also the processor time of whole rounds of three sites in one process, with masks and without.
"""

import json
import logging
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from common import Figure, Part

sys.path.insert(0, str(Path(__file__).parents[1]))
from federation.protocol.study_config import Study
from federation.secure_aggregation.masking import Masks, masked
from federation.secure_aggregation.reply_vector import Reply, Settings, vector

SITES, REPEATS = 30, 5
PIECE = 2**18  # weights that the gateway reads at once
# Name, weights, and the longest time that a site may take.
SIZES = (("8 MB", 2_080_000, 0.2), ("133 MB", 33_200_000, 2.5))
MEMORY_MB = 20.0  # of masking itself; the gateway as a whole has 150 MB
NAMES, ROUNDS = ("north", "south", "west"), 6


def measure(folder: Path) -> Part:
    figures = []
    for name, weights, limit_s in SIZES:
        done = [_in_a_process(weights, folder / "masked") for _ in range(REPEATS)]
        seconds, megabytes = [each["seconds"] for each in done], [each["mb"] for each in done]
        what = f"masking a reply of {name} for {SITES} hospitals"
        figures += [
            Figure(what, "the limit", "s", seconds, [limit_s], "at most 1"),
            Figure(f"{what}: memory added", "the limit", "MB", megabytes, [MEMORY_MB], "at most 1"),
        ]
    figures += _rounds(folder)
    notes = [
        f"Rounds of {len(NAMES)} sites in one process, with the gateways' own code and a random step instead of "
        "training: processor seconds of all sites and the coordinator together, with keys, messages, masks, and spools "
        "on disk.",
        f"Numbers to words, {SITES} streams of ChaCha20 added, written to a file, in pieces of {PIECE} weights. "
        "Processor seconds of one thread. Agreeing on keys is not included; it takes some milliseconds at each site.",
    ]
    return Part(notes, figures)


def _rounds(folder: Path) -> list[Figure]:
    """Measure rounds of a model of 8 MB: processor seconds, and megabytes up for all sites."""
    import masked_app.client_app  # noqa: F401 - replaces the training of the study's app
    from round_rig import make_site

    logging.disable(logging.INFO)  # Flower logs every round
    sites = [make_site(folder / name).folder for name in NAMES]
    masked, plain = (_costs(study(secure=secure), sites, folder / f"secure-{secure}") for secure in (True, False))
    what, against = f"a round of {len(NAMES)} sites with a model of 8 MB, masked", "without masks"
    return [
        Figure(what, against, "processor s", *([each[0] for each in costs] for costs in (masked, plain))),
        Figure(
            f"{what}: up", against, "MB", *([each[1] for each in costs] for costs in (masked, plain)), "at most 1.01"
        ),
    ]


def study(*, secure: bool) -> Study:
    table = {"name": "bench", "rounds": ROUNDS, "sites": len(NAMES), "quorum": len(NAMES)}
    tables = {"study": table, "strategy": {"name": "FedAvg"}, "aggregation": {"secure": secure}}
    return Study.model_validate(tables)


def _costs(what: Study, sites: list[Path], out: Path) -> list[tuple[float, float]]:
    """Return processor seconds and megabytes up of each round after the first."""
    from federation.coordinator.inprocess import sites_here
    from federation.coordinator.rounds import Training

    done: list[tuple[float, float]] = []
    training = Training(
        what, out, "bench", lambda report, *_: done.append((time.process_time(), report.bytes_up / 1e6))
    )
    training.execute(sites_here(what, sites))
    return [(later - before, up) for (before, _), (later, up) in pairwise(done)]


def _in_a_process(weights: int, file: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(weights), str(file)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


def _mask(weights: int, file: Path) -> dict[str, float]:
    rng = np.random.default_rng(1)
    piece = rng.normal(scale=1e-3, size=PIECE).astype(np.float32)
    pieces = (piece[: min(PIECE, weights - start)] for start in range(0, weights, PIECE))
    settings = Settings(
        weights=weights, channels=2000, figures=("train_loss",), patients=10_000, longest=10.0, sites=SITES
    )
    reply = Reply(300, {"train_loss": 0.5}, np.zeros(2000), np.ones(2000), pieces)
    keys = [(bytes([number, *range(31)]), 1 if number % 2 else -1) for number in range(SITES)]
    before, began = _peak_mb(), time.process_time()
    with file.open("wb") as out:
        for words in masked(vector(reply, settings), Masks(keys)):
            out.write(words.tobytes())
    return {"seconds": time.process_time() - began, "mb": _peak_mb() - before}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_mask(int(sys.argv[1]), Path(sys.argv[2]))))
