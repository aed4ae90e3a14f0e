"""`fedthorax node networks | approve-network | revoke-network`: packages of networks that studies may use here."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli import reasons
from federation.cli.apps import Note, SiteDir, user
from federation.cli.console import print_json, print_table, say
from federation.cli.options import Json
from models.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.network_plan import Plan
    from models.own_networks import Package

From = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Folder in which the package is installed. Default: where Python finds packages."),
]
_CODE = re.compile(r"[0-9a-f]{8,64}")
_SHOWN_DIGITS = 12


def networks(
    site_dir: SiteDir,
    show: Annotated[str, typer.Option(metavar="CODE", help="Show the files of an approved package.")] = "",
    as_json: Json = False,
) -> None:
    """List the packages of networks with a decision. No code of a package is run."""
    from federation.approval.networks import NetworkApprovals
    from pipeline.site.folder import Site

    approvals = NetworkApprovals(Site.open(site_dir))
    if show:
        _show_files(approvals.package(_found(show, [decision.sha256 for decision in approvals.decisions()])))
        return
    decisions = approvals.decisions()
    if as_json:
        print_json([decision.model_dump(mode="json") for decision in decisions])
        return
    rows = [[d.sha256[:_SHOWN_DIGITS], d.decided, f"{d.at:%Y-%m-%d}", d.by, d.note] for d in decisions]
    print_table(["package", "studies may use it", "decided", "by", "note"], rows)


def approve_network(
    site_dir: SiteDir,
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="The package's name, such as my-networks.")],
    folders: From = None,
    note: Note = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve without a question; for a package that was reviewed before.")
    ] = False,
) -> None:
    """Show a package's code and let studies use its networks. The sandbox works out their tensors first.

    The package's files are copied. Files that change later, in the package or beside it, have no effect.
    """
    from federation.approval.networks import NetworkApprovals
    from federation.node.network_plans import plans_of_package
    from models.own_networks import installed
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    found = installed(package, folders or [])
    if not yes:
        _show_files(found)
    plans = plans_of_package(site, found)
    _show_plans(found, plans)
    if not yes:
        typer.confirm("Let this code compute on this hospital's scans, in the sandbox?", abort=True, err=True)
    code = NetworkApprovals(site).approve(found, plans, by=user(), note=note)
    say(f"Approved {code}. A study that uses it needs its own approval: `fedthorax node approve-study`.")


def revoke_network(
    site_dir: SiteDir,
    code: Annotated[str, typer.Argument(metavar="CODE", help="The package's SHA-256 or its first 8 digits.")],
    note: Note = "",
) -> None:
    """Withdraw a package's approval. Studies and runs that use its networks are refused from now on."""
    from federation.approval.networks import NetworkApprovals
    from pipeline.site.folder import Site

    approvals = NetworkApprovals(Site.open(site_dir))
    found = _found(code, [decision.sha256 for decision in approvals.decisions()])
    approvals.revoke(found, by=user(), note=note)
    say(f"Revoked {found}.")


def _found(code: str, known: list[str]) -> str:
    found = [each for each in known if _CODE.fullmatch(code.lower()) and each.startswith(code.lower())]
    if len(found) != 1:
        raise Refusal(reasons.NETWORK_UNKNOWN)
    return found[0]


def _show_files(package: "Package") -> None:
    """Show the code that would run, with terminal control characters made visible, and the places to check."""
    from federation.approval.review import CAUTION, look_at, printable

    for path, text in package.files.items():
        typer.echo(f"--- {path}")
        for number, line in enumerate(text.splitlines(), start=1):
            typer.echo(f"{number:5}  {printable(line)}")
    findings, imports = look_at(package.files)
    typer.echo(f"\nimports     {', '.join(sorted(map(printable, imports)))}\nto check    {len(findings)} places")
    for finding in findings:
        typer.echo(f"  {finding.file}:{finding.line}  {printable(finding.what)}: {' '.join(finding.why.split())}")
    typer.echo(CAUTION)


def _show_plans(package: "Package", plans: "Mapping[str, Plan]") -> None:
    typer.echo(f"\npackage     {package.name}\ncode        {package.sha256}\n")
    rows = [
        [
            f"{package.name}:{name}",
            str(len(plan.tensors)),
            f"{sum(tensor.numbers for tensor in plan.tensors if tensor.kind == 'weight'):,}",
            str(plan.features),
            "batch norm" if plan.has_batch_norm else "no batch norm",
        ]
        for name, plan in plans.items()
    ]
    print_table(["network", "tensors", "weights", "features", "norm"], rows)
