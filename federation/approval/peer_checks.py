"""Checks of what a site needs for masked rounds, for `fedthorax node check` and `node status`."""

from collections.abc import Iterator
from pathlib import Path

from federation.approval import reasons
from federation.approval.peers import PeerApprovals, identity_file
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.reasons import SECAGG_MEMBER, SECAGG_ROSTER_SMALL
from federation.secure_aggregation.roster import Roster
from federation.secure_aggregation.store import check_witness
from models.refusal import Reason, Refusal
from pipeline.site.folder import Site
from pipeline.system.check_line import Line, refused

AREA = "secure aggregation"


def lines(site: Site) -> Iterator[Line]:
    """Check the approved list of hospitals, the key of the site's gateway, and where the keys of a round are kept.

    A site that neither requires masked studies nor has approved a list gets one line, which says so.
    """
    try:
        roster = PeerApprovals(site).current()
    except Refusal as refusal:
        yield refused(AREA, "list of hospitals", refusal)
        return
    if roster is None and not site.settings.gateway.require_secure_aggregation:
        says = (
            "no list is approved (`fedthorax node peers`), so this site takes part in no study that sums over hospitals"
        )
        yield Line(AREA, "list of hospitals", "skip", says)
        return
    own, line = _key(identity_file(site))
    yield _roster(site, roster, own)
    yield line
    yield _memory(site)


def _roster(site: Site, roster: Roster | None, own: bytes | None) -> Line:
    """`own`: the public key of this site's gateway, if it has one."""
    name = "list of hospitals"
    if roster is None:
        return _warning(name, reasons.SECAGG_NO_LIST)
    present, needed = len(roster.members), site.settings.gateway.min_peers
    detail = f"{present} hospitals; code {roster.code}"
    if present < needed:
        return refused(AREA, name, Refusal(SECAGG_ROSTER_SMALL, present=present, needed=needed))
    if own is not None and own not in {member.key for member in roster.members}:
        return Line(AREA, name, "fail", f"{SECAGG_MEMBER.code}: {SECAGG_MEMBER.says}", SECAGG_MEMBER.remedy, detail)
    return Line(AREA, name, "ok", "approved", detail=detail)


def _key(path: Path) -> tuple[bytes | None, Line]:
    """Return the public key of the site's gateway, and the line about its file."""
    name = "key of the gateway"
    if not path.exists():
        return None, _warning(name, reasons.SECAGG_NO_KEY, path)
    try:
        own = Identity.kept(path).public
    except Refusal as refusal:
        return None, refused(AREA, name, refusal)
    if path.stat().st_mode & 0o077:
        return own, _warning(name, reasons.SECAGG_KEY_OPEN, path)
    return own, Line(AREA, name, "ok", "present and intact; only the node's user can read it")


def _memory(site: Site) -> Line:
    name = "keys of a round"
    try:
        in_memory = check_witness(site.folder)
    except Refusal as refusal:
        return refused(AREA, name, refusal)
    return Line(AREA, name, "ok", "kept in memory") if in_memory else _warning(name, reasons.SECAGG_NO_MEMORY)


def _warning(name: str, reason: Reason, private: Path | str = "") -> Line:
    return Line(AREA, name, "warn", f"{reason.code}: {reason.says}", reason.remedy, private=str(private))
