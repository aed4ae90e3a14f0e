"""Ask one site in each round, with the study's own strategy, and record the duration."""

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp

from federation.coordinator.eager_grid import EagerGrid, PartOfGrid
from federation.coordinator.wire_grid import Wire
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.reply_validation import encode
from federation.protocol.study_config import Study
from federation.strategy.flower_strategies import build_strategy
from federation.strategy.guarded import GuardedStrategy, RoundRules, StartState
from federation.superlink.nodes import sites
from models.network import build_network

app = ServerApp()


@app.main()
def main(grid, context):
    folder, study = Path(os.environ["FEDTHORAX_SERVER_DIR"]), Study.model_validate_json(context.run_config["study"])
    arrays, buffers = pack(build_network(study.network, seed=1))
    nodes = {site.name: site.node_id for site in sites(folder)}
    name = str(context.run_config["run"]).partition("-")[0]
    grid, heads, rounds = EagerGrid(grid), {}, []
    while len(grid.get_node_ids()) < len(nodes):
        time.sleep(0.5)
    for number in range(1, study.study.rounds + 1):
        wire = Wire(PartOfGrid(grid, frozenset([nodes[name]])), study.wire.precision)
        strategy = GuardedStrategy(
            build_strategy("FedAvg", {}),
            RoundRules(quorum=1, metrics=FIGURES["train"], max_examples=100),
            StartState(buffers=buffers, first_round=number),
            heads=heads,
        )
        began = time.time()
        messages = strategy.configure_train(1, encode(arrays), ConfigRecord(), wire)
        replies = list(wire.send_and_receive(messages, timeout=300))
        arrived = time.time()
        strategy.aggregate_train(1, replies)
        if strategy.lost_rounds:
            raise RuntimeError("a round was lost")
        rounds.append({"site": name, "began": began, "arrived": arrived, "done": time.time()})
        arrays, buffers = strategy.arrays, strategy.buffers
    (folder / "rounds.json").write_text(json.dumps(rounds))
