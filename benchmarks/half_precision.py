"""Does half precision in transit reduce the model's performance? Takes half an hour; not part of `make bench`.

    python benchmarks/half_precision.py

It uses the synthetic hospitals of learning.py in their quick form, and whole federated trainings in this process. The
precision is the only difference. A control shows the effect of any other rounding: training in single precision from
first weights that were rounded to float16 once. Randomness in training amplifies even the smallest difference.
"""

import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from learning_sites import FORMS, KINDS, Order, areas, orders, test_orders, write
from learning_tables import Mean
from run import RESULTS, circumstances, markdown

from federation.client.site_tasks import load_examples, load_network
from federation.coordinator.inprocess import sites_here
from federation.coordinator.rounds import Training
from federation.protocol.half_precision import HALF, rounded
from federation.protocol.study_config import WireTable
from models.network_settings import LABELS
from pipeline.site.folder import Site
from pipeline.training.train import predict

SEEDS = tuple(range(1, 9))
KIND, FORM = "label", FORMS["quick"]
SINGLE, CONTROL = "float32", "float32, first weights rounded"
CONTENDERS = (SINGLE, CONTROL, HALF)


def train(contender: str, sites: Sequence[Order], unseen: Order, folder: Path) -> dict[str, Any]:
    """Return the AUROC at the unseen hospital, and megabytes of arrays per round and site."""
    what = FORM.settings(unseen.seed, len(sites))
    what = what.model_copy(update={"wire": WireTable(precision=HALF if contender == HALF else "float32")})
    training = Training(what, folder, "bench")
    weights = training.state.arrays["weights"].nbytes
    if contender == CONTROL:
        first = rounded(training.state.arrays, HALF)
        training.state = replace(training.state, arrays={name: each.astype("float32") for name, each in first.items()})
    model = training.execute(sites_here(what, [each.folder for each in sites]))
    if any(len(entry["sites"]) != len(sites) for entry in training.history):
        raise RuntimeError("a site did not count in every round")
    examples = load_examples(Site.open(unseen.folder), what, "train", "validation", "test")
    found = areas(predict(load_network(what, model.arrays, model.buffers), examples), examples.targets)
    least = {way: training.history[-1][f"bytes_{way}"] / len(sites) / weights for way in ("down", "up")}
    return {"contender": contender, "seed": unseen.seed, **found, **least}


def measure(root: Path) -> list[dict[str, Any]]:
    rows = []
    for seed in SEEDS:
        sites, (unseen, _) = orders(root, FORM, KIND, seed), test_orders(root, FORM, seed)
        for order in (*sites, unseen):
            write(order)
        for contender in CONTENDERS:
            rows.append(train(contender, sites, unseen, root / "runs" / f"{contender} {seed}"))
            print(rows[-1], flush=True)
    return rows


def report(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    def cell(contender: str, key: str) -> str:
        values = [row[key] for row in rows if row["contender"] == contender]
        return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    def difference(contender: str, label: str) -> str:
        values = {(row["contender"], row["seed"]): row[label] for row in rows}
        return Mean.of([values[contender, seed] - values[SINGLE, seed] for seed in SEEDS]).signed()

    head = ["on the wire", *(f"AUROC of `{label}`" for label in LABELS), "bytes down", "bytes up"]
    table = [[each, *(cell(each, key) for key in (*LABELS, "down", "up"))] for each in CONTENDERS]
    less = ["minus that in float32, by seed", *(f"`{label}`" for label in LABELS)]
    differences = [[each, *(difference(each, label) for label in LABELS)] for each in (CONTROL, HALF)]
    return f"""# Half precision in transit

Mean of {len(SEEDS)} seeds with minimum and maximum, at an unseen synthetic hospital ({KIND}, {KINDS[KIND].says}). Bytes
are those of a round's arrays, per site, relative to the weights in float32. {about["date"]}; {about["machine"]}.

{chr(10).join(markdown(head, table))}
Means of the seeds' differences, with 95 % intervals of Student's t:

{chr(10).join(markdown(less, differences))}"""


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # Flower logs every round
    about = circumstances()
    with TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    (RESULTS / "half_precision.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    (RESULTS / "half_precision.md").write_text(report(rows, about))
    print(report(rows, about))


if __name__ == "__main__":
    main()
