"""`fedthorax serve`: run the clinician's page and its API."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli.console import goes_to_the_journal, quoted, say

if TYPE_CHECKING:
    from pipeline.clinic.settings import Clinic

BY = "command line"  # the actor's name in the clinic's audit log
FIRST = "first sign-in"
SignedBy = Annotated[
    list[Path] | None,
    typer.Option("--signed-by", help="Public key (.pub) that must have signed the model. Repeat to trust several."),
]


def serve(
    folder: Annotated[Path, typer.Argument(metavar="CLINIC", help="The clinic's folder; created if missing.")] = (
        Path("clinic")
    ),
    model: Annotated[
        Path | None,
        typer.Option(envvar="FEDTHORAX_MODEL", help="Folder of a release. It is verified and copied to the clinic."),
    ] = None,
    signed_by: SignedBy = None,
    host: Annotated[str | None, typer.Option(help="Overrides the host in clinic.toml.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Overrides the port in clinic.toml.")] = None,
) -> None:
    """Run the clinician's page and its API until Ctrl-C. Research use, not a medical device."""
    from pipeline.clinic.service import run_service
    from pipeline.clinic.settings import Clinic, init_clinic

    if not folder.exists():
        init_clinic(folder)
        say(f"Created a clinic. Its settings: {folder / 'clinic.toml'}")
    _take_up(Clinic.open(folder, host=host, port=port), model, signed_by)
    run_service(folder, host=host, port=port, on_start=_announce)


def _take_up(clinic: "Clinic", model: Path | None, signed_by: list[Path] | None) -> None:
    """Add the named model, and print which model is live."""
    from federation.cli.trust import trusted_keys
    from pipeline.clinic import model_registry

    with clinic.store() as store:
        if model is not None:
            added = model_registry.add_in_a_child(clinic, model, trusted_keys(signed_by or []), by=BY)
            taken = model_registry.take_up(store, added, by=BY)
            if taken.role == "shadow":
                say(f"Model {taken.sha256[:12]} runs in shadow beside the live model. To make it live:")
                say(f"  fedthorax clinic promote {quoted(clinic.folder)} {taken.sha256[:12]}")
        live = store.models.with_role("live")
    if live is None:
        say("There is no live model, so no scan can be scored. To add one:")
        say(f"  fedthorax clinic add-model {quoted(clinic.folder)} MODEL_DIR --live")
    else:
        signed = f"signed by {live.signed_by}" if live.signed_by else "signature not checked"
        say(f"Model {live.sha256[:12]} ({live.name}): {signed}")


def _announce(clinic: "Clinic") -> None:
    """Print the page's address. The first time, also print a token for one sign-in as administrator."""
    from pipeline.clinic.web.auth import ONCE_MINUTES, Tokens

    table = clinic.settings.server
    host = "localhost" if table.host in ("0.0.0.0", "::") else table.host  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    address = f"{'https' if table.certificate else 'http'}://{host}:{table.port}/"
    tokens = Tokens(clinic.folder)
    say(f"The page is at {address}. Ctrl-C stops it. Research use only. Not a medical device.")
    if tokens.all():
        return
    oidc = clinic.settings.oidc
    if oidc and not oidc.sign_in_with_tokens:
        say(
            f"The emergency token: fedthorax clinic token {quoted(clinic.folder)} "
            f"{quoted(oidc.emergency_admin)} --role admin"
        )
        return
    if goes_to_the_journal():
        say(f"To create a token: fedthorax clinic token {quoted(clinic.folder)} NAME --role admin")
        return
    secret = tokens.make(FIRST, "admin", by=BY, once=True)
    say(f"To sign in for the first time, within {ONCE_MINUTES} minutes and only once: {address}#token={secret}")
    say(f"After that: fedthorax clinic token {quoted(clinic.folder)} NAME --role read|score|admin")
