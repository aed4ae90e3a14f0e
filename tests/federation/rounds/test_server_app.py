"""What the server does around the rounds of a study: history, ledgers' heads, capped weights, resuming, MLflow."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from federation.rounds import server_app
from federation.rounds.grid import EagerGrid
from federation.rounds.server_app import ServerRun, main
from federation.server.start import Site
from federation.study import Study
from models.refusal import Refusal
from models.release import load_release
from tests.federation.rounds.fake_grid import FakeGrid, honest_answer

NAMES = {11: "north", 22: "south", 33: "west"}
Hostile = Callable[[Message, RecordDict], Any]


def study(**strategy: Any) -> Study:
    tables = {
        "study": {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2, "wait_s": 1, "synthetic": True},
        "network": {"architecture": "resnet10", "widen_factor": 0.125},
    }
    return Study.model_validate(tables | ({"strategy": strategy} if strategy else {}))


class Grid(FakeGrid):
    """Sites with ledgers: each answers both kinds of message, and its ledger grows by two lines each time."""

    def __init__(self, hostile: Hostile | None = None) -> None:
        super().__init__({node: self.site(node) for node in NAMES})
        self.hostile = hostile
        self.lines = dict.fromkeys(NAMES, 0)
        self.told: dict[int, list[tuple[str, int]]] = {node: [] for node in NAMES}

    def site(self, node: int):
        def answer(message: Message) -> list[Any]:
            config = message.content.config_records["config"]
            self.told[node].append((str(config["ledger-head"]), int(str(config["ledger-lines"]))))
            if message.metadata.message_type == "evaluate":
                figures = {"loss_severe": 0.5, "auroc_severe": 0.8, "slope_severe": 1.0 + node / 100, "num-examples": 5}
                content = RecordDict({"metrics": MetricRecord(figures)})
            else:
                content = honest_answer(node, message)
                content["metrics"] = MetricRecord({"train_loss": 0.7, "num-examples": 20 + node})
            self.lines[node] += 2
            content["ledger"] = ConfigRecord({"head": f"{self.lines[node]:064x}", "lines": self.lines[node]})
            return [self.hostile(message, content) if self.hostile and node == 33 else content]

        return answer


class NoTracker:
    """In MLflow's place where a test is not about it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., str]:
        return lambda *_, **__: "1"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "server.toml").write_text("port = 1\n")
    monkeypatch.setattr(server_app, "sites", lambda _: [Site(name, node, True) for node, name in NAMES.items()])
    monkeypatch.setattr(server_app, "enrolled_patients", lambda _: {"north": None, "south": 30, "west": 1000})
    monkeypatch.setattr(server_app, "Tracker", NoTracker)
    (tmp_path / "runs" / "trial-1").mkdir(parents=True)
    return tmp_path


def execute(server: Path, grid: FakeGrid, what: Study | None = None) -> list[dict[str, Any]]:
    """Run the study; its history as it lies in the run's folder."""
    folder = server / "runs" / "trial-1"
    (folder / "study.json").write_text((what or study()).model_dump_json())
    eager = EagerGrid(grid)
    eager.send_and_receive = grid.send_and_receive  # type: ignore[method-assign]
    ServerRun(server, what or study(), "trial-1", eager).execute()
    content: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return content


def head(lines: int) -> dict[str, Any]:
    return {"head": f"{lines:064x}", "lines": lines}


def test_the_history_tells_where_each_ledger_ended(server, caplog):
    grid = Grid()
    with caplog.at_level("INFO", logger="flwr"):
        *rounds, final = execute(server, grid)
    assert [entry["ledger"] for entry in rounds] == [{name: head(2 * r) for name in NAMES.values()} for r in (1, 2, 3)]
    assert final["evaluation"] == "final"
    assert final["ledger"] == {name: head(8) for name in NAMES.values()}
    assert final["sites"] == ["north", "south", "west"]
    for node in NAMES:  # each was told what it had said before
        assert [lines for _, lines in grid.told[node]] == [0, 2, 4, 6]
        assert grid.told[node][-1][0] == f"{6:064x}"


def test_a_site_that_claims_more_than_it_was_enrolled_with_is_named(server, caplog):
    """South claims 42 and was enrolled with 30; north's number is not known; west is far below."""
    with caplog.at_level("INFO", logger="flwr"):
        *rounds, _ = execute(server, Grid())
    assert [entry["capped"] for entry in rounds] == [["south"]] * 3
    assert "south: W_EXAMPLES_CAPPED" in caplog.text
    assert "42" not in json.dumps(rounds[0]["capped"])


def test_a_resumed_run_reminds_the_sites_of_their_ledgers(server):
    """The server dies after round 2; the same run goes on, and so do the ledgers."""

    class Dies(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            if any(message.content.config_records["config"]["server-round"] == 3 for message in messages):
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    first = Dies()
    with pytest.raises(KeyboardInterrupt):
        execute(server, first)
    so_far = json.loads((server / "runs" / "trial-1" / "history.json").read_text())
    assert [entry["round"] for entry in so_far] == [1, 2]

    second = Grid()
    second.lines = dict(first.lines)
    *rounds, final = execute(server, second)
    assert [entry["round"] for entry in rounds] == [1, 2, 3]
    assert [lines for _, lines in second.told[11]] == [4, 6]
    assert final["ledger"]["north"] == head(8)


def test_a_site_whose_ledger_was_cut_while_the_server_was_down_is_shut_out(server):
    class Dies(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            if self.lines[11] >= 4:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    first = Dies()
    with pytest.raises(KeyboardInterrupt):
        execute(server, first)
    second = Grid()
    second.lines = dict(first.lines) | {33: 0}
    *_, last, _ = execute(server, second)
    assert last["round"] == 3
    assert last["refused"] == {"west": "E_REPLY_LEDGER_CUT"}


def test_what_is_refused_in_the_final_evaluation_is_told(server):
    def bad(message: Message, content: RecordDict):
        is_final = message.metadata.message_type == "evaluate"
        return Error(1, "E_TOO_FEW_PATIENTS: DOE^JOHN") if is_final else content

    history = execute(server, Grid(bad))
    assert history[-1]["refused"] == {"west": "E_TOO_FEW_PATIENTS"}
    assert history[-1]["sites"] == ["north", "south"]
    assert "DOE" not in json.dumps(history)


@pytest.mark.parametrize(("strategy", "highest"), [("FedMedian", 1.3), ("FedAvg", 100)])
def test_one_sites_calibration_does_not_spoil_a_robust_release(server, strategy, highest):
    """And with a mean it does, which is the control."""

    def wild(message: Message, content: RecordDict):
        if message.metadata.message_type == "evaluate":
            content["metrics"] = MetricRecord({**content.metric_records["metrics"], "slope_severe": 100.0})
        return content

    execute(server, Grid(wild), study(name=strategy))
    release = load_release(server / "runs" / "trial-1" / "release")
    slope = release.description.calibration["severe"].slope
    assert slope <= highest
    assert (slope > 10) == (strategy == "FedAvg")


def test_a_study_whose_strategy_cannot_be_met_ends_before_anyone_is_asked(server):
    grid = Grid()
    with pytest.raises(Refusal) as refused:
        execute(server, grid, study(name="Krum", options={"num_malicious_nodes": 1}))
    assert refused.value.code == "E_STRATEGY_SITES"
    assert grid.sent == []


def test_a_lost_round_is_told_with_its_reason(server, caplog):
    def silent_in_2(message: Message, content: RecordDict):
        is_second = message.content.config_records["config"]["server-round"] == 2
        return Error(1, "E_TOO_FEW") if is_second else content

    with caplog.at_level("INFO", logger="flwr"):
        *rounds, _ = execute(server, Grid(silent_in_2), study(name="FedMedian"))
    assert [entry["lost_for"] for entry in rounds] == [None, "E_STRATEGY_REPLIES", None]
    assert "round 2 of 3 LOST (E_STRATEGY_REPLIES) · 2 of 3 sites" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_a_code_and_not_a_trace(server, monkeypatch, caplog, code):
    """At the history, at the release: whatever is written outside a checkpoint, which has a code of its own."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setenv("FEDTHORAX_SERVER_DIR", str(server))
    monkeypatch.setattr(server_app, "EagerGrid", lambda grid: grid)
    monkeypatch.setattr(server_app, "save_release", full)
    context = Context(1, 1, {}, RecordDict(), {"study": study().model_dump_json(), "run": "trial-1"})
    with caplog.at_level("INFO", logger="flwr"), pytest.raises(Refusal) as refused:
        main(Grid(), context)  # type: ignore[misc]
    assert refused.value.code == "E_SERVER_DISK"
    assert "E_SERVER_DISK" in caplog.text
    monkeypatch.undo()


def test_other_errors_of_the_system_are_not_called_a_full_disk(server, monkeypatch):
    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setenv("FEDTHORAX_SERVER_DIR", str(server))
    monkeypatch.setattr(server_app, "EagerGrid", lambda grid: grid)
    monkeypatch.setattr(server_app, "save_release", lost)
    context = Context(1, 1, {}, RecordDict(), {"study": study().model_dump_json(), "run": "trial-1"})
    with pytest.raises(ConnectionResetError):
        main(Grid(), context)  # type: ignore[misc]


def test_the_model_and_its_history_are_finite(server):
    execute(server, Grid())
    release = load_release(server / "runs" / "trial-1" / "release")
    tensors = release.network.state_dict().values()
    assert all(np.isfinite(tensor.numpy()).all() for tensor in tensors)
