"""Shared federation of three hospitals. Each test restores it. Processes are ended by their id."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.federation import NAMES, Federation, Start, federation
from tests.e2e.conftest import Command


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function that starts `fedthorax ...` in the background."""
    folder = tmp_path_factory.mktemp("output")
    started: list[Command] = []

    def begin(*arguments: str | Path) -> Command:
        started.append(Command(folder / f"{len(started)}.log", *arguments))
        return started[-1]

    yield begin
    with ExitStack() as ends:  # in reverse order; end each of them even if another fails
        for command in started:
            ends.callback(command.interrupt)


@pytest.fixture(scope="session")
def federation_of_three(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("chaos"), start, NAMES[:3]) as here:
        yield here


@pytest.fixture
def three(federation_of_three: Federation) -> Federation:
    """A running server and three hospitals that are online."""
    federation_of_three.restore()
    return federation_of_three
