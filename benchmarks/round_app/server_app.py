"""Asks one site after the other, by the study's own strategy, and writes down how long each took."""

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord
from flwr.serverapp import ServerApp

from federation.allowed import FIGURES
from federation.rounds.flower_strategies import build_strategy
from federation.rounds.grid import EagerGrid, PartOfGrid
from federation.rounds.packing import pack
from federation.rounds.replies import encode
from federation.rounds.strategy import GuardedStrategy
from federation.rounds.wire_grid import Wire
from federation.server.nodes import sites
from federation.study import Study
from models.network import build_network

app = ServerApp()


@app.main()
def main(grid, context):
    folder, study = Path(os.environ["FEDTHORAX_SERVER_DIR"]), Study.model_validate_json(context.run_config["study"])
    arrays, buffers = pack(build_network(study.network, seed=1))
    nodes = {site.name: site.node_id for site in sites(folder)}
    asked = nodes if context.run_config["run"] == "both" else ["through"]
    grid, heads, rounds = EagerGrid(grid), {}, []
    while len(grid.get_node_ids()) < len(nodes):
        time.sleep(0.5)
    for number in range(1, study.study.rounds + 1):
        for name in asked:
            wire = Wire(PartOfGrid(grid, frozenset([nodes[name]])), study.wire.precision)
            strategy = GuardedStrategy(
                build_strategy("FedAvg", {}),
                quorum=1,
                metrics=FIGURES["train"],
                max_examples=100,
                buffers=buffers,
                first_round=number,
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
