"""A site's decisions about releases that a study may start from, by each release's name.

SITE_DIR/begins-from/<sha256>/     an approved release: model.json, whose SHA-256 is its name, and its weights
SITE_DIR/begins-from/approvals.json, <sha256>.json   the decisions, and the descriptions decided on (`decisions`)

Works without torch, for the gateway.
"""

import shutil
from pathlib import Path

from federation.approval.decisions import Decision, Decisions
from federation.ledger.chain import ledger_file
from federation.protocol.release_files import BEGINS_FROM, FILES, copy_release
from pipeline.site.folder import Site

_MAX_DESCRIPTION_BYTES = 16 * 1024 * 1024


class ReleaseApprovals:
    """A site's decisions about releases."""

    def __init__(self, site: Site) -> None:
        self.folder = site.folder / BEGINS_FROM
        self._decisions = Decisions(
            self.folder, ledger_file(site), suffix=".json", max_bytes=_MAX_DESCRIPTION_BYTES, what="release"
        )

    def may_begin(self, sha256: str) -> bool:
        """Tell whether a study may start from this release now. Raises Refusal E_APPROVALS."""
        decision = self._decisions.last(sha256)
        return decision is not None and decision.decided == "approved" and (self.folder / sha256 / FILES[1]).is_file()

    def decisions(self) -> list[Decision]:
        """Return the last decision about each release, the newest first. Raises Refusal E_APPROVALS."""
        last = {decision.sha256: decision for decision in self._decisions.all()}
        return sorted(last.values(), key=lambda decision: decision.at, reverse=True)

    def approve(self, release: Path, *, by: str, note: str = "") -> str:
        """Allow studies to start from a release, and return its name. The caller has verified it and its signature.

        Raises OSError, and Refusal as `Decisions.approve` does.
        """
        sha256 = copy_release(release, self.folder)
        return self._decisions.approve((self.folder / sha256 / FILES[1]).read_bytes(), by=by, note=note)

    def revoke(self, sha256: str, *, by: str, note: str = "") -> None:
        """Forbid studies to start from a release. Raises Refusal as `Decisions.revoke` does."""
        self._decisions.revoke(sha256, by=by, note=note)
        shutil.rmtree(self.folder / sha256, ignore_errors=True)
