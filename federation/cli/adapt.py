"""`fedthorax adapt`: let a release settle in at this hospital with its own scans without labels."""

from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import print_json, progress_bar, quoted, say
from federation.cli.options import Json


def adapt(
    site_dir: Annotated[Path, typer.Argument(help="The site's folder.")],
    release: Annotated[Path, typer.Argument(help="Folder of the signed release to adapt: the parent.")],
    signed_by: Annotated[
        list[Path] | None,
        typer.Option(help="Public key (.pub) that must have signed the parent. Repeat to trust several."),
    ] = None,
    out: Annotated[Path, typer.Option(help="A new folder for the derived release.")] = Path("adapted"),
    key: Annotated[
        Path | None,
        typer.Option(help="The hospital's private key. Default: keys/adaptation.key of the site, made if missing."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Adapt a release to this hospital: new batch-norm statistics from scans without labels, the same weights."""
    from pipeline.site.folder import Site

    site = Site.open(site_dir)  # before the imports that take seconds
    from federation.cli.trust import trusted_keys
    from models.compute import Compute
    from pipeline.adaptation.adapt import adapt as derive

    compute = Compute.open(site.settings.compute, threads=site.settings.training.threads)
    with progress_bar("layers") as progress:
        adapted = derive(site, release, trusted_keys(signed_by or []), out, key=key, compute=compute, progress=progress)
    if as_json:
        print_json(adapted.to_json())
        return
    description = adapted.release.description
    adaptation = description.adaptation
    assert adaptation is not None
    say(f"Adapted to {adaptation.scans} scans: {adapted.release.sha256[:12]}, derived from {adaptation.parent[:12]}.")
    for label, judged in adaptation.judged.items():
        say(f"{label}: AUROC {judged.auroc_before:.3f} before, {judged.auroc_after:.3f} after, on labelled patients.")
    if not adaptation.judged:
        say("There are too few labelled validation patients to judge it.")
    if not description.operating_points:
        say("It has no operating points and gives no levels: no threshold was judged again here.")
    say(f"Signed with this hospital's key {adapted.key_sha256[:12]}; its public key is {adapted.public_key}.")
    say(
        f"For the clinic: fedthorax clinic add-model CLINIC {quoted(adapted.folder)} "
        f"--signed-by {quoted(adapted.public_key)}"
    )
