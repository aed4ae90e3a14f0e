"""Data in transit, kept on disk because a model in each direction would not fit into the gateway's memory.

SITE_DIR/gateway/in/, out/     objects of the current task, named by their ids
SITE_DIR/gateway/unanswered    the current task, so that its failure can be reported after a restart
SITE_DIR/gateway/schemas/      see `schema`
SITE_DIR/gateway/rounds.json   when the rounds of the last 31 days were accepted
SITE_DIR/gateway/pretraining.json  when those of them that pretrain were accepted
SITE_DIR/gateway/private.json  digests of the names of studies that ran here with differential privacy
SITE_DIR/gateway/models/       see `lineage`
SITE_DIR/gateway/answers/      see `questions`
"""

import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

from federation.gateway import reasons
from models.refusal import Refusal
from pipeline.site.folder import MONTH_SECONDS
from pipeline.system.atomic_files import write_atomically, write_durably

PRETRAINING_ROUNDS = "rounds of pretraining in 31 days"
_DAY_SECONDS = 24 * 3600.0


class Objects:
    """A folder of objects, each in a file named by its id. `size`: their total size in bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, int] = {}
        self.clear()

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    def put(self, object_id: str, content: bytes) -> None:
        """Store an object whose id equals its SHA-256; the caller checked it, so it is a safe name. Raises OSError."""
        write_atomically(self.folder / object_id, content)  # two requests may store it at once
        self.sizes[object_id] = len(content)

    def __contains__(self, object_id: str) -> bool:
        return object_id in self.sizes

    def get(self, object_id: str) -> bytes:
        """Return an object's content. Raises KeyError, OSError."""
        if object_id not in self.sizes:
            raise KeyError(object_id)
        return (self.folder / object_id).read_bytes()

    def clear(self) -> None:
        self.sizes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # a file that is being written right now may remain


class Spool:
    """The gateway's folder at a site. Data in transit that an earlier gateway left there is deleted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        self.came_in, self.going_out = Objects(folder / "in"), Objects(folder / "out")
        self.folder, self.schemas = folder, folder / "schemas"
        self._private = folder / "private.json"
        self._unanswered, self._rounds = folder / "unanswered", folder / "rounds.json"
        self._pretraining = folder / "pretraining.json"

    def clear(self) -> None:
        self.came_in.clear()
        self.going_out.clear()

    @property
    def unanswered(self) -> bytes | None:
        """The task that an earlier gateway accepted but did not answer, as stored by `remember`. Raises OSError."""
        with suppress(FileNotFoundError):
            return self._unanswered.read_bytes() or None
        return None

    def remember(self, task: bytes) -> None:
        write_durably(self._unanswered, task)

    def forget(self) -> None:
        with suppress(OSError):  # a file that cannot be deleted must not stop the gateway
            self._unanswered.unlink(missing_ok=True)

    def check_privacy(self, study: str, *, is_private: bool) -> bool:
        """Remember private studies by name; return whether this one is new among them.

        Raises Refusal E_PRIVACY_DOWNGRADE if one is no longer private.
        """
        known, digest = self._private_studies(), hashlib.sha256(study.encode()).hexdigest()
        if not is_private and digest in known:
            raise Refusal(reasons.PRIVACY_DOWNGRADE)
        if is_private:
            self.add_private({digest})
        return is_private and digest not in known

    def add_private(self, studies: set[str]) -> None:
        """Remember private studies by the digests of their names."""
        known = self._private_studies()
        if not studies <= known:
            write_durably(self._private, json.dumps(sorted(known | studies)).encode())

    def _private_studies(self) -> set[str]:
        try:
            return set(json.loads(self._private.read_text()))
        except FileNotFoundError:
            return set()

    def count_round(self, a_day: int, a_month: int) -> None:
        """Count one more round of training. If it raises E_ROUNDS_A_DAY or E_ROUNDS_A_MONTH, it counts nothing."""
        now = time.time()
        recent = _recent(self._rounds, now)
        if _of_last_day(recent, now) >= a_day:
            raise Refusal(reasons.ROUNDS_A_DAY, allowed=a_day)
        if len(recent) >= a_month:
            raise Refusal(reasons.ROUNDS_A_MONTH, allowed=a_month)
        write_durably(self._rounds, json.dumps([*recent, now]).encode())

    def count_pretraining_round(self, a_month: int) -> None:
        """Count one more round of pretraining. If it raises Refusal E_SITE_LIMIT, it counts nothing."""
        now = time.time()
        recent = _recent(self._pretraining, now)
        if len(recent) >= a_month:
            raise Refusal(reasons.SITE_LIMIT, what=PRETRAINING_ROUNDS, asked=len(recent) + 1, allowed=a_month)
        write_durably(self._pretraining, json.dumps([*recent, now]).encode())

    def add_rounds(self, times: list[float], pretraining: list[float]) -> None:
        """Count rounds that began at `times`, in seconds since 1970, if fewer rounds are known in a day or a month.

        `pretraining`: when those of them began that pretrain.
        """
        now = time.time()
        for file, began in ((self._rounds, times), (self._pretraining, pretraining)):
            known, recent = _recent(file, now), [at for at in began if now - MONTH_SECONDS < at]
            if len(recent) > len(known) or _of_last_day(recent, now) > _of_last_day(known, now):
                write_durably(file, json.dumps(recent).encode())


def _recent(file: Path, now: float) -> list[float]:
    """Return the times in a file that are less than 31 days ago; none if there is no file."""
    try:
        known = [float(at) for at in json.loads(file.read_text())]
    except FileNotFoundError:
        return []
    return [at for at in known if now - MONTH_SECONDS < at]


def _of_last_day(times: list[float], now: float) -> int:
    return sum(now - _DAY_SECONDS < at for at in times)
