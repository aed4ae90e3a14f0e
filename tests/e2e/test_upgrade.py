"""Nodes of two versions in one study. `tests/chaos/test_upgrade.py` upgrades them in the middle of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.rehearsal import Rehearsal, rehearsal_in

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def rehearsal(three_hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    names = ("north", "south")
    with rehearsal_in(tmp_path_factory.mktemp("upgrade"), three_hospitals, names=names, upgraded=("south",)) as here:
        yield here


def test_nodes_of_two_versions_train_together(rehearsal: Rehearsal) -> None:
    state, told = rehearsal.run(1, {})
    assert state.round == 1
    assert told == [{"north": rehearsal.older.number, "south": rehearsal.newer.number}]
