"""The queue: the folder of received messages, each stored durably before it is acknowledged.

QUEUE/AB/NAME.hl7   one message, as it was sent; NAME consists of two keyed hashes and starts with AB

The first hash stands for the sender and the control id (MSH-3, MSH-4, MSH-10), the second for the content. A message
that is sent again therefore has the same name, and is stored once. A changed message under a used control id is stored
beside the first; the reader takes the newest version of each result.

Messages are deleted only for a patient who withdraws (`erase`); what comes about the patient later is acknowledged and
not stored. A message of several patients is stored without the parts about those who withdrew.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.feeds.message_parts import without_patients
from pipeline.records.laboratory.hl7_messages import BrokenError, Header
from pipeline.records.laboratory.listener_settings import ListenerTable
from pipeline.records.laboratory.settings import Hl7Laboratory
from pipeline.site.folder import Site
from pipeline.site.withdrawn import Withdrawn
from pipeline.system.atomic_files import remove_unfinished, sync_folder, write_durably
from pipeline.system.locks import in_turn, is_held

_HEX = 32  # digits of each hash
LOCK = "listener.lock"
_CHANGE_LOCK = "queue.lock"  # held for each change of the queue


def listener_of(site: Site) -> ListenerTable | None:
    """Return the site's [laboratory.listener], None if there is none."""
    laboratory = site.settings.laboratory
    return laboratory.listener if isinstance(laboratory, Hl7Laboratory) else None


def queue_folder(site: Site) -> Path:
    """Return the folder of the queue. A queue outlives the table that named it: then it is at its usual place."""
    table = listener_of(site)
    return table.queue if table else site.folder / ListenerTable().queue


class ResultQueue:
    """The queue of a site. Only one process may receive: `listen` holds a lock."""

    def __init__(self, site: Site, table: ListenerTable) -> None:
        self._site, self._folder, self._keep_free = site, table.queue, table.keep_free_gb * 1e9
        laboratory = site.settings.laboratory
        self._encoding = laboratory.encoding if isinstance(laboratory, Hl7Laboratory) else "utf-8-sig"
        self._issuer = (laboratory.issuer if isinstance(laboratory, Hl7Laboratory) else "") or site.settings.site.issuer

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._site.logs.mkdir(exist_ok=True)
        with in_turn(self._site.logs / _CHANGE_LOCK):
            yield

    def prepare(self) -> None:
        """Make the folder, accessible only to this user, and remove unfinished files. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        with self._changing():
            self._remove_unfinished()
        sync_folder(self._folder.parent)

    def _remove_unfinished(self) -> None:
        """Remove what a kill left; it was not acknowledged."""
        for folder in self._folder.glob("??"):
            remove_unfinished(folder)

    def keep(self, header: Header, content: bytes) -> bool:
        """Store a message so that it survives a power cut; return whether it was already there.

        What concerns withdrawn patients is left out, which nobody can tell from the result. Raises OSError.
        """
        with self._changing():
            if shutil.disk_usage(self._folder).free < self._keep_free + len(content) and not self._has(header, content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            others = self._without(header, content, Withdrawn(self._site))
            return others is not None and self._keep(header, others)

    def _has(self, header: Header, content: bytes) -> bool:
        return self._path(header, content).exists()

    def _keep(self, header: Header, content: bytes) -> bool:
        path = self._path(header, content)
        if path.exists():
            sync_folder(path.parent)  # a process that was killed may have stored it without this step
            sync_folder(self._folder)
            return True
        path.parent.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self._folder)
        write_durably(path, content)
        return False

    def _without(self, header: Header, content: bytes, withdrawn: Withdrawn) -> bytes | None:
        """Return a message without the parts about withdrawn patients, None if nothing of it may be kept."""
        if not len(withdrawn):
            return content
        return without_patients(content, header.encoding(self._encoding), self._issuer, withdrawn.names)

    def erase(self) -> int:
        """Delete what is stored about withdrawn patients; return the number of messages that were deleted or shortened.

        The listener may run. A shortened message gets its new file before the old one is deleted, so a kill at any
        moment leaves one of them, or both; repeat it then. Messages that cannot be read are left. Raises OSError.
        """
        if not self._folder.is_dir():
            return 0
        with self._changing():  # what was received with the old list is stored now
            self._remove_unfinished()
        withdrawn, count = Withdrawn(self._site), 0
        for path in sorted(self._folder.glob("??/*.hl7")):
            content = path.read_bytes()
            try:
                header = Header.of(content)
                others = self._without(header, content, withdrawn)
            except BrokenError:
                continue
            if others == content:
                continue
            with self._changing():
                if others is not None:
                    self._keep(header, others)
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
            count += 1
        return count

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
