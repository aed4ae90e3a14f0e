"""`fedthorax study release`: from a run to a signed model."""

from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import print_json, say


def release(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `study list` tells it.")],
    server: Annotated[Path, typer.Option("--server", help="The server's folder.")] = Path("server"),
    out: Annotated[Path | None, typer.Option(help="The release's folder; SERVER/releases/RUN if left out.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="Private key to sign with; SERVER/release.key, made if need be, if left out.")
    ] = None,
    despite_flags: Annotated[
        str,
        typer.Option(metavar="REASON", help="Why to release a model that the audit flagged; the card says it."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Make the signed model folder of a run, and give its version in MLflow the alias `released`."""
    from federation.comparison.release import release_run

    released = release_run(run_name, server, say, out=out, key=key, despite_flags=despite_flags)
    if as_json:
        print_json(released.to_json())
        return
    say(f"Released {released.sha256[:12]} into {released.folder} (version {released.version} in MLflow).")
    say(f"Hand out {released.public_key} by another way, with its SHA-256: {released.key_sha256}")
    say(f"Score with it: fedthorax score SCAN --model {released.folder} --signed-by {released.public_key}")
