"""Cause faults at the synthetic hospitals of hundred.py during a run. Only their folders are touched."""

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from federation.protocol.study_config import Study
from federation.runs.progress import rounds_of
from federation.runs.run_folder import read_history, run_names
from federation.strategy.sampling import draw
from models.refusal import Refusal

AWAY = 10  # sites at any time
HELD_UP = (7, 14)  # rounds with a straggler


@dataclass
class Faults:
    """Moves some folders away in each round; in some rounds one site cannot open its cohort until the round ends."""

    server: Path
    study: Study
    sites: Sequence[Path]
    _over: threading.Event = field(default_factory=threading.Event)
    _away: list[Path] = field(default_factory=list)

    @contextmanager
    def while_running(self, *, active: bool) -> Iterator[None]:
        """Cause faults during the block. At its end every folder is back."""
        thread = threading.Thread(target=self._make)
        if active:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            if active:
                thread.join()

    def _make(self) -> None:
        """From the second round on, move other folders away in each; block a straggler until its round has ended."""
        try:
            for number in range(2, self.study.study.rounds + 1):
                if not self._wait(partial(self._begins, number)):
                    return
                self._send_away(number)
                if number in HELD_UP:
                    with self._held_up(number):
                        self._wait(partial(self._begins, number + 1))
        finally:
            self._bring_back()

    def _begins(self, number: int) -> bool:
        """Whether the previous round is over."""
        return len(rounds_of(history_of(self.server))) >= number - 1

    def _wait(self, until: Callable[[], bool]) -> bool:
        while not until():
            if self._over.wait(0.1):
                return False
        return True

    def _send_away(self, number: int) -> None:
        self._bring_back()
        if number == self.study.study.rounds:  # to be available for the evaluation after it
            return
        for place in draw(range(len(self.sites)), self._name, AWAY, seed=self.study.study.seed, what=f"away {number}"):
            shutil.move(self.sites[place], self._elsewhere(self.sites[place]))
            self._away.append(self.sites[place])

    def _bring_back(self) -> None:
        while self._away:
            site = self._away.pop()
            shutil.move(self._elsewhere(site), site)

    @contextmanager
    def _held_up(self, number: int) -> Iterator[None]:
        """Lock the cohort of one site that this round samples, as if another process writes it."""
        table = self.study.study
        asked = draw(range(len(self.sites)), self._name, table.sites_per_round, seed=table.seed, what=number)
        site = next(self.sites[place] for place in asked if self.sites[place] not in self._away)
        db = sqlite3.connect(site / "cohort" / "cohort.sqlite", isolation_level=None, timeout=30)
        db.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            db.close()

    def _name(self, place: int) -> str:
        return self.sites[place].name

    @staticmethod
    def _elsewhere(site: Path) -> Path:
        return site.with_name(f"{site.name} (away)")


def history_of(server: Path) -> list[dict[str, Any]]:
    """Read the current history of the only run in a server's folder."""
    try:
        return [entry for run in run_names(server) for entry in read_history(server / "runs" / run)]
    except Refusal:  # it is being written at the moment
        return []
