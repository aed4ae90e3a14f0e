"""What the server does around the rounds of a study: history, ledgers' heads, capped weights, resuming, MLflow."""

import errno
import json
import os
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, MetricRecord, RecordDict

from federation.coordinator import server_app
from federation.coordinator.server_app import main
from federation.protocol.reply_validation import decode, encode
from federation.protocol.study_config import StrategyTable
from models.refusal import Refusal
from models.release import load_release
from tests.helpers.whole_run import NAMES, Grid, execute, head, rounds_of, study


def test_the_history_tells_where_each_ledger_ended(server, caplog):
    grid = Grid()
    with caplog.at_level("INFO", logger="flwr"):
        history = execute(server, grid)
    assert [entry.get("step", entry.get("round")) for entry in history] == [
        *("handshake", 1, 2, 3, "features of training patients", "calibration", "test", "features of test patients")
    ]
    for place, entry in enumerate(history, start=1):
        assert entry["ledger"] == {name: head(2 * place) for name in NAMES.values()}
        assert entry["sites"] == ["north", "south", "west"]
    for node in NAMES:  # each was told what it had said before
        assert [lines for _, lines in grid.told[node]] == list(range(0, 16, 2))
        assert grid.told[node][-1][0] == f"{14:064x}"


def test_a_site_that_claims_more_than_it_was_enrolled_with_is_named(server, caplog):
    """South claims 42 and was enrolled with 30; north's number is not known; west is far below."""
    with caplog.at_level("INFO", logger="flwr"):
        rounds = rounds_of(execute(server, Grid()))
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
    assert [entry["round"] for entry in rounds_of(so_far)] == [1, 2]

    second = Grid()
    second.lines = dict(first.lines)
    history = execute(server, second)
    assert [entry["round"] for entry in rounds_of(history)] == [1, 2, 3]
    assert [lines for _, lines in second.told[11]] == [6, 8, 10, 12, 14, 16]  # the handshake is shaken again
    assert history[-1]["ledger"]["north"] == head(18)


def test_a_site_whose_ledger_was_cut_while_the_server_was_down_is_shut_out(server):
    class Dies(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            if self.lines[11] >= 6:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    first = Dies()
    with pytest.raises(KeyboardInterrupt):
        execute(server, first)
    second = Grid()
    second.lines = dict(first.lines) | {33: 0}
    last = rounds_of(execute(server, second))[-1]
    assert last["round"] == 3
    assert last["refused"] == {"west": "E_REPLY_LEDGER_CUT"}


def test_what_is_refused_in_the_final_evaluation_is_told(server):
    def bad(message: Message, content: RecordDict):
        is_final = message.metadata.message_type == "evaluate.test"
        return Error(1, "E_TOO_FEW_PATIENTS: DOE^JOHN") if is_final else content

    history = execute(server, Grid(bad))
    final = next(entry for entry in history if entry.get("step") == "test")
    assert final["refused"] == {"west": "E_TOO_FEW_PATIENTS"}
    assert final["sites"] == ["north", "south"]
    assert "DOE" not in json.dumps(history)


def test_a_site_whose_update_is_clipped_is_named(server, caplog):
    def long(message: Message, content: RecordDict):
        if message.metadata.message_type == "train":
            after = decode(content.array_records["arrays"])
            content["arrays"] = encode({name: array + np.float32(3) for name, array in after.items()})
        return content

    with caplog.at_level("INFO", logger="flwr"):
        rounds = rounds_of(execute(server, Grid(long)))
    assert [entry["clipped"] for entry in rounds] == [["west"]] * 3
    assert [entry["refused"] for entry in rounds] == [{}] * 3
    assert "west: W_UPDATE_CLIPPED" in caplog.text


def test_a_study_that_names_no_strategy_goes_on_with_two_of_three_sites(server):
    def silent_in_2(message: Message, content: RecordDict):
        is_second = message.content.config_records["config"]["server-round"] == 2
        return Error(1, "E_TOO_FEW") if is_second else content

    rounds = rounds_of(execute(server, Grid(silent_in_2), study(**StrategyTable().model_dump())))
    assert [entry["lost_for"] for entry in rounds] == [None, None, None]
    assert [len(entry["sites"]) for entry in rounds] == [3, 2, 3]


@pytest.mark.parametrize(("strategy", "is_spoilt"), [("FedMedian", False), ("FedAvg", True)])
def test_one_sites_calibration_does_not_spoil_a_robust_release(server, strategy, is_spoilt):
    """Without one it does, which is the control: sites that differ so much know nothing together, says the band."""

    def wild(message: Message, content: RecordDict):
        if message.metadata.message_type == "evaluate.calibrate":
            content["metrics"] = MetricRecord({**content.metric_records["metrics"], "slope_severe": 100.0})
        return content

    execute(server, Grid(wild), study(name=strategy))
    release = load_release(server / "runs" / "trial-1" / "release")
    severe = release.description.calibration["severe"]
    low, high = severe.band(1.0)
    assert (high - low > 0.99) == is_spoilt
    assert (severe.slope == pytest.approx(1.2)) != is_spoilt


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
        rounds = rounds_of(execute(server, Grid(silent_in_2), study(name="FedMedian")))
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
