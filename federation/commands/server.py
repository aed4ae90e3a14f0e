"""`fedthorax server ...`: what whoever hosts the study does."""

from pathlib import Path
from typing import Annotated

import typer

from federation.commands.console import print_json, print_table, say

app = typer.Typer(help="The study's server: make it, enrol hospitals, run it.", no_args_is_help=True)
ServerDir = Annotated[Path, typer.Argument(help="The server's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


@app.command()
def init(
    folder: ServerDir,
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address under which nodes reach it, the first is dialled; this machine if none."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8443,
    ca_certificate: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The hospital group's authority for this study, PEM.")
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(dir_okay=False, help="Its key, PEM, without a passphrase.")] = None,
) -> None:
    """Make a server: its settings, its certificates, and its own authority unless one is given."""
    from federation.enrolment.authority import Authority
    from federation.server.start import init_server

    if (ca_certificate is None) != (ca_key is None):
        raise typer.BadParameter("give --ca-certificate and --ca-key together, or neither")
    authority = Authority.read(ca_certificate, ca_key) if ca_certificate and ca_key else None
    init_server(folder, hosts=host or [], port=port, authority=authority)
    say(f"Made a server. Start it (`fedthorax server start {folder}`), then invite each hospital:")
    say(f"  fedthorax server enrol {folder} NAME --patients N")


@app.command()
def start(folder: ServerDir) -> None:
    """Run the server until Ctrl-C."""
    from federation.server.start import start_server

    with start_server(folder) as server:
        say("The server is up. Ctrl-C ends it.")
        raise typer.Exit(server.wait())


@app.command()
def enrol(
    folder: ServerDir,
    name: Annotated[str, typer.Argument(help="The site's name in the study.")],
    patients: Annotated[
        int | None, typer.Option(min=1, help="How many patients it says it has; its weight never counts for more.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Invite a hospital: prints the code with which its node joins, once, within 7 days."""
    from federation.enrolment.invitations import invite

    code = invite(folder, name, patients=patients)
    if as_json:
        print_json({"site": name, "code": code})
        return
    typer.echo(code)
    say(f"Send this code to {name} by a way that only {name} reads: whoever has it can join once in its place.")
    say("There: fedthorax node join SITE_DIR CODE")


@app.command()
def revoke(folder: ServerDir, name: Annotated[str, typer.Argument(help="The site's name in the study.")]) -> None:
    """Shut a hospital out at once: its certificates, its open code, its node."""
    from federation.enrolment.invitations import revoke as shut_out

    shut_out(folder, name)
    say(f"{name} is out. It can be enrolled again, with a new key.")


@app.command()
def renew(folder: ServerDir) -> None:
    """Renew the server's own certificate; the hospitals notice nothing."""
    from federation.server.start import renew_server

    say(f"The certificate is valid until {renew_server(folder):%Y-%m-%d}. Start the server again to use it.")


@app.command()
def sites(folder: ServerDir, as_json: Json = False) -> None:
    """The sites that were invited or have joined, and whether they are online. The server must be running."""
    from federation.enrolment.invitations import overview

    found = overview(folder)
    if as_json:
        print_json(
            [
                {
                    "site": s.name,
                    "online": s.online,
                    "state": s.state,
                    "patients": s.patients,
                    "until": s.until.isoformat() if s.until else None,
                }
                for s in found
            ]
        )
        return
    print_table(
        ["site", "online", "state", "patients", "certificate until"],
        [
            [
                s.name,
                "yes" if s.online else "no",
                s.state,
                str(s.patients or ""),
                f"{s.until:%Y-%m-%d}" if s.until else "",
            ]
            for s in found
        ],
    )
