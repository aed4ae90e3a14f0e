"""Which apps may run at a site: the hospital's decisions, by each app's SHA-256.

SITE_DIR/apps/approvals.json   every decision, in order; the last one on an app holds
SITE_DIR/apps/<sha256>.fab     apps that were decided on, and the newest that the gateway refused, to look at

An app is known by its hash alone: any change, even of a comment, makes another app, which is unknown.
"""

import functools
import hashlib
import os
import re
import stat
import subprocess
import sys
import time
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from federation import reasons
from federation.approval import fab
from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file
from models.refusal import Refusal
from pipeline.durable import write_durably
from pipeline.locks import alone
from pipeline.site import Site

Verdict = Literal["own", "approved", "revoked", "unknown"]
KEPT = 20  # undecided apps; with them at most 200 MB, however many a server sends
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Decision(BaseModel, extra="forbid", frozen=True):
    """What somebody at the hospital decided about an app. `by` and `note` never leave the site."""

    app: str
    decided: Literal["approved", "revoked"]
    at: datetime
    by: str
    note: str


class _File(BaseModel, extra="forbid"):
    decisions: list[Decision]


@functools.cache
def own_app_sha256() -> str:
    """The hash of the app that this installed release ships.

    A process of its own works it out: Flower's build brings fourteen megabytes with it, which would stay in the gateway
    for good. Raises Refusal E_APP_CONFIG where the installed files are damaged.
    """
    command = [sys.executable, "-P", "-m", "federation.approval.fab"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(reasons.APP_CONFIG, problem="it cannot be built", private=done.stderr[-2000:])
    return done.stdout.strip()


class Approvals:
    """A site's decisions. Each question reads the file, so that a decision holds from then on in every process."""

    def __init__(self, site: Site) -> None:
        self.folder = site.folder / "apps"
        self.own_allowed = site.settings.gateway.own_app
        self._file = self.folder / "approvals.json"
        self._ledger = ledger_file(site)

    def verdict(self, sha256: str) -> Verdict:
        """What holds for an app now: "own" and "approved" may run, "revoked" and "unknown" may not.

        The release's own app is "unknown" where site.toml says that it needs an approval too. Raises Refusal
        E_APPROVALS, and nothing may run then; E_APP_CONFIG where the installed release is damaged.
        """
        decision = self.decision(sha256)
        if decision is not None:
            return decision.decided
        return "own" if self.own_allowed and sha256 == own_app_sha256() else "unknown"

    def decision(self, sha256: str) -> Decision | None:
        """The last decision on an app. Raises Refusal E_APPROVALS."""
        return next((d for d in reversed(self.decisions()) if d.app == sha256), None)

    def decisions(self) -> list[Decision]:
        """All decisions, the oldest first. Raises Refusal E_APPROVALS."""
        try:
            with self._file.open("rb") as file:
                others_may_write = os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                decisions = _File.model_validate_json(file.read()).decisions
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            raise Refusal(reasons.APPROVALS, private=f"{self._file}: {type(error).__name__}") from error
        if others_may_write or not all(_SHA256.fullmatch(decision.app) for decision in decisions):
            raise Refusal(reasons.APPROVALS, private=str(self._file))
        return decisions

    def approve(self, content: bytes, *, by: str, note: str = "") -> str:
        """Let the app with these bytes run here; its hash.

        Raises Refusal: those of `fab.read`, E_APPROVALS, E_APPROVALS_BUSY, E_LEDGER_WRITE, E_LEDGER_BROKEN.
        """
        app = fab.read(content)
        self.keep(content)
        with self._alone():
            self._record(app.sha256, "approval")  # first: nothing is approved that the ledger does not hold
            self._add(Decision(app=app.sha256, decided="approved", at=datetime.now(UTC), by=by, note=note))
        return app.sha256

    def revoke(self, sha256: str, *, by: str, note: str = "") -> None:
        """Let the app run no more, whether it is known here or not.

        Raises Refusal: E_APPROVALS, E_APPROVALS_BUSY; E_LEDGER_WRITE and E_LEDGER_BROKEN, but revoked it is then too.
        """
        with self._alone():
            try:
                self._record(sha256, "revocation")
            finally:
                self._add(Decision(app=sha256, decided="revoked", at=datetime.now(UTC), by=by, note=note))

    def kept(self) -> list[Path]:
        """The files of the apps that can be looked at, the newest first."""
        files = [path for path in self.folder.glob("*.fab") if _SHA256.fullmatch(path.stem)]
        return sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path.name))

    def content(self, sha256: str) -> bytes | None:
        """The bytes of a kept app; None if there is none, or if they are not what was kept."""
        path = self.folder / f"{sha256}.fab"
        try:
            content = path.read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def keep(self, content: bytes) -> str:
        """Keep an app to look at later, unread and not run; its hash.

        Of the undecided ones the newest `KEPT` stay. What is larger than an app may be is not kept, nor anything where
        the disk is full. Raises Refusal E_APPROVALS.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.folder / f"{sha256}.fab"
        if len(content) <= fab.MAX_BYTES:
            with suppress(OSError):
                if self.content(sha256) is None:
                    self._write(path, content)
                now = time.time_ns()  # finer than the clock by which the system would date it
                os.utime(path, ns=(now, now))
        decided = {decision.app for decision in self.decisions()}
        undecided = [path for path in self.kept() if path.stem not in decided]
        for old in undecided[KEPT:]:
            old.unlink(missing_ok=True)
        return sha256

    def _record(self, sha256: str, kind: str) -> None:
        Ledger(self._ledger).append(Entry("", None, "here", kind, 0, "", sha256, "", PASSED))

    def _alone(self) -> AbstractContextManager[None]:
        """Keep other commands from deciding meanwhile."""
        self.folder.mkdir(exist_ok=True, mode=0o700)
        return alone(self.folder / "lock", reasons.APPROVALS_BUSY)

    def _add(self, decision: Decision) -> None:
        decisions = [*self.decisions(), decision]
        self._write(self._file, _File(decisions=decisions).model_dump_json(indent=1).encode())

    def _write(self, path: Path, content: bytes) -> None:
        """The whole file or nothing, readable by its owner alone, whenever the power goes."""
        self.folder.mkdir(exist_ok=True, mode=0o700)
        write_durably(path, content)
