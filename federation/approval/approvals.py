"""Which apps may run at a site: the hospital's decisions, by each app's SHA-256, in SITE_DIR/apps.

An app is known by its hash alone: any change, even of a comment, makes another app, which is unknown.
"""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Literal

from federation.approval import fab, reasons
from federation.approval.decisions import Decision, Decisions
from federation.ledger.chain import ledger_file
from models.refusal import Refusal
from pipeline.site.folder import Site

Verdict = Literal["own", "approved", "revoked", "unknown"]


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
    """A site's decisions about apps."""

    def __init__(self, site: Site) -> None:
        self.folder = site.folder / "apps"
        self.own_allowed = site.settings.gateway.own_app
        self._decisions = Decisions(self.folder, ledger_file(site), suffix=".fab", max_bytes=fab.MAX_BYTES)

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
        return self._decisions.last(sha256)

    def decisions(self) -> list[Decision]:
        """All decisions, the oldest first. Raises Refusal E_APPROVALS."""
        return self._decisions.all()

    def approve(self, content: bytes, *, by: str, note: str = "") -> str:
        """Let the app with these bytes run here; its hash.

        Raises Refusal: those of `fab.read`, E_APPROVALS, E_APPROVALS_BUSY, E_LEDGER_WRITE, E_LEDGER_BROKEN.
        """
        fab.read(content)
        return self._decisions.approve(content, by=by, note=note)

    def revoke(self, sha256: str, *, by: str, note: str = "") -> None:
        """Let the app run no more, whether it is known here or not.

        Raises Refusal: E_APPROVALS, E_APPROVALS_BUSY; E_LEDGER_WRITE and E_LEDGER_BROKEN, but revoked it is then too.
        """
        self._decisions.revoke(sha256, by=by, note=note)

    def kept(self) -> list[Path]:
        """The files of the apps that can be looked at, the newest first."""
        return self._decisions.kept()

    def content(self, sha256: str) -> bytes | None:
        """The bytes of a kept app; None if there is none, or if they are not what was kept."""
        return self._decisions.content(sha256)

    def keep(self, content: bytes) -> str:
        """Keep an app to look at later, unread and not run; its hash. Raises Refusal E_APPROVALS."""
        return self._decisions.keep(content)
