"""`fedthorax node releases | approve-release | revoke-release`: releases that may initialise a study's weights."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli import reasons
from federation.cli.apps import Note, SiteDir, user
from federation.cli.console import counted, print_json, print_table, say
from federation.cli.options import Json
from models.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.approval.decisions import Decision
    from models.refusal import Reason
    from models.release import Release

_NAME = re.compile(r"[0-9a-f]{8,64}")

_SHOWN_DIGITS = 12


def releases(site_dir: SiteDir, as_json: Json = False) -> None:
    """List the releases with a decision, and whether a study may start from their weights."""
    from federation.approval.releases import ReleaseApprovals
    from pipeline.site.folder import Site

    decisions = ReleaseApprovals(Site.open(site_dir)).decisions()
    if as_json:
        print_json([decision.model_dump(mode="json") for decision in decisions])
        return
    rows = [[d.sha256[:_SHOWN_DIGITS], d.decided, f"{d.at:%Y-%m-%d}", d.by, d.note] for d in decisions]
    print_table(["release", "a study may begin from it", "decided", "by", "note"], rows)


def approve_release(
    site_dir: SiteDir,
    release_dir: Annotated[Path, typer.Argument(help="The release's folder, with its signature.")],
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            help="Public key (.pub) of the publisher. May be repeated. Get it over another channel than the release."
        ),
    ] = None,
    note: Note = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve without a question; for a release that was reviewed before.")
    ] = False,
) -> None:
    """Review where a signed release comes from, and let studies start from its weights."""
    from federation.approval.releases import ReleaseApprovals
    from federation.cli.trust import trusted_keys
    from models.reasons import TRUSTED_KEY
    from models.release import load_release
    from pipeline.site.folder import Site

    approvals = ReleaseApprovals(Site.open(site_dir))
    keys = trusted_keys(trust or [])
    if not keys:
        raise Refusal(TRUSTED_KEY, private="no key was given")
    _show(load_release(release_dir, keys, pretrained=True))
    if not yes:
        typer.confirm("Let studies start from these weights at this hospital?", abort=True, err=True)
    sha256 = approvals.approve(release_dir, by=user(), note=note)
    say(f"Approved {sha256}. A study that starts from it needs its own approval: `fedthorax node approve-study`.")


def revoke_release(
    site_dir: SiteDir,
    name: Annotated[str, typer.Argument(metavar="RELEASE", help="The release's SHA-256 or its first 8 digits.")],
    note: Note = "",
) -> None:
    """Withdraw a release's approval. Studies and runs that start from it are refused from now on."""
    from federation.approval.releases import ReleaseApprovals
    from pipeline.site.folder import Site

    approvals = ReleaseApprovals(Site.open(site_dir))
    found = the_one(name, approvals.decisions(), reasons.RELEASE_UNKNOWN)
    approvals.revoke(found, by=user(), note=note)
    say(f"Revoked {found}.")


def the_one(name: str, decisions: "Sequence[Decision]", unknown: "Reason") -> str:
    """Return the SHA-256 that a name, or its first digits, stands for. Raises Refusal `unknown` unless it is one."""
    known = [decision.sha256 for decision in decisions]
    found = [sha256 for sha256 in known if _NAME.fullmatch(name.lower()) and sha256.startswith(name.lower())]
    if len(found) != 1:
        raise Refusal(unknown)
    return found[0]


def _show(release: "Release") -> None:
    """Show where a release comes from, with terminal control characters removed."""
    from federation.system.terminal_text import printable

    about = release.description
    origin = "SYNTHETIC hospitals" if about.trained_on_synthetic_data else counted(about.sites, "hospital")
    rows = {
        "release": release.sha256,
        "is": "a pretrained start, which cannot score" if about.network.pretrains else "a model of labels",
        "signed by": f"the key with SHA-256 {release.signed_by}",
        "study, run": f"{about.study}, {about.run}",
        "learnt from": f"{origin} in {counted(about.rounds, 'round')}",
        "network": about.network.architecture,
        "software": about.software,
    }
    for name, value in rows.items():
        typer.echo(f"{name:<12}{printable(value)}")
    typer.echo(
        "\nWeights can be crafted so that the first update reveals single patients. fedthorax refuses weights with a "
        "larger norm than training produces. Beyond that, trust in these weights rests on the signature."
    )
