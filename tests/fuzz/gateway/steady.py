"""Run one scenario after the other in one gateway. Its memory must not grow with the number of scenarios."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.gateway.scenarios import SCHEMA
from tests.fuzz.gateway.world import World

_CLEANED_EVERY = 200  # scenarios
_MEASURED_FROM = 400  # by then everything is imported, and allocators have reached their size
MAX_GROWTH_BYTES = 96 * 2**20


class Steady:
    """Run `scenario` in a world that is started in `folder` and exists as long as the process."""

    def __init__(self, folder: Path, scenario: Callable[[World, bytes], None]) -> None:
        self._world = World(folder / "site", SCHEMA).__enter__()
        self._scenario, self._count, self._bytes = scenario, 0, 0

    def __call__(self, path: Path) -> None:
        self.play(path.read_bytes())

    def play(self, content: bytes) -> None:
        """Run the scenario once. Raises AssertionError if a check fails or memory has grown too much."""
        if self._count % _CLEANED_EVERY == 0:
            self._world.clean()
        self._scenario(self._world, content)
        self._count += 1
        if self._count == _MEASURED_FROM:
            self._bytes = memory_bytes()
        if self._count > _MEASURED_FROM and self._count % _CLEANED_EVERY == 0:
            growth = memory_bytes() - self._bytes
            assert growth < MAX_GROWTH_BYTES, f"{self._count} scenarios took {growth >> 20} MB more"

    def close(self) -> None:
        self._world.__exit__()


def memory_bytes() -> int:
    """Return the resident memory of this process (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
