"""What the presets of three sizes cost on a processor, with each network that they name.

    python benchmarks/size_presets.py [--sizes small-cpu ...] [--networks resnet18 ...] [--kinds step ...] [--add]

For each size and network: parameters, bytes of one update, and processor seconds and peak memory of one training step
of one patient, of scoring one scan and, for the largest size, of a step with activation checkpointing. Each is measured
in a process of its own, with one thread and in float32. What needs more than 6 GB or 5 minutes of a processor is left
out, and the table says so. A GPU is not used. Writes results/size_presets.{json,md} after each row.
"""

import argparse
import functools
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Table
from run import RESULTS, circumstances, markdown

from configs import SIZES
from federation.approval.presets import presets
from federation.protocol.study_config import Study
from models.compute import Compute
from models.network import build_network
from models.release import load_release, save_release
from pipeline.cohort.dataset import Example, Examples
from pipeline.system.malloc import keep_memory
from pipeline.training.train import augmentation, step

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.helpers.descriptions import description

NETWORKS = ("resnet18", "densenet121", "seresnet50", "efficientnet_b0_slices", "convnext")
KINDS = ("step", "score", "checkpointed")
CHECKPOINTED = SIZES[-1:]
STORED = RESULTS / "size_presets.json"
MAX_BYTES, MAX_SECONDS = 6 * 10**9, 300
REPEATS = 4  # of reading and augmenting, whose transforms are drawn


def study_of(size: str, network: str) -> Study:
    study = presets()[size]
    return study.model_copy(update={"network": study.network.model_copy(update={"architecture": network})})


def peak_mb() -> float:
    """Peak resident memory of this program, with its libraries; getrusage would include that of its parent process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def one_step(study: Study, folder: Path, *, checkpointing: bool) -> dict[str, float]:
    """Train on one patient of the study's full size; the second step is measured."""
    shape = (2, *study.preprocessing.shape)
    np.save(folder / "patient.npy", np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float16))
    disk_mb = (folder / "patient.npy").stat().st_size / 1e6
    examples, augment = Examples([Example(folder / "patient.npy", 60.0, "F", True, True)]), augmentation(1)
    network = build_network(study.network, seed=study.study.seed).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    compute = Compute(precision="fp32", checkpointing=checkpointing)
    before = peak_mb()
    began = time.process_time()
    for _ in range(REPEATS):
        batch = examples.batch(np.arange(1), augment)
    read_s = (time.process_time() - began) / REPEATS
    with compute.train(network):
        step(network, optimiser, *batch, compute=compute)
        began = time.process_time()
        step(network, optimiser, *batch, compute=compute)
    step_s = time.process_time() - began
    return {"disk_mb": disk_mb, "read_s": read_s, "step_s": step_s, "before_mb": before, "peak_mb": peak_mb()}


def one_score(study: Study, folder: Path, series: Path) -> dict[str, float]:
    """Score one scan, the first of this process, by a release with the weights of the seed."""
    from pipeline.scoring.score import score

    described = description(network=study.network, preprocessing=study.preprocessing.model_dump(mode="json"))
    save_release(folder / "release", build_network(study.network, seed=study.study.seed).eval(), described)
    release = load_release(folder / "release")
    began = time.process_time()
    scored = score(series, release)
    assert scored.saliency is not None
    return {"score_s": time.process_time() - began, "peak_mb": peak_mb()}


def measure(kind: str, size: str, network: str, series: Path) -> dict[str, float]:
    """Measure one row in this process, within the limits."""
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    torch.set_num_threads(1)
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(size, network)
        if kind == "score":
            return one_score(study, Path(folder), series)
        return one_step(study, Path(folder), checkpointing=kind == "checkpointed")


def in_a_process(kind: str, size: str, network: str, series: Path) -> dict[str, float] | None:
    """Measure one row in a new process; None if it needs more than the limits."""
    command = [sys.executable, __file__, "--one", kind, size, network, str(series)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return {name: round(value, 3) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    if done.returncode < 0 or "MemoryError" in done.stderr or "allocate memory" in done.stderr:
        return None
    raise RuntimeError(f"{kind}, {size}, {network} failed:\n{done.stderr[-2000:]}")


@functools.cache
def _about(network: str) -> dict[str, Any]:
    from federation.gateway.schema import work_out

    study = study_of(SIZES[0], network)
    schema = work_out(study.model_dump_json().encode())
    parameters = sum(weight.numel() for weight in build_network(study.network, seed=1).parameters())
    return {"parameters": parameters, "update_bytes": schema.reply_bytes("train")}


def about(network: str) -> dict[str, Any]:
    """Return the parameters of a network, and the bytes of a reply's arrays, which the size does not change."""
    return dict(_about(network))


def table(rows: dict[str, Any]) -> Table:
    head = [
        "preset, network",
        "parameters",
        "update, MB",
        "step, s",
        "of it reading and augmenting",
        "memory",
        "score a scan, s",
        "memory",
        "checkpointed: step, s",
        "memory",
    ]
    places = [f"{size}, {network}" for size in SIZES for network in NETWORKS]
    return Table("Size presets", head, [_cells(name, rows[name]) for name in places if name in rows])


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    cells = [name, f"{row['parameters']:,}", f"{row['update_bytes'] / 1e6:.1f}"]
    for kind in KINDS:
        if kind not in row or (found := row[kind]) is None:
            cells += ["left out" if kind in row else "–"] * (3 if kind == "step" else 2)
            continue
        whole = found["score_s"] if kind == "score" else found["read_s"] + found["step_s"]
        cells.append(f"{whole:.3g}")
        if kind == "step":
            cells.append(f"{found['read_s']:.2g}")
        cells.append(f"{found['peak_mb'] / 1000:.2f} GB")
    return cells


def page(result: dict[str, Any]) -> str:
    made = table(result["rows"])
    lines = "\n".join(markdown(made.head, made.rows))
    return f"""# Size presets

{result["date"]}; {result["machine"]}. Load of the machine before: {result["load_before"]}. Each figure once, in a
process of its own: one thread, float32, processor seconds. No GPU was at hand. `benchmarks/size_presets.py` explains
the rows.

{lines}
A step: one patient, from the file in the cohort, augmented; the second step of the process is measured. Memory: the
peak of the process; its libraries and the network take {result["before_gb"]} of it. Score: a synthetic series of 300
slices of 512 x 512, from the folder to the answer with map, the first of the process. An update: a site's reply to a
round, with batch norm's statistics. "left out": more than 6 GB or 5 minutes of a processor. "–": not measured.
"""


def store(result: dict[str, Any]) -> None:
    """Write what was measured so far."""
    before = [row["step"]["before_mb"] for row in result["rows"].values() if row.get("step")]
    result["before_gb"] = f"{min(before) / 1000:.2f} to {max(before) / 1000:.2f} GB" if before else "not measured"
    STORED.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    STORED.with_suffix(".md").write_text(page(result), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=SIZES)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--add", action="store_true", help="keep the figures of earlier calls")
    parser.add_argument("--series", type=Path, help="one folder that was written before, to score")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        kind, size, network, series = asked.one
        print(json.dumps(measure(kind, size, network, Path(series))))
        return
    from chest import SYNTAXES, write_chest

    stored = json.loads(STORED.read_text()) if asked.add else {"rows": {}}
    result: dict[str, Any] = {**circumstances(), "rows": stored["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        series = asked.series or Path(folder) / "series"
        if "score" in asked.kinds and asked.series is None:
            write_chest(series, SYNTAXES["uncompressed"])
        for kind, network, size in itertools.product(asked.kinds, asked.networks, asked.sizes):
            row = result["rows"].setdefault(f"{size}, {network}", about(network))
            if kind != "checkpointed" or size in CHECKPOINTED:
                row[kind] = in_a_process(kind, size, network, series)
                print(size, network, kind, row[kind], flush=True)
                store(result)


if __name__ == "__main__":
    main()
