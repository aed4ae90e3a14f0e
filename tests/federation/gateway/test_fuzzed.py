"""The scenarios of `make fuzz` with fixed inputs: a hostile server or app does not stop the gateway.

The scenarios themselves are tested too: they find defects that are injected into the gateway.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from federation.gateway import task_exchange, task_intake
from tests.fuzz.gateway.scenarios import hostile_app, hostile_server
from tests.fuzz.gateway.steady import Steady

INPUT_BYTES = 64
Play = Callable[[Any, range], None]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """Runs a scenario with one input for each number."""
    made: list[Steady] = []

    def play(scenario: Any, numbers: range) -> None:
        made.append(Steady(tmp_path, scenario))
        for number in numbers:
            made[0].play(Random(number).randbytes(INPUT_BYTES))

    yield play
    for steady in made:
        steady.close()


@pytest.mark.parametrize("scenario", [hostile_server, hostile_app])
def test_hostile_input_does_not_stop_the_gateway(play: Play, scenario: Any) -> None:
    play(scenario, range(40))


DEFECTS: dict[str, tuple[Any, object, str, object, str]] = {
    "any metadata are taken": (
        hostile_server,
        task_intake,
        "checked_metadata",
        lambda told, node_id: told,
        "Invalid message type|does not come to an end",
    ),
    "an app's own words are its code": (
        hostile_app,
        task_exchange,
        "code_in",
        lambda text, *_: text,
        "tells what an app wrote",
    ),
    "the server tells the node of its run": (
        hostile_server,
        task_intake,
        "run_for_node",
        lambda told, *_: told,
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_injected_defect_is_found(play: Play, monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    scenario, owner, name, value, text = DEFECTS[defect]
    monkeypatch.setattr(owner, name, value)
    with pytest.raises((AssertionError, ValueError)) as found:
        play(scenario, range(150))
    assert re.search(text, str(found.value))
