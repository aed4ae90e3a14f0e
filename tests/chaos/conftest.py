"""Three hospitals for all faults, each of which leaves them as they were; every process is ended by its id."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.federation import NAMES, Federation, Start, federation
from tests.e2e.conftest import Command


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start `fedthorax ...` in the background."""
    folder = tmp_path_factory.mktemp("output")
    started: list[Command] = []

    def begin(*arguments: str | Path) -> Command:
        started.append(Command(folder / f"{len(started)}.log", *arguments))
        return started[-1]

    yield begin
    with ExitStack() as ends:  # the last first, and each of them, whatever happens to another
        for command in started:
            ends.callback(command.interrupt)


@pytest.fixture(scope="session")
def federation_of_three(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("chaos"), start, NAMES[:3]) as here:
        yield here


@pytest.fixture
def three(federation_of_three: Federation) -> Federation:
    """A running server and three hospitals, online."""
    federation_of_three.restore()
    return federation_of_three
