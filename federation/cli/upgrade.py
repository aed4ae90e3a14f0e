"""`upgrade-check` and `upgrade-undo` of `fedthorax node`, `fedthorax server` and `fedthorax clinic`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli.console import print_json, print_table, say
from federation.cli.options import Json

if TYPE_CHECKING:
    from federation.upgrade.plan import Plan

SiteDir = Annotated[Path, typer.Argument(help="The site's folder.")]
ServerDir = Annotated[Path, typer.Argument(help="The server's folder.")]
ClinicDir = Annotated[Path, typer.Argument(metavar="CLINIC", help="The clinic's folder.")]


def check_site(site_dir: SiteDir, as_json: Json = False) -> None:
    """Show what this version would change at a site, whether now is safe, and how to go back. Changes nothing."""
    from federation.upgrade.sites import plan_site
    from pipeline.site.folder import Site

    _show(plan_site(Site.open(site_dir)), as_json=as_json)


def undo_site(site_dir: SiteDir) -> None:
    """Put back the files of a site from before the last upgrade. Stop the node first."""
    from federation.upgrade.sites import undo_site as undo
    from pipeline.site.folder import Site

    _tell(undo(Site.open(site_dir)))


def check_server(folder: ServerDir, as_json: Json = False) -> None:
    """Show what this version would change at a server, whether now is safe, and how to go back. Changes nothing."""
    from federation.upgrade.servers import plan_server

    _show(plan_server(folder), as_json=as_json)


def undo_server(folder: ServerDir) -> None:
    """Put back the files of a server from before the last upgrade. Stop the server first."""
    from federation.upgrade.servers import undo_server as undo

    _tell(undo(folder))


def check_clinic(folder: ClinicDir, as_json: Json = False) -> None:
    """Show what this version would change at a clinic, whether now is safe, and how to go back. Changes nothing."""
    from federation.upgrade.clinics import plan_clinic
    from pipeline.clinic.settings import Clinic

    _show(plan_clinic(Clinic.open(folder)), as_json=as_json)


def undo_clinic(folder: ClinicDir) -> None:
    """Put back the files of a clinic from before the last upgrade. Stop the page first."""
    from federation.upgrade.clinics import undo_clinic as undo
    from pipeline.clinic.settings import Clinic

    _tell(undo(Clinic.open(folder)))


def _show(plan: "Plan", *, as_json: bool) -> None:
    """Print the plan; exit with 1 if the upgrade cannot be made now."""
    if as_json:
        print_json(plan.to_json())
        raise typer.Exit(int(not plan.safe_now))
    lines = [[each.file, str(each.found), str(each.known), each.effect] for each in plan.changes]
    title = f"{plan.before or 'an unknown version'} -> {plan.version}"
    print_table(["file", "format now", "this version", "what happens"], lines, title=title)
    say(f"Disk: {plan.needs_bytes / 2**20:.0f} MB needed, {plan.free_bytes / 2**20:.0f} MB free.")
    for line in plan.refused:
        say(f"Not possible: {line}")
    for line in plan.waits_for:
        say(f"Not now: {line}")
    if plan.safe_now:
        say("Safe now" + (": stop it first." if plan.running else "."))
        for what, commands in (("To upgrade", plan.forward), ("To go back", plan.back)):
            say(f"{what}:")
            for command in commands:
                say(f"  {command}")
    raise typer.Exit(int(not plan.safe_now))


def _tell(found: Mapping[str, int]) -> None:
    for name, number in found.items():
        say(f"{name} has format {number} again. The newer file is beside it.")
    say("Now use the older version.")
