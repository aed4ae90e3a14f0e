"""A running study moves to another server: two servers, real nodes, one history. Synthetic hospitals.

One hospital sets the new address (`fedthorax node move`). The other changes nothing and its node keeps running: its
address now leads to the new server, as after a DNS change.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.ledger.chain import Head, Ledger, ledger_file
from federation.strategy.checkpoint import State, load_latest
from federation.superlink.control import MOVED
from federation.system.process import free_port
from pipeline.site.folder import Site
from tests.chaos.network import Link
from tests.e2e.conftest import Command, allow, enter, ok, run_command, wait_online
from tests.e2e.test_federation import STUDY, run_name

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROUNDS = 2  # the first round runs on the old server
MOMENTUM = """
[strategy]
name = "FedAvgM"
options = { server_momentum = 0.5 }

[evaluation]
shortcut_audit = false
"""


@dataclass
class Move:
    """The results of a move. `before` is the study's state when the old server ended."""

    old: Path
    new: Path
    sites: Path
    run: str
    before: State
    exported: dict[str, Any]
    imported: dict[str, Any]
    resumed: Command


def rounds(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in history if "round" in entry]


def history(server: Path, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((server / "runs" / run / "history.json").read_text())
    return found


@pytest.fixture(scope="module")
def moved(two_sites: Path, tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]) -> Iterator[Move]:
    folder = tmp_path_factory.mktemp("move")
    old, new, sites = folder / "old", folder / "new", folder / "sites"
    shutil.copytree(two_sites, sites)
    study = STUDY.replace("rounds = 4", f"rounds = {ROUNDS}").replace("sites = 3", "sites = 2")
    (folder / "study.toml").write_text(study + MOMENTUM)
    (folder / "passphrase").write_text("correct horse battery staple\n")
    (folder / "passphrase").chmod(0o600)
    sealed = ("--passphrase-file", folder / "passphrase", "--json")
    ports = free_port(), free_port()
    ok("server", "init", old, "--port", str(ports[0]))
    server = start("server", "start", old)
    server.wait_for("The server is up", seconds=300)
    with Link(ports[0]) as name_of_the_server:
        for name in ("north", "south"):
            enter(sites / name, old, name)
            allow(sites / name, folder / "study.toml")
        settings = sites / "south" / "site.toml"
        settings.write_text(
            settings.read_text().replace(f"localhost:{ports[0]}", f"localhost:{name_of_the_server.port}")
        )
        north, south = (start("node", "start", sites / name) for name in ("north", "south"))
        wait_online([north, south])

        run = start("study", "run", folder / "study.toml", "--server", old)
        run.wait_for(f"round 1 of {ROUNDS}", seconds=300)
        run.interrupt()
        server.interrupt()
        before = load_latest(old / "runs" / run_name(run) / "checkpoints").state
        exported = json.loads(ok("server", "export", old, folder / "archive", *sealed))

        name_of_the_server.target = ports[1]
        where = ("--host", "127.0.0.1", "--port", str(ports[1]))
        imported = json.loads(ok("server", "import", folder / "archive", new, *where, *sealed))
        start("server", "start", new).wait_for("The server is up", seconds=300)
        north.interrupt()
        ok("node", "move", sites / "north", f"127.0.0.1:{ports[1]}")
        start("node", "start", sites / "north").wait_for("is online", seconds=300)
        south.wait_for(r"E_NODE_FORGOTTEN(.|\n)* is online", seconds=300)

        resumed = start("study", "resume", run_name(run), "--server", new)
        assert resumed.wait(seconds=400) == 0, resumed.text()
        yield Move(old, new, sites, run_name(run), before, exported, imported, resumed)


def test_study_continues_with_the_next_round_on_the_new_server(moved: Move) -> None:
    text = moved.resumed.text()
    assert f"going on after round 1 of {ROUNDS}" in text
    assert f"round 2 of {ROUNDS} · 2 of 2 sites" in text, "both hospitals take part without a new enrolment"
    assert not re.search(r"\bE_[A-Z]", text[: text.index("\n", text.index(f"round 2 of {ROUNDS}"))])
    told = history(moved.new, moved.run)
    assert [entry["round"] for entry in rounds(told)] == [1, 2]
    assert told[: len(moved.before.history)] == list(moved.before.history)
    assert all(entry["sites"] == ["north", "south"] for entry in rounds(told))


def test_weights_and_optimiser_state_are_moved_bit_for_bit(moved: Move) -> None:
    kept = (moved.new / "runs" / moved.run / "checkpoints").glob("round-000001-*")
    (old,) = (moved.old / "runs" / moved.run / "checkpoints").glob("round-000001-*")
    assert [file.read_bytes() for file in kept] == [old.read_bytes()]
    assert moved.before.memory, "the optimiser has a state (momentum) that must be moved"
    after = load_latest(moved.new / "runs" / moved.run / "checkpoints").state
    assert after.round == ROUNDS
    assert any(not np.array_equal(after.arrays[name], moved.before.arrays[name]) for name in after.arrays)


def test_ledgers_continue_from_the_head_known_to_the_old_server(moved: Move) -> None:
    for name in ("north", "south"):
        (told,) = (entry["ledger"][name] for entry in rounds(moved.before.history))
        book = Ledger(ledger_file(Site.open(moved.sites / name)))
        assert book.contains(Head(told["lines"], told["head"]))
        assert book.head.lines > told["lines"]
        ok("node", "ledger", moved.sites / name, "--verify")
        later = [entry["ledger"][name]["lines"] for entry in history(moved.new, moved.run) if name in entry["ledger"]]
        assert later == sorted(later)
        assert later[-1] > told["lines"]


def test_mlflow_has_all_rounds_in_one_run(moved: Move) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{moved.new / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("end-to-end")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == moved.run
    assert run.info.status == "FINISHED"
    assert run.data.params["study.rounds"] == str(ROUNDS)
    # The hospitals have too few patients of one class for a figure of their own.
    steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "round_sites")}
    assert steps == {1, 2}
    assert client.get_model_version_by_alias("end-to-end", "candidate").run_id == run.info.run_id


def test_export_and_import_report_the_same_contents(moved: Move) -> None:
    for what in ("sha256", "bytes", "contents"):
        assert moved.exported[what] == moved.imported[what]
    assert moved.exported["contents"]["runs"] == {moved.run: 1}
    assert moved.exported["contents"]["sites"] == 2


def test_old_server_refuses_to_start_and_says_how_to_undo_the_move(moved: Move) -> None:
    done = run_command("server", "start", moved.old)
    assert done.returncode == 1
    assert "E_SERVER_MOVED" in done.stderr
    assert MOVED in done.stderr
    assert "Traceback" not in done.stderr
