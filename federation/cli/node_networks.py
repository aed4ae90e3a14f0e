"""`fedthorax node networks | approve-network | revoke-network`: packages that studies may use here."""

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

    from federation.approval.packages import PackageApprovals
    from models.network_plan import Plan
    from models.own_packages import Kind, Package

From = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Folder in which the package is installed. Default: where Python finds packages."),
]
_CODE = re.compile(r"[0-9a-f]{8,64}")
_SHOWN_DIGITS = 12
_WHAT: "dict[Kind, str]" = {
    "network": "computes on scans, in training and in evaluation",
    "loss": "sees the model's answers and the labels of training patients, and decides what is learnt from each",
    "transform": "changes training scans before each use",
    "strategy": "combines the hospitals' updates on the server; it does not run here",
}


def networks(
    site_dir: SiteDir,
    show: Annotated[str, typer.Option(metavar="CODE", help="Show the files of an approved package.")] = "",
    as_json: Json = False,
) -> None:
    """List the packages with a decision, and what each brings. No code of a package is run."""
    from federation.approval.packages import PackageApprovals
    from pipeline.site.folder import Site

    approvals = PackageApprovals(Site.open(site_dir))
    if show:
        _show_files(approvals.package(_found(show, [decision.sha256 for decision in approvals.decisions()])))
        return
    decisions = approvals.decisions()
    if as_json:
        print_json([d.model_dump(mode="json") | {"brings": _kept(approvals, d.sha256)} for d in decisions])
        return
    rows = [[*_lines(approvals, d.sha256), d.decided, f"{d.at:%Y-%m-%d}", d.by, d.note] for d in decisions]
    print_table(["package", "brings", "studies may use it", "decided", "by", "note"], rows, whole=2)


def _kept(approvals: "PackageApprovals", code: str) -> list[str]:
    """Return what a package brings, such as "network my-networks:wide"; a code if its bytes are gone or changed."""
    try:
        package = approvals.package(code)
    except Refusal as refusal:
        return [refusal.code]
    return [f"{kind} {package.name}:{name}" for kind, name in _parts(package)]


def _lines(approvals: "PackageApprovals", code: str) -> tuple[str, str]:
    """Return the package's name and code, and what it brings, in lines that fit a table."""
    shown = code[:_SHOWN_DIGITS]
    try:
        package = approvals.package(code)
    except Refusal as refusal:
        return shown, refusal.code
    return f"{package.name}\n{shown}", "\n".join(" ".join(part) for part in _parts(package))


def _parts(package: "Package") -> list[tuple[str, str]]:
    """Return the kind and the name of each part."""
    from models.own_packages import GROUPS

    return [(kind, name) for kind in GROUPS for name in package.parts(kind)]


def approve_network(
    site_dir: SiteDir,
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="The package's name, such as my-networks.")],
    folders: From = None,
    note: Note = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve without a question; for a package that was reviewed before.")
    ] = False,
) -> None:
    """Show a package's code and let studies use what it brings. The sandbox tries it first.

    The package's files are copied. Files that change later, in the package or beside it, have no effect.
    """
    from federation.approval.packages import PackageApprovals
    from federation.node.package_trial import try_package
    from models.own_packages import installed
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    found = installed(package, folders or [])
    if not yes:
        _show_files(found)
    plans = try_package(site, found)
    _show_parts(found, plans)
    if not yes:
        typer.confirm("Let this code compute on this hospital's scans, in the sandbox?", abort=True, err=True)
    code = PackageApprovals(site).approve(found, plans, by=user(), note=note)
    say(f"Approved {code}. A study that uses it needs its own approval: `fedthorax node approve-study`.")


def revoke_network(
    site_dir: SiteDir,
    code: Annotated[str, typer.Argument(metavar="CODE", help="The package's SHA-256 or its first 8 digits.")],
    note: Note = "",
) -> None:
    """Withdraw a package's approval. Studies and runs that use it are refused from now on."""
    from federation.approval.packages import PackageApprovals
    from pipeline.site.folder import Site

    approvals = PackageApprovals(Site.open(site_dir))
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
    from federation.approval.review import CAUTION, look_at
    from federation.system.terminal_text import printable

    for path, text in package.files.items():
        typer.echo(f"--- {path}")
        for number, line in enumerate(text.splitlines(), start=1):
            typer.echo(f"{number:5}  {printable(line)}")
    findings, imports = look_at(package.files)
    typer.echo(f"\nimports     {', '.join(sorted(map(printable, imports)))}\nto check    {len(findings)} places")
    for finding in findings:
        typer.echo(f"  {finding.file}:{finding.line}  {printable(finding.what)}: {' '.join(finding.why.split())}")
    typer.echo(CAUTION)


def _show_parts(package: "Package", plans: "Mapping[str, Plan]") -> None:
    """Show what the package brings and what each kind of part does; of networks, the size."""
    from models.own_packages import GROUPS

    typer.echo(f"\npackage     {package.name}\ncode        {package.sha256}\n")
    for kind in GROUPS:
        if names := package.parts(kind):
            typer.echo(f"{kind:11} {', '.join(names)}: {_WHAT[kind]}")
    if not plans:
        return
    typer.echo()
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
