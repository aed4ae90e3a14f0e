"""Faults of hospitals' nodes: killed, doubled, slow, short of memory or disk. docs/reliability.md has the table."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.federation import NAMES, Federation, Start, federation, finished, kill_member, wait_until
from tests.e2e.conftest import Command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_f1_a_killed_supernode_costs_its_round_and_no_more(three: Federation):
    """The node says why it ended; started again, as systemd does, it takes part as before.

    The server counts a killed node as present for up to a minute, in which it does not let it in again: how many
    short rounds that is depends on the machine, so the next study is asked.
    """
    run = three.run_study(rounds=3)
    run.wait_for("round 1 of 3", seconds=240)
    kill_member(three.nodes["west"], "flower-supernode")
    assert three.nodes["west"].wait(seconds=60) == 1
    assert "E_" in three.nodes["west"].text()
    assert "Traceback" not in three.nodes["west"].text()
    finished(run)
    rounds = three.rounds(run)
    assert not any(entry["lost"] for entry in rounds)
    assert all({"north", "south"} <= set(entry["sites"]) for entry in rounds)
    assert max(entry["seconds"] for entry in rounds) < 120 * 1.1  # the round's timeout and a tenth
    three.start_node("west")
    again = three.run_study(rounds=1)
    finished(again)
    assert three.rounds(again)[0]["sites"] == ["north", "south", "west"]


def test_f12_a_node_with_the_same_key_elsewhere_is_turned_away(three: Federation, tmp_path: Path):
    """The one that is there stays; the copy says that its key is in use."""
    shutil.copytree(
        three.site("west"), tmp_path / "copy", ignore=shutil.ignore_patterns("logs", "gateway", "flower_home", "*.sock")
    )
    copy = three.start("node", "start", tmp_path / "copy")
    assert copy.wait(seconds=180) == 1
    assert "E_NOT_ENROLLED" in copy.text()
    assert three.nodes["west"].process.poll() is None
    run = three.run_study(rounds=2)
    finished(run)
    assert [entry["sites"] for entry in three.rounds(run)] == [["north", "south", "west"]] * 2


def test_f13_a_slow_site_misses_the_round_and_is_named(three: Federation):
    """Its line carries an eighth of a round's two models in the round's time, which is long for the others."""
    run = three.run_study(rounds=3, timeout_s=120)
    run.wait_for("round 1 of 3", seconds=240)
    three.links["south"].bytes_per_s = 2_000
    run.wait_for("round 2 of 3", seconds=240)
    three.links["south"].bytes_per_s = float("inf")
    text = finished(run)
    second = three.rounds(run)[1]
    assert second["sites"] == ["north", "west"]
    assert second["refused"] == {"south": "E_SITE_MISSING"}
    assert 115 <= second["seconds"] < 120 * 1.1
    assert "south: E_SITE_MISSING" in text


def test_f15_a_client_that_the_system_kills_is_a_code_and_nothing_else(three: Federation):
    north = three.nodes["north"]
    told = len(north.text())
    run = three.run_study(rounds=3, timeout_s=120)
    # At its work: the process of the round before may still be on its way out.
    wait_until(lambda: "training for round 2" in north.text()[told:], "north at work on round 2", seconds=480)
    kill_member(north, "^ClientApp")
    text = finished(run)
    assert three.rounds(run)[1]["refused"]["north"].startswith("E_")
    assert str(three.folder / "sites") not in text
    assert north.process.poll() is None  # the node itself goes on
    assert three.rounds(run)[-1]["sites"] == ["north", "south", "west"]


def test_f8_a_full_disk_at_a_site_is_a_code_and_passes_when_there_is_room(three: Federation):
    """Where the gateway keeps messages on their way, a file system of a few kilobytes."""
    spool = three.site("south") / "gateway"
    spool.mkdir(exist_ok=True)
    with small_disk(spool):
        run = three.run_study(rounds=2, timeout_s=60)
        finished(run)
        refused = [entry["refused"].get("south", "") for entry in three.rounds(run)]
        assert all(code.startswith("E_") for code in refused), refused
    again = three.run_study(rounds=2)
    finished(again)
    assert three.rounds(again)[-1]["sites"] == ["north", "south", "west"]


class small_disk:  # noqa: N801 (used as a word)
    """A file system of 64 kB over a folder, while the block lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", self.folder], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("only root can make a small disk")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


def test_f3_with_every_node_gone_for_a_minute_the_study_waits(three: Federation):
    run = three.run_study(rounds=4, wait_s=300)
    run.wait_for("round 1 of 4", seconds=240)
    for node in three.nodes.values():
        node.kill()
    time.sleep(60)
    assert run.process.poll() is None, run.text()
    for name in three.names:
        three.start_node(name)
    finished(run, seconds=900)
    assert three.rounds(run)[-1]["sites"] == ["north", "south", "west"]
    assert sum(entry["lost"] for entry in three.rounds(run)) <= 1


def test_f2_two_of_five_killed_leave_a_study_that_ends(tmp_path: Path, start: Start):
    with federation(tmp_path, start, NAMES) as five:
        run = five.run_study(rounds=3, quorum=3, timeout_s=300, strategy="FedMedian")
        run.wait_for("round 1 of 3", seconds=600)
        killed: list[Command] = [five.nodes.pop(name) for name in ("east", "coast")]
        for node in killed:
            node.kill()
        finished(run, seconds=1200)
        wait_until(lambda: len(five.rounds(run)) == 3, "three rounds in the history", seconds=5)
        assert not any(entry["lost"] for entry in five.rounds(run))
        assert five.rounds(run)[-1]["sites"] == ["north", "south", "west"]
