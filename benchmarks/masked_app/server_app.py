"""Run the rounds of a study with the product's strategies, and record when each began and ended."""

import json
import os
import time
from pathlib import Path

from flwr.serverapp import ServerApp

from federation.approval.studies import study_digest
from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.masked_strategy import MaskedStrategy
from federation.coordinator.masked_study import MaskedStudy
from federation.coordinator.wire_grid import Wire
from federation.enrolment.peers import roster_of
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.reply_validation import encode
from federation.protocol.study_config import Study
from federation.strategy.flower_strategies import build_strategy
from federation.strategy.guarded import GuardedStrategy, RoundRules, StartState
from federation.superlink.nodes import sites
from models.network import build_network

PATIENTS = 1000  # of all sites together, at most
app = ServerApp()


@app.main()
def main(grid, context):
    folder, text = Path(os.environ["FEDTHORAX_SERVER_DIR"]), context.run_config["study"]
    study, run = Study.model_validate_json(text), context.run_config["run"]
    arrays, buffers = pack(build_network(study.network, seed=study.study.seed))
    names = {site.node_id: site.name for site in sites(folder)}
    grid, rounds = EagerGrid(grid), []
    while len(grid.get_node_ids()) < len(names):
        time.sleep(0.5)
    rules = RoundRules(quorum=len(names), metrics=FIGURES["train"], max_examples=PATIENTS)
    common = (build_strategy("FedAvg", {}), rules, StartState(buffers=buffers))

    def note(report):
        now = time.time()
        rounds.append({"began": now - report.seconds, "done": now, "lost_for": report.lost_for})

    if study.aggregation.secure:
        masked = MaskedStudy(
            run=run,
            study=study_digest(text),
            roster=roster_of(folder),
            patients=PATIENTS,
            folder=folder / "masked" / run,
            names=names,
            round_seconds=300.0,
            server_folder=folder,
        )
        strategy = MaskedStrategy(*common, masked=masked, on_round=note)
    else:
        strategy = GuardedStrategy(*common, on_round=note)
    with strategy.serving():
        wire = Wire(grid, study.wire.precision)
        strategy.start(grid=wire, initial_arrays=encode(arrays), num_rounds=study.study.rounds, timeout=300)
    (folder / "rounds.json").write_text(json.dumps(rounds))
