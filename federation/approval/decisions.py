"""A hospital's decisions about items that are identified by their SHA-256: apps, studies, releases.

FOLDER/approvals.json     every decision, in order; the last one about an item applies
FOLDER/<sha256>.<suffix>  items that were decided on, and the newest ones that the gateway refused, for review
"""

import hashlib
import os
import stat
import time
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from federation.approval import reasons
from federation.ledger.chain import PASSED, Entry, Ledger
from federation.system.digests import SHA256
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably
from pipeline.system.locks import alone

KEPT = 20  # undecided items of a kind, however many a server sends


class Decision(BaseModel, extra="forbid", frozen=True):
    """What somebody at the hospital decided about one item. `by` and `note` never leave the site."""

    sha256: str = Field(validation_alias=AliasChoices("sha256", "app"), pattern=SHA256.pattern)  # "app" in older files
    decided: Literal["approved", "revoked"]
    at: datetime
    by: str
    note: str


class _File(BaseModel, extra="forbid"):
    decisions: list[Decision]


class Decisions:
    """The decisions about one kind of item. Each call reads the file, so that a decision takes effect at once.

    `suffix`: of the kept files. `max_bytes`: the largest item that is kept. `what`: precedes "approval" and
    "revocation" in the ledger's lines.
    """

    def __init__(self, folder: Path, ledger: Path, *, suffix: str, max_bytes: int, what: str = "") -> None:
        self.folder = folder
        self._file = folder / "approvals.json"
        self._ledger = ledger
        self._suffix, self._max_bytes, self._what = suffix, max_bytes, what

    def all(self) -> list[Decision]:
        """Return all decisions, the oldest first. Raises Refusal E_APPROVALS."""
        try:
            with self._file.open("rb") as file:
                others_may_write = os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                decisions = _File.model_validate_json(file.read()).decisions
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            raise Refusal(reasons.APPROVALS, private=f"{self._file}: {type(error).__name__}") from error
        if others_may_write:
            raise Refusal(reasons.APPROVALS, private=str(self._file))
        return decisions

    def last(self, sha256: str) -> Decision | None:
        """Return the last decision about an item. Raises Refusal E_APPROVALS."""
        return next((d for d in reversed(self.all()) if d.sha256 == sha256), None)

    def approve(self, content: bytes, *, by: str, note: str) -> str:
        """Approve the item with these bytes, and return its SHA-256.

        Raises Refusal: E_APPROVALS, E_APPROVALS_BUSY, E_LEDGER_WRITE, E_LEDGER_BROKEN.
        """
        sha256 = self.keep(content)
        with self._alone():
            self._record(sha256, "approval")  # first, so that every approval is in the ledger
            self._add(Decision(sha256=sha256, decided="approved", at=datetime.now(UTC), by=by, note=note))
        return sha256

    def revoke(self, sha256: str, *, by: str, note: str) -> None:
        """Revoke an item, whether it is known here or not.

        Raises Refusal: E_APPROVALS, E_APPROVALS_BUSY; E_LEDGER_WRITE and E_LEDGER_BROKEN, but only after revoking it.
        """
        with self._alone():
            try:
                self._record(sha256, "revocation")
            finally:
                self._add(Decision(sha256=sha256, decided="revoked", at=datetime.now(UTC), by=by, note=note))

    def kept(self) -> list[Path]:
        """Return the files of the items that can be reviewed, the newest first."""
        files = [path for path in self.folder.glob(f"*{self._suffix}") if SHA256.fullmatch(path.stem)]
        return sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path.name))

    def content(self, sha256: str) -> bytes | None:
        """Return the bytes of a kept item; None if it is missing or was changed."""
        try:
            content = (self.folder / f"{sha256}{self._suffix}").read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def keep(self, content: bytes) -> str:
        """Keep an item for a later review, without reading or running it; return its SHA-256.

        The newest `KEPT` undecided items are kept. An item that is too large is not kept, nor is any when the disk is
        full. Raises Refusal E_APPROVALS.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{sha256}{self._suffix}"
        if len(content) <= self._max_bytes:
            with suppress(OSError):
                if self.content(sha256) is None:
                    self._write(path, content)
                now = time.time_ns()  # more precise than the clock that the file system uses
                os.utime(path, ns=(now, now))
        decided = {decision.sha256 for decision in self.all()}
        undecided = [path for path in self.kept() if path.stem not in decided]
        for old in undecided[KEPT:]:
            old.unlink(missing_ok=True)
        return sha256

    def _record(self, sha256: str, decided: str) -> None:
        kind = f"{self._what} {decided}".strip()
        Ledger(self._ledger).append(Entry("", None, "here", kind, 0, "", sha256, "", PASSED))

    def _alone(self) -> AbstractContextManager[None]:
        """Prevent other commands from deciding at the same time."""
        self.folder.mkdir(exist_ok=True, mode=0o700)
        return alone(self.folder / "lock", reasons.APPROVALS_BUSY)

    def _add(self, decision: Decision) -> None:
        self._write(self._file, _File(decisions=[*self.all(), decision]).model_dump_json(indent=1).encode())

    def _write(self, path: Path, content: bytes) -> None:
        """Write the file completely or not at all, even on a power failure; only its owner may read it."""
        self.folder.mkdir(exist_ok=True, mode=0o700)
        write_durably(path, content)
