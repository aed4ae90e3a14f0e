"""`fedthorax verify-release`: are these files exactly those that the publisher signed?"""

from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import print_json, say
from federation.cli.options import Json


def verify_release(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of a release or of an unpacked bundle, with SHA256SUMS, or of a model, with model.sig."
        ),
    ],
    key: Annotated[list[Path], typer.Option(help="Public key of the publisher (.pub). Repeat to trust several.")],
    as_json: Json = False,
) -> None:
    """Verify offline that a release or a bundle holds exactly the files that its publisher signed."""
    from federation.delivery.checksums import verify_release as verify

    signed_by = verify(folder, key)
    if as_json:
        print_json({"folder": str(folder), "signed_by": signed_by})
    else:
        say(f"The files are exactly the signed ones. SHA-256 of the key: {signed_by}")
