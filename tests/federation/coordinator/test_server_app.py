"""The ServerApp around the rounds of a study: history, ledger heads, capped weights, resuming and disk errors."""

import errno
import json
import os
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from typer.testing import CliRunner

from federation.cli.main import app
from federation.coordinator import server_app
from federation.coordinator.reasons import HANDSHAKE_QUORUM
from federation.coordinator.server_app import main
from federation.ledger.view import heads_in_record
from federation.protocol.reply_validation import decode, encode
from federation.protocol.study_config import StrategyTable
from federation.runs.accepted_ledgers import accept_ledger
from federation.runs.failure import read_failure
from federation.runs.run_folder import RunNote, write_note
from models.refusal import Refusal
from models.release import load_release
from tests.helpers.whole_run import NAMES, Grid, execute, head, rounds_of, study


def test_history_records_the_ledger_head_of_each_site(server, caplog):
    grid = Grid()
    with caplog.at_level("INFO", logger="flwr"):
        history = execute(server, grid)
    assert [entry.get("step", entry.get("round")) for entry in history] == [
        *("handshake", 1, 2, 3, "features of training patients", "calibration", "test", "features of test patients")
    ]
    for place, entry in enumerate(history, start=1):
        assert entry["ledger"] == {name: head(2 * place) for name in NAMES.values()}
        assert entry["sites"] == ["north", "south", "west"]
    for node in NAMES:  # each site received the head that it had reported before
        assert [lines for _, lines in grid.told[node]] == list(range(0, 16, 2))
        assert grid.told[node][-1][0] == f"{14:064x}"


def test_site_that_reports_more_patients_than_enrolled_is_capped_and_named(server, caplog):
    """South reports 42 and was enrolled with 30. The number of north is not known. West is far below its number."""
    with caplog.at_level("INFO", logger="flwr"):
        rounds = rounds_of(execute(server, Grid()))
    assert [entry["capped"] for entry in rounds] == [["south"]] * 3
    assert "south: W_EXAMPLES_CAPPED" in caplog.text
    assert "42" not in json.dumps(rounds[0]["capped"])


def test_resumed_run_sends_the_last_ledger_heads_to_the_sites(server):
    """The server stops after round 2. The run and the ledgers continue after a restart."""

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
    assert [lines for _, lines in second.told[11]] == [6, 8, 10, 12, 14, 16]  # the handshake is repeated
    assert history[-1]["ledger"]["north"] == head(18)


def interrupted(server) -> Grid:
    """Run a study until the server dies."""

    class Dies(Grid):
        def send_and_receive(self, messages, *, timeout=None):
            if self.lines[11] >= 6:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    first = Dies()
    with pytest.raises(KeyboardInterrupt):
        execute(server, first)
    return first


def test_site_whose_ledger_was_cut_during_server_downtime_is_refused(server):
    first, second = interrupted(server), Grid()
    second.lines = dict(first.lines) | {33: 0}
    last = rounds_of(execute(server, second))[-1]
    assert last["round"] == 3
    assert last["refused"] == {"west": "E_REPLY_LEDGER_CUT"}


def test_site_whose_cut_ledger_the_office_accepted_takes_part_again(server, caplog):
    first, second = interrupted(server), Grid()
    last = first.lines[33]
    write_note(server / "runs" / "trial-1", RunNote(begun=datetime.now(UTC), ended="stopped"))
    arguments = ["study", "accept-ledger", "trial-1", "west", "--server", str(server), "--note", "restored; by A."]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with pytest.raises(Refusal, match="E_LEDGER_UNKNOWN"):  # once is enough
        accept_ledger(server, "trial-1", "west", "again")
    second.lines = dict(first.lines) | {33: 0}
    with caplog.at_level("INFO", logger="flwr"):
        history = execute(server, second)
    assert all("west" in entry["sites"] and not entry["refused"] for entry in history[-4:])
    assert second.told[33][0] == ("", 0)  # so that the site's gateway does not miss the lines either
    (accepted,) = [entry for entry in history if entry.get("step") == "ledger accepted"]
    assert (accepted["note"], accepted["cut"]["lines"]) == ("restored; by A.", last)
    assert "the ledger of west was cut" in caplog.text
    known = heads_in_record(server / "runs" / "trial-1" / "history.json", "west")
    assert max(each.lines for each in known) == second.lines[33]


@pytest.mark.parametrize(("site", "note"), [("nowhere", "why"), ("west", "")])
def test_ledger_is_not_accepted_for_unknown_sites_or_without_a_reason(server, site, note):
    interrupted(server)
    write_note(server / "runs" / "trial-1", RunNote(begun=datetime.now(UTC), ended="stopped"))
    with pytest.raises(Refusal, match=r"E_LEDGER_UNKNOWN|E_RESTORE_NOTE"):
        accept_ledger(server, "trial-1", site, note)
    assert not (server / "runs" / "trial-1" / "accepted_ledgers.json").exists()


def test_history_records_refusals_in_the_final_evaluation(server):
    def bad(message: Message, content: RecordDict):
        is_final = message.metadata.message_type == "evaluate.test"
        return Error(1, "E_TOO_FEW_PATIENTS: DOE^JOHN") if is_final else content

    history = execute(server, Grid(bad))
    final = next(entry for entry in history if entry.get("step") == "test")
    assert final["refused"] == {"west": "E_TOO_FEW_PATIENTS"}
    assert final["sites"] == ["north", "south"]
    assert "DOE" not in json.dumps(history)


def test_site_with_clipped_update_is_named(server, caplog):
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


def test_default_strategy_continues_with_two_of_three_sites(server):
    def silent_in_2(message: Message, content: RecordDict):
        is_second = message.content.config_records["config"]["server-round"] == 2
        return Error(1, "E_TOO_FEW") if is_second else content

    rounds = rounds_of(execute(server, Grid(silent_in_2), study(**StrategyTable().model_dump())))
    assert [entry["lost_for"] for entry in rounds] == [None, None, None]
    assert [len(entry["sites"]) for entry in rounds] == [3, 2, 3]


@pytest.mark.parametrize(("strategy", "is_spoilt"), [("FedMedian", False), ("FedAvg", True)])
def test_outlier_calibration_of_one_site_does_not_affect_robust_release(server, strategy, is_spoilt):
    """FedAvg is the control: there, one outlier makes the band cover nearly all probabilities."""

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


def test_strategy_that_needs_more_sites_is_refused_before_any_message(server):
    grid = Grid()
    with pytest.raises(Refusal) as refused:
        execute(server, grid, study(name="Krum", options={"num_malicious_nodes": 1}))
    assert refused.value.code == "E_STRATEGY_SITES"
    assert grid.sent == []


def test_lost_round_is_reported_with_its_reason(server, caplog):
    def silent_in_2(message: Message, content: RecordDict):
        is_second = message.content.config_records["config"]["server-round"] == 2
        return Error(1, "E_TOO_FEW") if is_second else content

    with caplog.at_level("INFO", logger="flwr"):
        rounds = rounds_of(execute(server, Grid(silent_in_2), study(name="FedMedian")))
    assert [entry["lost_for"] for entry in rounds] == [None, "E_STRATEGY_REPLIES", None]
    assert "round 2 of 3 LOST (E_STRATEGY_REPLIES) · 2 of 3 sites" in caplog.text


def test_run_of_which_no_round_counts_has_no_candidate(server):
    """Before, the untrained network was released and registered, and the run was called complete."""

    def silent(message: Message, content: RecordDict):
        return Error(1, "E_TOO_FEW") if message.metadata.message_type == "train" else content

    short = study(name="FedMedian")
    short = short.model_copy(update={"study": short.study.model_copy(update={"rounds": 2})})
    with pytest.raises(Refusal) as refused:
        execute(server, Grid(silent), short)
    assert (refused.value.code, refused.value.numbers) == ("E_NOTHING_LEARNT", {"codes": "E_STRATEGY_REPLIES"})
    assert not (server / "runs" / "trial-1" / "release").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_full_or_unwritable_disk_is_refused_with_a_code(server, monkeypatch, caplog, code):
    """This code covers all files except checkpoints, such as history and release. Checkpoints have their own code."""

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


def test_run_keeps_why_it_ended_until_it_goes_on(server, monkeypatch):
    monkeypatch.setenv("FEDTHORAX_SERVER_DIR", str(server))
    monkeypatch.setattr(server_app, "EagerGrid", lambda grid: grid)
    folder = server / "runs" / "trial-1"
    context = Context(1, 1, {}, RecordDict(), {"study": study().model_dump_json(), "run": "trial-1"})

    def refused(*_: Any, **__: Any) -> None:
        raise Refusal(HANDSHAKE_QUORUM, quorum=3, present=1, others="no other site is online")

    with monkeypatch.context() as patched:
        patched.setattr(server_app, "shake_hands", refused)
        with pytest.raises(Refusal, match="E_HANDSHAKE_QUORUM"):
            main(Grid(), context)  # type: ignore[misc]
    kept = read_failure(folder)
    assert kept is not None
    assert (kept.code, kept.remedy) == ("E_HANDSHAKE_QUORUM", HANDSHAKE_QUORUM.remedy)
    main(Grid(), context)  # type: ignore[misc]
    assert read_failure(folder) is None


def test_other_os_errors_are_not_reported_as_disk_errors(server, monkeypatch):
    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setenv("FEDTHORAX_SERVER_DIR", str(server))
    monkeypatch.setattr(server_app, "EagerGrid", lambda grid: grid)
    monkeypatch.setattr(server_app, "save_release", lost)
    context = Context(1, 1, {}, RecordDict(), {"study": study().model_dump_json(), "run": "trial-1"})
    with pytest.raises(ConnectionResetError):
        main(Grid(), context)  # type: ignore[misc]


def test_released_model_has_finite_weights(server):
    execute(server, Grid())
    release = load_release(server / "runs" / "trial-1" / "release")
    tensors = release.network.state_dict().values()
    assert all(np.isfinite(tensor.numpy()).all() for tensor in tensors)
