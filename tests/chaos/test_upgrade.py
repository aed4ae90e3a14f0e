"""Upgrade and downgrade in the middle of a study: the model is the same to the bit as without."""

import json
from collections.abc import Iterator

import pytest

from pipeline.phantom.generate import make_hospitals
from tests.helpers.rehearsal import NAMES, Rehearsal, assert_same_model, rehearsal_in

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp("upgrade")
    make_hospitals(folder / "hospitals", patients=[14] * 3, seed=1, defects=False, anatomy="template")
    with rehearsal_in(folder, folder / "hospitals") as here:
        yield here


def test_nodes_are_upgraded_one_by_one_and_one_goes_back(rehearsal: Rehearsal) -> None:
    """The server was upgraded first: N-1 made its folder. The sites' folders are used by both versions in turn."""
    older, newer = rehearsal.older, rehearsal.newer
    undisturbed, _ = rehearsal.run(3, {})
    upgraded, told = rehearsal.run(3, {1: {"north": newer}, 2: {"south": newer, "north": older}})
    assert_same_model(upgraded, undisturbed)
    assert told == [
        {"north": older.number, "south": older.number, "west": older.number},
        {"north": newer.number, "south": older.number, "west": older.number},
        {"north": older.number, "south": newer.number, "west": older.number},
    ]
    for name in NAMES:
        newer.ok("node", "ledger", rehearsal.site(name), "--verify")
        assert json.loads(newer.ok("node", "upgrade-check", rehearsal.site(name), "--json"))["safe_now"]
