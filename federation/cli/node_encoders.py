"""`fedthorax node encoders | approve-encoder | revoke-encoder | encode`: frozen encoders that studies may use here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli import reasons
from federation.cli.apps import Note, SiteDir, user
from federation.cli.console import counted, print_json, print_table, progress_bar, quoted, say
from federation.cli.node_releases import the_one
from federation.cli.options import Json
from models.refusal import Refusal

if TYPE_CHECKING:
    from models.encoders import EncoderCard

_SHOWN_DIGITS = 12


def encoders(site_dir: SiteDir, as_json: Json = False) -> None:
    """List the encoders with a decision, and whether studies may use them."""
    from federation.approval.encoders import EncoderApprovals
    from pipeline.site.folder import Site

    decisions = EncoderApprovals(Site.open(site_dir)).decisions()
    if as_json:
        print_json([decision.model_dump(mode="json") for decision in decisions])
        return
    rows = [[d.sha256[:_SHOWN_DIGITS], d.decided, f"{d.at:%Y-%m-%d}", d.by, d.note] for d in decisions]
    print_table(["encoder", "studies may use it", "decided", "by", "note"], rows)


def approve_encoder(
    site_dir: SiteDir,
    encoder_dir: Annotated[Path, typer.Argument(help="The encoder's folder, with encoder.json and its weights.")],
    note: Note = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve without a question; for an encoder that was reviewed before.")
    ] = False,
) -> None:
    """Show where an encoder's weights come from, and let studies use its features. Its files are copied."""
    from federation.approval.encoders import EncoderApprovals
    from models.encoders import load_encoder
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    card = load_encoder(encoder_dir).card
    show_encoder(card)
    if not yes:
        typer.confirm("Let studies train on features of this encoder at this hospital?", abort=True, err=True)
    sha256 = EncoderApprovals(site).approve(encoder_dir, by=user(), note=note)
    say(f"Approved {sha256}. Compute its features with `fedthorax node encode {quoted(site_dir)}`.")
    say("A study that uses it needs its own approval: `fedthorax node approve-study`.")


def revoke_encoder(
    site_dir: SiteDir,
    name: Annotated[str, typer.Argument(metavar="ENCODER", help="The encoder's SHA-256 or its first 8 digits.")],
    note: Note = "",
) -> None:
    """Withdraw an encoder's approval. Studies and runs that use it are refused from now on."""
    from federation.approval.encoders import EncoderApprovals
    from pipeline.site.folder import Site

    approvals = EncoderApprovals(Site.open(site_dir))
    found = the_one(name, approvals.decisions(), reasons.ENCODER_UNKNOWN)
    approvals.revoke(found, by=user(), note=note)
    say(f"Revoked {found}.")


def encode(site_dir: SiteDir, as_json: Json = False) -> None:
    """Compute the features of the approved encoders for this site's scans. `node ingest` does this too."""
    from federation.node.site_encoding import encode_site
    from models.encoder_layers import STAGES
    from pipeline.cohort.reasons import NO_ENCODER
    from pipeline.site.folder import Site

    done = encode_site(Site.open(site_dir), progress_bar)
    if as_json:
        print_json(done)
    if not done:
        raise Refusal(NO_ENCODER)
    for name, scans in done.items():
        sha256, _, stages = name.partition("-")
        what = f"maps before stage {STAGES + 1 - int(stages)}" if stages else "features"
        say(f"encoder {sha256[:_SHOWN_DIGITS]}: {what} of {counted(scans, 'scan')} computed, all others were there")


def show_encoder(card: "EncoderCard") -> None:
    """Show what an encoder is, with terminal control characters removed."""
    from federation.system.terminal_text import printable

    layers = card.layers.model_dump(mode="json")
    form = f"ResNet-{layers['depth']}" if "depth" in layers else str(layers["architecture"])
    rows = {
        "encoder": card.sha256,
        "name": card.name,
        "network": form,
        "reads": f"{'scan and lung mask' if card.channels == 2 else 'scan'}, axes {card.axes}",
        "features": str(card.features),
        "source": card.source,
        "licence": card.licence,
    }
    if card.learnt_at:
        rows["learnt at"] = ", ".join(card.learnt_at)
    for name, value in rows.items():
        typer.echo(f"{name:<12}{printable(value)}")
    typer.echo(
        "\nAn encoder holds no code. None of it is trained or sent, except its last stages in a study that tunes them. "
        "Weights can be made so that a feature responds to single patients; no check finds that. Trust in these "
        "weights rests on where they come from."
    )
