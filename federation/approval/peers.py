"""A site's decisions about lists of hospitals, with which it takes part in masked rounds: SITE_DIR/peers.

Like an app, a list is approved by its SHA-256, after people have compared its code by telephone.
"""

from pathlib import Path

from federation.approval.decisions import Decision, Decisions
from federation.ledger.chain import ledger_file
from federation.secure_aggregation.roster import Roster
from pipeline.site.folder import Site

MAX_BYTES = 64 * 1024


def identity_file(site: Site) -> Path:
    """Return the file of the key with which the site's gateway signs in masked rounds."""
    return site.node_key.with_name("secagg")


class PeerApprovals:
    """A site's decisions about lists of hospitals. The last approved list applies, unless it was revoked."""

    def __init__(self, site: Site) -> None:
        self._decisions = Decisions(
            site.folder / "peers", ledger_file(site), suffix=".json", max_bytes=MAX_BYTES, what="peers"
        )

    def current(self) -> Roster | None:
        """Return the approved list; None if there is none. Raises Refusal: E_APPROVALS, E_SECAGG_MESSAGE."""
        decision = self.last()
        if decision is None or decision.decided != "approved":
            return None
        content = self._decisions.content(decision.sha256)
        return None if content is None else Roster.parse(content)

    def last(self) -> Decision | None:
        """Return the last decision. Raises Refusal E_APPROVALS."""
        decisions = self._decisions.all()
        return decisions[-1] if decisions else None

    def approve(self, roster: Roster, *, by: str, note: str = "") -> str:
        """Take part in masked rounds with these hospitals from now on. Raises Refusal as `Decisions.approve` does."""
        return self._decisions.approve(roster.content, by=by, note=note)

    def revoke(self, sha256: str, *, by: str, note: str = "") -> None:
        """Take part in no masked round. Raises Refusal as `Decisions.revoke` does."""
        self._decisions.revoke(sha256, by=by, note=note)
