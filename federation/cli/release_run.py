"""`fedthorax study release`: sign and release the model of a run."""

from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import print_json, quoted, say
from federation.cli.options import Json


def release(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `study list` shows it.")],
    server: Annotated[Path, typer.Option("--server", help="The server's folder.")] = Path("server"),
    out: Annotated[Path | None, typer.Option(help="Folder of the release. Default: SERVER/releases/RUN.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="Private key to sign with. Default: SERVER/release.key, created if missing.")
    ] = None,
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            "--despite-flags",
            metavar="REASON",
            help="Why a model is released that there are reasons to doubt. Card and clinician's page show it.",
        ),
    ] = "",
    encoder: Annotated[
        Path | None, typer.Option(help="Folder of the study's frozen encoder, if it has one: the release brings it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the signed model folder of a run, and set the alias `released` on its version in MLflow."""
    from federation.runs.run_folder import find_run

    find_run(server, run_name)  # before the imports that take seconds
    from federation.comparison.signed_release import release_run

    released = release_run(run_name, server, say, out=out, key=key, reason=reason, encoder=encoder)
    if as_json:
        print_json(released.to_json())
        return
    where = f"version {released.version} in MLflow" if released.version else "a pretrained start"
    say(f"Released {released.sha256[:12]} into {released.folder} ({where}).")
    say(f"Send {released.public_key} over a separate channel, with its SHA-256: {released.key_sha256}")
    if not released.version:
        say(f'A study begins from it with begin_from = "{released.sha256}"; each hospital approves it first.')
        return
    say(
        f"Score with it: fedthorax score SCAN --model {quoted(released.folder)} "
        f"--signed-by {quoted(released.public_key)}"
    )
