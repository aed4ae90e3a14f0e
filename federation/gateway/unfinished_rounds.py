"""The masked rounds of a site whose last steps are not done yet: the gateway asks the server about them.

SITE_DIR/gateway/secagg/<run>.begun  the header of a run's round whose last steps are not done, and the number of groups

These files say only what is left to do. What the gateway must never forget (the last attempt of each run, the sums that
were revealed, and over which hospitals) is in `federation.secure_aggregation.store`, and stays when a file is removed.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.messages import Header
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

MAX_OTHERS = 4  # runs whose rounds may wait when another run begins one; an honest server leaves at most one
LAST_SECONDS = 7 * 24 * 3600.0  # a killed server is resumed within this time
_SUFFIX = ".begun"

log = logging.getLogger("fedthorax.gateway")


@dataclass(frozen=True)
class Unfinished:
    """A round whose last steps are not done. `groups`: of the study. `until`: when it ends, in seconds since 1970."""

    header: Header
    groups: int
    until: float


class UnfinishedRounds:
    """The files, in `folder`. Its functions read and write files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, header: Header, groups: int) -> None:
        """Store, durably, that this round of the run has last steps, in place of an earlier one."""
        write_durably(self._file(header.run), canonical({"header": json.loads(header.content), "groups": groups}))

    def remove(self, run: str) -> None:
        self._file(run).unlink(missing_ok=True)

    def all(self) -> list[Unfinished]:
        """Return the rounds, oldest first; damaged files are left out."""
        found = (_read(file) for file in self._folder.glob(f"*{_SUFFIX}"))
        return sorted((each for each in found if each), key=lambda each: each.until)

    def _file(self, run: str) -> Path:
        return self._folder / f"{run}{_SUFFIX}"


def _read(file: Path) -> Unfinished | None:
    try:
        # The time of the file, not of the gateway's start: a round must not wait longer after each restart.
        until = file.stat().st_mtime + LAST_SECONDS
        begun = json.loads(file.read_bytes())
        return Unfinished(Header.parse(canonical(begun["header"])), int(begun["groups"]), until)
    except (Refusal, OSError, ValueError, KeyError, TypeError):
        log.warning("the file of a masked round is damaged")
        return None
