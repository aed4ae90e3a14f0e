"""`fedthorax server ...`: what whoever hosts the study does."""

from pathlib import Path
from typing import Annotated

import typer

from federation.console import print_json, print_table, say

app = typer.Typer(help="The study's server: make it, enrol hospitals, run it.", no_args_is_help=True)
ServerDir = Annotated[Path, typer.Argument(help="The server's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


@app.command()
def init(
    folder: ServerDir,
    host: Annotated[list[str] | None, typer.Option(help="A name or address under which nodes reach it.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8443,
) -> None:
    """Make a server: its settings and its certificates."""
    from federation.control import ca_certificate
    from federation.server import init_server

    init_server(folder, hosts=host or ["localhost"], port=port)
    say(f"Made a server. Each hospital needs {ca_certificate(folder)}.")


@app.command()
def start(folder: ServerDir) -> None:
    """Run the server until Ctrl-C."""
    from federation.server import start_server

    with start_server(folder) as server:
        say("The server is up. Ctrl-C ends it.")
        server.wait()


@app.command()
def enrol(
    folder: ServerDir,
    name: Annotated[str, typer.Argument(help="The site's name.")],
    public_key: Annotated[Path, typer.Argument(help="The public node key that the hospital sent.")],
) -> None:
    """Let a hospital's node take part. The server must be running."""
    from federation.server import enrol as register

    register(folder, public_key, name)
    say(f"Enrolled {name}.")


@app.command()
def sites(folder: ServerDir, as_json: Json = False) -> None:
    """The enrolled sites and whether they are online."""
    from federation.server import sites as enrolled

    found = enrolled(folder)
    if as_json:
        print_json([{"site": s.name, "online": s.online} for s in found])
    else:
        print_table(["site", "online"], [[s.name, "yes" if s.online else "no"] for s in found])
