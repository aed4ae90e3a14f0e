"""A site's decisions about apps, by each app's SHA-256, in SITE_DIR/apps.

An app is identified only by its hash. Any change, even of a comment, makes a different app that is not approved.
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
    """Return the hash of the app that this installed release ships.

    A separate process computes it: Flower's build loads fourteen megabytes, which would otherwise stay in the gateway's
    memory. Raises Refusal E_APP_CONFIG if the installed files are damaged.
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
        """Return an app's status: "own" and "approved" may run, "revoked" and "unknown" may not.

        The release's own app is "unknown" if site.toml requires an approval for it too. Raises Refusal E_APPROVALS
        (then nothing may run); E_APP_CONFIG if the installed release is damaged.
        """
        decision = self.decision(sha256)
        if decision is not None:
            return decision.decided
        return "own" if self.own_allowed and sha256 == own_app_sha256() else "unknown"

    def decision(self, sha256: str) -> Decision | None:
        """Return the last decision about an app. Raises Refusal E_APPROVALS."""
        return self._decisions.last(sha256)

    def decisions(self) -> list[Decision]:
        """Return all decisions, the oldest first. Raises Refusal E_APPROVALS."""
        return self._decisions.all()

    def approve(self, content: bytes, *, by: str, note: str = "") -> str:
        """Allow the app with these bytes to run here, and return its hash.

        Raises Refusal: those of `fab.read`, E_APPROVALS, E_APPROVALS_BUSY, E_LEDGER_WRITE, E_LEDGER_BROKEN.
        """
        fab.read(content)
        return self._decisions.approve(content, by=by, note=note)

    def revoke(self, sha256: str, *, by: str, note: str = "") -> None:
        """Forbid the app to run, whether it is known here or not.

        Raises Refusal: E_APPROVALS, E_APPROVALS_BUSY; E_LEDGER_WRITE and E_LEDGER_BROKEN, but only after revoking it.
        """
        self._decisions.revoke(sha256, by=by, note=note)

    def kept(self) -> list[Path]:
        """Return the files of the apps that can be reviewed, the newest first."""
        return self._decisions.kept()

    def content(self, sha256: str) -> bytes | None:
        """Return the bytes of a kept app; None if it is missing or was changed."""
        return self._decisions.content(sha256)

    def keep(self, content: bytes) -> str:
        """Keep an app for review, without reading or running it; return its hash. Raises Refusal E_APPROVALS."""
        return self._decisions.keep(content)
