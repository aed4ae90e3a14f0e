"""Faults of nodes: killed, started twice, slow, out of memory, full disk (see docs/reliability.md)."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from federation.node.start import SUPERNODE
from tests.chaos.federation import NAMES, Federation, Start, federation, finished, kill_member, wait_until
from tests.e2e.conftest import Command

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def test_f1_killed_supernode_misses_only_its_round(three: Federation):
    """The node reports why it ended. After a restart, as by systemd, it takes part again.

    The server counts a killed node as online for up to a minute and does not admit it again in this time. How many
    short rounds this takes depends on the machine, so the test checks the next study.
    """
    run = three.run_study(rounds=3)
    run.wait_for("round 1 of 3", seconds=240)
    kill_member(three.nodes["west"], SUPERNODE)
    assert three.nodes["west"].wait(seconds=60) == 1
    assert "E_" in three.nodes["west"].text()
    assert "Traceback" not in three.nodes["west"].text()
    finished(run)
    rounds = three.rounds(run)
    assert not any(entry["lost"] for entry in rounds)
    assert all({"north", "south"} <= set(entry["sites"]) for entry in rounds)
    assert max(entry["seconds"] for entry in rounds) < 120 * 1.1  # the round's timeout plus 10 %
    three.start_node("west")
    again = three.run_study(rounds=1)
    finished(again)
    assert three.rounds(again)[0]["sites"] == ["north", "south", "west"]


def test_f12_second_node_with_the_same_key_is_refused(three: Federation, tmp_path: Path):
    """The running node stays online. The copy reports that its key is in use."""
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


def test_f13_slow_site_misses_the_round_and_is_reported(three: Federation):
    """Within the round's timeout, the link carries an eighth of a round's two models. The others have enough time."""
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


def test_f15_client_app_killed_by_the_system_is_reported_only_as_a_code(three: Federation):
    north = three.nodes["north"]
    told = len(north.text())
    run = three.run_study(rounds=3, timeout_s=120)
    # Wait until it trains: the process of the previous round may still be ending.
    wait_until(lambda: "training for round 2" in north.text()[told:], "north at work on round 2", seconds=480)
    kill_member(north, "^ClientApp")
    text = finished(run)
    assert three.rounds(run)[1]["refused"]["north"].startswith("E_")
    assert str(three.folder / "sites") not in text
    assert north.process.poll() is None  # the node itself keeps running
    assert three.rounds(run)[-1]["sites"] == ["north", "south", "west"]


def test_f8_full_disk_at_site_is_reported_until_there_is_space(three: Federation):
    """The gateway's spool folder is on a file system of a few kilobytes."""
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
    """Mount a file system of 64 kB over a folder inside the block."""

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


def test_f3_study_waits_while_all_nodes_are_offline_for_a_minute(three: Federation):
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


def test_f2_study_completes_after_two_of_five_nodes_are_killed(tmp_path: Path, start: Start):
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
