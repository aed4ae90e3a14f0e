"""The queue: the folder of received messages, each stored durably before it is acknowledged.

QUEUE/AB/NAME.hl7   one message, as it was sent; NAME consists of two keyed hashes and starts with AB

The first hash stands for the sender and the control id (MSH-3, MSH-4, MSH-10), the second for the content. A message
that is sent again therefore has the same name, and is stored once. A changed message under a used control id is stored
beside the first; the reader takes the newest version of each result. Nothing is ever replaced or deleted here.
"""

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.records.laboratory.hl7_messages import Header
from pipeline.records.laboratory.listener_settings import ListenerTable
from pipeline.records.laboratory.settings import Hl7Laboratory
from pipeline.site.folder import Site
from pipeline.system.atomic_files import sync_folder, write_durably
from pipeline.system.locks import is_held

_HEX = 32  # digits of each hash
LOCK = "listener.lock"


def listener_of(site: Site) -> ListenerTable | None:
    """Return the site's [laboratory.listener], None if there is none."""
    laboratory = site.settings.laboratory
    return laboratory.listener if isinstance(laboratory, Hl7Laboratory) else None


class ResultQueue:
    """The queue of a site. Only one process may write: `listen` holds the lock."""

    def __init__(self, site: Site, table: ListenerTable) -> None:
        self._site, self._folder, self._keep_free = site, table.queue, table.keep_free_gb * 1e9

    def prepare(self) -> None:
        """Make the folder, accessible only to this user, and remove unfinished files. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for left in self._folder.glob("*/.*.tmp"):  # by a kill; it was not acknowledged
            left.unlink()
        sync_folder(self._folder.parent)

    def keep(self, header: Header, content: bytes) -> bool:
        """Store a message so that it survives a power cut; return whether it was already there. Raises OSError."""
        path = self._path(header, content)
        if path.exists():
            sync_folder(path.parent)  # a process that was killed may have stored it without this step
            sync_folder(self._folder)
            return True
        if shutil.disk_usage(self._folder).free < self._keep_free + len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self._folder)
        write_durably(path, content)
        return False

    def _path(self, header: Header, content: bytes) -> Path:
        sender = "\0".join(header.field(number) for number in (3, 4, 10))
        name = self._site.keyed("received message", sender)[:_HEX]
        digest = self._site.keyed("received content", hashlib.sha256(content).hexdigest())[:_HEX]
        return self._folder / name[:2] / f"{name}-{digest}.hl7"


@dataclass(frozen=True)
class QueueState:
    """What the queue holds. `last`: when its newest message was stored; None if it is empty."""

    is_listening: bool
    messages: int
    last: datetime | None


def queue_state(site: Site) -> QueueState | None:
    """Return the state of the site's queue, None if the site has no listener. Raises OSError."""
    table = listener_of(site)
    if table is None:
        return None
    folders = [path for path in table.queue.glob("??") if path.is_dir()] if table.queue.is_dir() else []
    counts = {path: sum(1 for _ in path.glob("*.hl7")) for path in folders}
    times = [path.stat().st_mtime for path, count in counts.items() if count]  # of the last rename into it
    last = datetime.fromtimestamp(max(times)).astimezone() if times else None
    return QueueState(is_held(site.logs / LOCK), sum(counts.values()), last)
