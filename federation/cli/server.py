"""`fedthorax server ...`: the commands of the host of a study."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.cli.backup import backup_server, restore_server
from federation.cli.console import print_json, print_table, progress_bar, quoted, say
from federation.cli.options import Json
from federation.cli.support import report_server
from federation.cli.upgrade import check_server, undo_server
from federation.migration.reasons import PASSPHRASE
from models.refusal import Refusal

if TYPE_CHECKING:
    from federation.migration.common import Moved

app = typer.Typer(help="The study's server: set it up, enrol hospitals, run it.", no_args_is_help=True)
ServerDir = Annotated[Path, typer.Argument(help="The server's folder.")]
Archive = Annotated[Path, typer.Argument(dir_okay=False, help="The archive, one file.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="File whose first line is the archive's passphrase."),
]


@app.command()
def init(
    folder: ServerDir,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address that nodes can use. Nodes connect to the first. Default: this machine."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to which nodes connect.")] = 8443,
    ca_certificate: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The hospital group's certificate authority, PEM.")
    ] = None,
    ca_key: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The authority's key, PEM, no passphrase.")
    ] = None,
) -> None:
    """Create a server: settings, certificates, and a certificate authority unless one is given."""
    from federation.enrolment.authority import Authority
    from federation.server.start import init_server

    if (ca_certificate is None) != (ca_key is None):
        raise typer.BadParameter("give --ca-certificate and --ca-key together, or neither")
    authority = Authority.read(ca_certificate, ca_key) if ca_certificate and ca_key else None
    init_server(folder, hosts=host or [], port=port, authority=authority)
    say(f"Created a server. Start it (`fedthorax server start {quoted(folder)}`), then invite each hospital:")
    say(f"  fedthorax server enrol {quoted(folder)} NAME --patients N")


@app.command()
def start(folder: ServerDir) -> None:
    """Run the server until Ctrl-C."""
    from federation.runs.server_metrics import ServerMetrics
    from federation.server.start import start_server
    from federation.superlink.control import read_server_config
    from federation.system.monitoring import monitored
    from federation.system.stop_limit import STOP_SECONDS, ending_within

    with ending_within(STOP_SECONDS), start_server(folder) as server:
        metrics = ServerMetrics(folder, lambda: server.each_running)
        with monitored(read_server_config(folder).monitoring_port, metrics.collect, metrics.ready):
            say("The server is up. Ctrl-C ends it.")
            raise typer.Exit(server.wait())


@app.command()
def enrol(
    folder: ServerDir,
    name: Annotated[str, typer.Argument(help="The site's name in the study.")],
    patients: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Number of patients that the site reports; upper bound of its weight."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Invite a hospital: print a code with which its node can join once within 7 days."""
    from federation.enrolment.invitations import has_open_code, invite

    replaces = has_open_code(folder, name)
    code = invite(folder, name, patients=patients)
    if as_json:
        print_json({"site": name, "code": code, "replaces": replaces})
        return
    typer.echo(code)
    if replaces:
        say(f"The code that {name} got before and has not used is no longer valid.")
    say(f"Send this code to {name} over a confidential channel: whoever has it can join once in its place.")
    say("There: fedthorax node join SITE_DIR CODE")


@app.command()
def revoke(folder: ServerDir, name: Annotated[str, typer.Argument(help="The site's name in the study.")]) -> None:
    """Revoke a hospital's certificates and open code, and disconnect its node, at once."""
    from federation.enrolment.invitations import revoke as shut_out

    shut_out(folder, name)
    say(f"Revoked {name}. It can be enrolled again, with a new key.")


@app.command()
def renew(folder: ServerDir) -> None:
    """Renew the server's own certificate. The hospitals need to do nothing."""
    from federation.server.start import renew_server

    say(f"The certificate is valid until {renew_server(folder):%Y-%m-%d}. Restart the server to use it.")


@app.command()
def sites(folder: ServerDir, as_json: Json = False) -> None:
    """List the invited and joined sites, and whether they are online. The server must be running.

    The version is the one that a site reported at the start of the last run.
    """
    from federation.enrolment.invitations import overview
    from federation.runs.listing import last_versions

    found, versions = overview(folder), last_versions(folder)
    if as_json:
        print_json(
            [
                {
                    "site": s.name,
                    "online": s.online,
                    "state": s.state,
                    "patients": s.patients,
                    "until": s.until.isoformat() if s.until else None,
                    "version": versions.get(s.name),
                }
                for s in found
            ]
        )
        return
    print_table(
        ["site", "online", "state", "patients", "certificate until", "version"],
        [
            [
                s.name,
                "yes" if s.online else "no",
                s.state,
                str(s.patients or ""),
                f"{s.until:%Y-%m-%d}" if s.until else "",
                versions.get(s.name, ""),
            ]
            for s in found
        ],
    )


app.command("backup")(backup_server)
app.command("restore")(restore_server)
app.command("support-report")(report_server)
app.command("upgrade-check")(check_server)
app.command("upgrade-undo")(undo_server)

# --- migration --------------------------------------------------------------------------------------------


@app.command("export")
def leave(
    folder: ServerDir,
    archive: Archive,
    seal: Annotated[bool, typer.Option("--seal", help="Encrypt it with a passphrase, typed at a prompt.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Export the stopped server to one file for another provider. The server here does not start again."""
    from federation.migration.export import export_server

    if archive.resolve().is_relative_to(folder.resolve()):
        raise typer.BadParameter("choose a file outside the server's folder for the archive")
    passphrase = _passphrase(passphrase_file, ask=seal, confirm=True)
    moved = export_server(folder, archive, passphrase=passphrase, say=say, bar=progress_bar)
    archive = archive.resolve()
    _tell(moved, archive, as_json=as_json)
    if passphrase:
        say("It is encrypted (age format). Send the passphrase over another channel than the archive.")
    else:
        say("It contains the private key of the study's authority, not encrypted: whoever has the file can issue")
        say("certificates of the study. Send it over a confidential channel, or export again with --seal.")
    say(f"There: fedthorax server import {quoted(archive.name)} SERVER_DIR --host NAME, and compare the SHA-256.")
    say("This server is marked as moved and does not start again. Delete its folder once the new server runs and is")
    say(f"checked. To cancel the move, delete the archive and {folder / 'MOVED'}; then this server can start again.")


@app.command("import")
def settle(
    archive: Archive,
    folder: ServerDir,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address that nodes can use. Nodes connect to the first. Default: as before."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: as before.")] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Create a server from another provider's export. It continues where the exported server stopped."""
    from federation.migration.common import is_sealed_archive
    from federation.migration.import_archive import import_server
    from federation.runs.run_folder import unfinished

    passphrase = _passphrase(passphrase_file, ask=is_sealed_archive(archive) and sys.stdin.isatty(), confirm=False)
    moved = import_server(archive, folder, hosts=host or [], port=port, passphrase=passphrase, bar=progress_bar)
    _tell(moved, archive, as_json=as_json)
    say("The import is complete and verified. Compare the SHA-256 and the table with the output of the export.")
    say(f"Then start it: fedthorax server start {quoted(folder)}")
    say(f"At a site with another server address: fedthorax node move SITE_DIR {moved.address}, then restart its node.")
    for run in unfinished(folder):
        say(f"To continue an unfinished run: fedthorax study resume {run} --server {quoted(folder)}")


def _passphrase(file: Path | None, *, ask: bool, confirm: bool) -> str | None:
    """Return the archive's passphrase; None if none is needed or given."""
    if file is not None:
        if file.stat().st_mode & 0o077:
            raise Refusal(PASSPHRASE, problem="users other than its owner may read its file (chmod 600)")
        return file.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)) if ask else None


def _tell(moved: "Moved", archive: Path, *, as_json: bool) -> None:
    contents = moved.contents
    if as_json:
        about: dict[str, Any] = asdict(moved) | {"archive": str(archive), "contents": contents.model_dump(mode="json")}
        print_json(about)
        return
    roster = {"sites": contents.sites, "certificates of sites": contents.certificates, "codes": contents.invitations}
    lines = [[f"roster: {what}", str(count)] for what, count in roster.items()]
    lines += [[f"run {name}", f"up to round {number}"] for name, number in contents.runs.items()]
    for name, amount in contents.experiments.items():
        lines += [[f"MLflow, {name}: {what}", str(count)] for what, count in amount.model_dump().items()]
    print_table(["what", "how much"], lines, title=f"{archive.name}, {moved.bytes / 1e6:.1f} MB")
    typer.echo(f"SHA-256 {moved.sha256}")
