"""Faults of the network links between hospitals and server, and of a hospital's clock (see docs/reliability.md)."""

import shutil
import time

import pytest

from tests.chaos.federation import Federation, finished

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
EVERYONE = ["north", "south", "west"]


def counted_once(here: Federation, run) -> None:
    """Check that every site counts once in every round and that the upload is one reply per site."""
    rounds = here.rounds(run)
    assert [entry["sites"] for entry in rounds] == [EVERYONE] * len(rounds)
    assert len({entry["bytes_up"] for entry in rounds}) == 1
    assert [entry["round"] for entry in rounds] == list(range(1, len(rounds) + 1))


def test_f9_slow_link_with_jitter_only_delays_rounds(three: Federation):
    """0.5 s delay in each direction, with 0.1 s of jitter, and 1 Mbit/s at every hospital."""
    for link in three.links.values():
        link.delay_s, link.jitter_s, link.bytes_per_s = 0.5, 0.1, 125_000
    run = three.run_study(rounds=2, timeout_s=400)
    try:
        finished(run, seconds=1200)
    finally:
        for link in three.links.values():
            link.delay_s, link.jitter_s, link.bytes_per_s = 0.0, 0.0, float("inf")
    counted_once(three, run)


@pytest.mark.parametrize("forget", [False, True], ids=["partition", "half-open"])
def test_f10_link_down_for_30_seconds_only_delays_rounds(three: Federation, forget: bool):
    run = three.run_study(rounds=3, timeout_s=200)
    run.wait_for("round 1 of 3", seconds=240)
    three.links["west"].hold()
    time.sleep(30)
    three.links["west"].mend(forget=forget)
    finished(run)
    counted_once(three, run)


def test_f10_link_down_for_5_minutes_costs_only_that_sites_rounds(three: Federation):
    run = three.run_study(rounds=12, timeout_s=100)
    run.wait_for("round 1 of 12", seconds=240)
    three.links["west"].hold()
    time.sleep(300)
    three.links["west"].mend(forget=True)
    finished(run, seconds=1500)
    three.wait_online()
    again = three.run_study(rounds=1)
    finished(again)
    counted_once(three, again)
    assert all(entry["sites"] in (["north", "south"], EVERYONE) for entry in three.rounds(run))


@pytest.mark.parametrize("shift", ["+10m", "-10m"])
def test_f16_clock_off_by_ten_minutes_is_reported(three: Federation, shift: str):
    """faketime(1) shifts the clock of all processes of the node."""
    if not shutil.which("faketime"):
        pytest.skip("faketime is not installed")
    three.nodes["west"].interrupt()
    time.sleep(70)  # until the server counts the node as offline
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
        patch.setenv("FAKETIME", shift)
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        node = three.start("node", "start", three.site("west"))
    try:
        node.wait_for("E_CLOCK", seconds=120)
    finally:
        node.interrupt()
        three.start_node("west")
