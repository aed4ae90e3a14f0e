"""Executes a whole run of a study at the server, on an in-memory grid whose sites reply to every message type."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.server_app import ServerRun
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, tail
from federation.protocol.reply_validation import encode
from federation.protocol.study_config import Study
from tests.helpers.fake_grid import FakeGrid, honest_answer

NAMES = {11: "north", 22: "south", 33: "west"}
Hostile = Callable[[Message, RecordDict], Any]


def study(**strategy: Any) -> Study:
    tables = {
        "study": {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2, "wait_s": 1, "synthetic": True},
        "network": {"architecture": "resnet10", "widen_factor": 0.125},
    }
    return Study.model_validate(tables | {"strategy": strategy or {"name": "FedAvg"}})


ABOUT = {"version": version("fedthorax"), "contract": "c" * 64, "golden": "d" * 64, "patients": "20-49"}
FIGURES = {
    "evaluate.calibrate": {
        "slope_severe": 1.2,
        "intercept_severe": -0.1,
        "variance_slope_severe": 0.2,
        "covariance_severe": 0.01,
        "variance_intercept_severe": 0.2,
        "positives_severe": 24.0,
        "negatives_severe": 39.0,
        **dict.fromkeys(tail("rule_out", "severe"), -0.99),
        **dict.fromkeys(tail("rule_in", "severe"), 1.18),
        "distance_mean": 0.1,
        "distance_sd": 0.2,
    },
    "evaluate.test": {"loss_severe": 0.5, "auroc_severe": 0.8, "auroc_severe_low": 0.7, "auroc_severe_high": 0.9},
    "evaluate.assign": {"assigned_00": 0.4, "assigned_01": 0.3, "assigned_02": 0.3},
    "train.head": {},
}


class Grid(FakeGrid):
    """Sites with ledgers. Each replies to every message type and adds two ledger lines per message."""

    def __init__(self, hostile: Hostile | None = None) -> None:
        super().__init__({node: self.site(node) for node in NAMES})
        self.hostile = hostile
        self.lines = dict.fromkeys(NAMES, 0)
        self.told: dict[int, list[tuple[str, int]]] = {node: [] for node in NAMES}
        self.kinds: list[str] = []

    def site(self, node: int):
        def answer(message: Message) -> list[Any]:
            config = message.content.config_records["config"]
            self.told[node].append((str(config["ledger-head"]), int(str(config["ledger-lines"]))))
            self.kinds.append(message.metadata.message_type)
            content = self.content(node, message)
            self.lines[node] += 2
            content["ledger"] = ConfigRecord({"head": f"{self.lines[node]:064x}", "lines": self.lines[node]})
            return [self.hostile(message, content) if self.hostile and node == 33 else content]

        return answer

    def content(self, node: int, message: Message) -> RecordDict:
        kind = message.metadata.message_type
        if kind == "query.handshake":
            return RecordDict({"site": ConfigRecord(dict(ABOUT))})
        if kind == "train":
            content = honest_answer(node, message)
            content["metrics"] = MetricRecord({"train_loss": 0.7, "num-examples": 20 + node})
            return content
        content = RecordDict({"metrics": MetricRecord({**FIGURES.get(kind, {}), "num-examples": 5})})
        if kind == "train.head":
            content["arrays"], content["buffers"] = message.content["arrays"], message.content["buffers"]
        if kind == "evaluate.embed":
            for record, length in (("moments", 64), ("looks", APPEARANCE_SIZE)):
                content[record] = encode(dict.fromkeys(("mean", "variance"), np.full(length, node, np.float32)))
        return content


def execute(server: Path, grid: FakeGrid, what: Study | None = None) -> list[dict[str, Any]]:
    """Run the study. Return the history that is stored in the run folder."""
    folder = server / "runs" / "trial-1"
    (folder / "study.json").write_text((what or study()).model_dump_json())
    eager = EagerGrid(grid)
    eager.send_and_receive = grid.send_and_receive  # type: ignore[method-assign]
    ServerRun(server, what or study(), "trial-1", eager).execute()
    content: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return content


def rounds_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in history if "round" in entry]


def head(lines: int) -> dict[str, Any]:
    return {"head": f"{lines:064x}", "lines": lines}
