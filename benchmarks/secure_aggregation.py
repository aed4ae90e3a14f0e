"""Cost of masking a reply at a site: time for 30 hospitals, and memory, for a reply of 8 MB and of 133 MB."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import Figure, Part

sys.path.insert(0, str(Path(__file__).parents[1]))
from federation.secure_aggregation.masking import Masks, masked
from federation.secure_aggregation.reply_vector import Reply, Settings, vector

SITES, REPEATS = 30, 5
PIECE = 2**18  # weights that the gateway reads at once
# Name, weights, and the longest time that a site may take.
SIZES = (("8 MB", 2_080_000, 0.2), ("133 MB", 33_200_000, 2.5))
MEMORY_MB = 20.0  # of masking itself; the gateway as a whole has 150 MB


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
    notes = [
        f"Numbers to words, {SITES} streams of ChaCha20 added, written to a file, in pieces of {PIECE} weights. "
        "Processor seconds of one thread. Agreeing on keys is not included; it takes some milliseconds at each site."
    ]
    return Part(notes, figures)


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
