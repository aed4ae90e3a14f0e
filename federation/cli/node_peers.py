"""`fedthorax node peers | approve-peers | revoke-peers`: the hospitals with which this one sums masked updates."""

from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli.apps import Note, SiteDir, user
from federation.cli.console import print_json, print_table, quoted, say
from federation.cli.options import Json
from models.refusal import Refusal

if TYPE_CHECKING:
    from federation.secure_aggregation.roster import Roster
    from pipeline.site.folder import Site


def peers(site_dir: SiteDir, as_json: Json = False) -> None:
    """List the hospitals of the study with the keys of their gateways, and the code to compare by telephone."""
    from federation.approval.peers import PeerApprovals
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    found, approved = fetched_roster(site), PeerApprovals(site).current()
    is_approved = approved == found
    if as_json:
        members = [{"name": member.name, "fingerprint": member.fingerprint} for member in found.members]
        print_json({"hospitals": members, "code": found.code, "sha256": found.digest, "approved": is_approved})
        return
    print_table(["hospital", "fingerprint of its gateway's key"], [[m.name, m.fingerprint] for m in found.members])
    say(f"Code of this list: {found.code}")
    if is_approved:
        say("This hospital has approved the list.")
    else:
        say("Compare the code with the other hospitals by telephone. They must see the same one. Then approve it:")
        say(f'fedthorax node approve-peers {quoted(site_dir)} "{found.code}"')


def approve_peers(
    site_dir: SiteDir,
    code: Annotated[str, typer.Argument(help="The code of the list, as another hospital read it out.")],
    note: Note = "",
) -> None:
    """Take part in masked rounds with the hospitals of this list, and with no others."""
    from federation.approval.peers import PeerApprovals
    from federation.secure_aggregation import reasons
    from federation.secure_aggregation.roster import MIN_PEERS
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    found = fetched_roster(site)
    if "".join(code.split()) != "".join(found.code.split()):
        raise Refusal(reasons.SECAGG_ROSTER)
    if len(found.members) < MIN_PEERS:
        raise Refusal(reasons.SECAGG_ROSTER_SMALL, needed=MIN_PEERS, present=len(found.members))
    PeerApprovals(site).approve(found, by=user(), note=note)
    say(f"Approved the list of {len(found.members)} hospitals.")


def revoke_peers(site_dir: SiteDir, note: Note = "") -> None:
    """Take part in no masked round until a list is approved again."""
    from federation.approval.peers import PeerApprovals
    from pipeline.site.folder import Site

    approvals = PeerApprovals(Site.open(site_dir))
    last = approvals.last()
    if last is not None:
        approvals.revoke(last.sha256, by=user(), note=note)
    say("This hospital takes part in no masked round.")


def fetched_roster(site: "Site") -> "Roster":
    """Present the key of the site's gateway to the server, and return the list of hospitals with theirs.

    Raises Refusal: those of `fetch_peers`, and of `Identity.kept`.
    """
    from federation.approval.peers import identity_file
    from federation.enrolment.join import fetch_peers
    from federation.secure_aggregation.keys import Identity

    return fetch_peers(site, Identity.kept(identity_file(site)).public)
