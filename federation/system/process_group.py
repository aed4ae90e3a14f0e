"""A group of processes that need each other: when one ends, all end."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from federation.system.process import POLL_SECONDS, Process
from pipeline.system.child_logs import cut

_LOOK_SECONDS = 10.0  # between two looks at the size of the logs

_log = logging.getLogger("fedthorax")


class Together:
    """Used like one Process. `log`: the log to read first. The processes are asked to end in their given order."""

    def __init__(self, processes: Sequence[Process], *, log: Path) -> None:
        self._processes = tuple(processes)
        self.log = log

    @property
    def running(self) -> bool:
        return all(process.running for process in self._processes)

    @property
    def each_running(self) -> dict[str, bool]:
        """Whether each process runs, by its log's name, which is short and fixed."""
        return {process.log.stem: process.running for process in self._processes}

    @property
    def logs(self) -> list[Path]:
        """The log of each process."""
        return [process.log for process in self._processes]

    def wait(self) -> int:
        """Wait until one process ends by itself, then end the others; return the exit code of the first.

        Meanwhile no log gets longer than `child_logs` allows.
        """
        looked = -math.inf
        while self.running:
            time.sleep(POLL_SECONDS)
            if time.monotonic() > looked + _LOOK_SECONDS:
                looked = time.monotonic()
                cut(self.logs)
        ended = next(process for process in self._processes if not process.running)
        _log.warning("%s has ended; its log is %s", ended.name, ended.log.name)
        self.stop()
        return ended.wait()

    def let_go(self) -> None:
        """Ask all processes to end, without waiting."""
        for process in self._processes:
            process.let_go()

    def stop(self) -> None:
        """End all processes. Returns when all have ended."""
        self.let_go()
        for process in self._processes:
            process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
