"""`fedthorax node apps | approve | revoke | ledger`: the code that may run here, and the data that has left."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.cli import reasons
from federation.cli.console import counted, print_json, print_table, quoted, say
from federation.cli.options import Json
from models.refusal import Refusal

if TYPE_CHECKING:
    from federation.approval.approvals import Approvals
    from federation.approval.review import Review
    from federation.ledger.view import Month

SiteDir = Annotated[Path, typer.Argument(help="The site's folder.")]
AppName = Annotated[
    str, typer.Argument(metavar="APP", help="An app's hash or at least its first 8 digits, a .fab file, or a folder.")
]
Note = Annotated[str, typer.Option(help="A note that is stored with the decision, at this site only.")]

_HASH_DIGITS = 64
_HASH = re.compile(r"[0-9a-fA-F]{8,64}")
_SHOWN_DIGITS = 12
_SHOWN_FINDINGS = 200


def apps(
    site_dir: SiteDir,
    show: Annotated[str, typer.Option(metavar="APP", help="Show one app instead of the list.")] = "",
    as_json: Json = False,
) -> None:
    """List the apps that this site received, and which of them may run here. No code of an app is executed."""
    from federation.approval.approvals import Approvals
    from pipeline.site.folder import Site

    approvals = Approvals(Site.open(site_dir))
    if show:
        review = _review(approvals, _content(approvals, show))
        if as_json:
            print_json({"verdict": approvals.verdict(review.sha256), **review.to_json()})
        else:
            _show(review, approvals.verdict(review.sha256))
        return
    known = [_about(approvals, sha256) for sha256 in _known(approvals)]
    if as_json:
        print_json(known)
    else:
        print_table(
            ["app", "name", "may run here", "decided", "by", "note"],
            [
                [a["app"][:_SHOWN_DIGITS], a["name"], a["verdict"], a["decided"][:10], a["by"], a["note"]]
                for a in map(_printable, known)
            ],
        )
        say(f"To show one: fedthorax node apps {quoted(site_dir)} --show APP")


def approve(
    site_dir: SiteDir,
    app: AppName,
    note: Note = "",
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Approve without a question; for an app that was reviewed before. A hash must be whole."
        ),
    ] = False,
) -> None:
    """Review an app and let it run here."""
    from federation.approval.approvals import Approvals
    from pipeline.site.folder import Site

    approvals = Approvals(Site.open(site_dir))
    if yes and _HASH.fullmatch(app) and len(app) < _HASH_DIGITS:
        raise Refusal(reasons.APP_DIGITS)
    content = _content(approvals, app)  # the bytes that are shown are approved: the file is not read again
    review = _review(approvals, content)
    _show(review, approvals.verdict(review.sha256))
    if not yes:
        typer.confirm("Let this app run here, on this hospital's data?", abort=True, err=True)
    sha256 = approvals.approve(content, by=user(), note=note)
    say(f"Approved {sha256}. It may run here from now on; `fedthorax node revoke` ends that.")


def revoke(site_dir: SiteDir, app: AppName, note: Note = "") -> None:
    """Withdraw an app's approval. The gateway refuses it from now on."""
    from federation.approval.approvals import Approvals
    from pipeline.site.folder import Site

    approvals = Approvals(Site.open(site_dir))
    sha256 = _sha256(approvals, app)
    approvals.revoke(sha256, by=user(), note=note)
    say(f"Revoked {sha256}.")


def ledger(
    site_dir: SiteDir,
    verify: Annotated[bool, typer.Option("--verify", help="Verify that no line was changed.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Also verify against a run's history.json, which reveals removed last lines.")
    ] = None,
    month: Annotated[str, typer.Option(metavar="YYYY-MM", help="Month (UTC). Default: the current month.")] = "",
    as_json: Json = False,
) -> None:
    """Show what left this hospital in a month, by run and round, and what was refused."""
    from datetime import UTC, datetime

    from federation.ledger.chain import ledger_file, read_lines
    from federation.ledger.chain import verify as check
    from federation.ledger.view import heads_in_record, month_of
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    if verify or record is not None:
        known = heads_in_record(record, site.name) if record is not None else []
        head = check(ledger_file(site), known)
        if as_json:
            print_json({"lines": head.lines, "head": head.sha256, "known_heads": len(known)})
        else:
            against = f", and it contains {counted(len(known), 'head')} of the record" if known else ""
            say(f"The ledger is intact: {counted(head.lines, 'line')}{against}. Its head: {head.sha256 or 'none'}")
        return
    if month and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise typer.BadParameter("give a month as 2026-11", param_hint="--month")
    found = month_of(read_lines(ledger_file(site)), month or f"{datetime.now(UTC):%Y-%m}")
    if as_json:
        print_json(found.to_json())
    else:
        _show_month(found)


# --- finding an app ---------------------------------------------------------------------------------------


def _known(approvals: "Approvals") -> list[str]:
    """Return the hashes of the release's own app, the decided and the stored apps, each once."""
    from federation.approval.approvals import own_app_sha256

    decided = [decision.sha256 for decision in reversed(approvals.decisions())]
    return list(dict.fromkeys([own_app_sha256(), *decided, *(path.stem for path in approvals.kept())]))


def _content(approvals: "Approvals", app: str) -> bytes:
    """Return the bytes of an app. Raises Refusal: E_APP_UNKNOWN, E_APP_AMBIGUOUS, those of `fab.build`."""
    from federation.approval import fab
    from federation.approval.approvals import own_app_sha256

    if not _HASH.fullmatch(app):
        return _from_disk(Path(app))
    sha256 = _sha256(approvals, app)
    content = fab.build(fab.APP) if sha256 == own_app_sha256() else approvals.content(sha256)
    if content is None:
        raise Refusal(reasons.APP_UNKNOWN, private=f"{sha256} is known, but its file is not here")
    return content


def _from_disk(path: Path) -> bytes:
    from federation.approval import fab

    if path.is_dir():
        return fab.build(path)
    if not path.is_file():
        raise Refusal(reasons.APP_UNKNOWN, private=str(path))
    with path.open("rb") as file:
        return file.read(fab.MAX_BYTES + 1)  # one byte more than the limit


def _sha256(approvals: "Approvals", app: str) -> str:
    """Return the full hash of an app. A full hash need not be known at this site."""
    from federation.approval import fab

    if not _HASH.fullmatch(app):
        return fab.read(_from_disk(Path(app))).sha256
    digits = app.lower()
    if len(digits) == _HASH_DIGITS:
        return digits
    found = [sha256 for sha256 in _known(approvals) if sha256.startswith(digits)]
    if not found:
        raise Refusal(reasons.APP_UNKNOWN)
    if len(found) > 1:
        raise Refusal(reasons.APP_AMBIGUOUS, count=len(found))
    return found[0]


def user() -> str:
    """Return who decides, for approvals.json only: the user who called sudo, or who runs this."""
    import getpass

    return os.environ.get("SUDO_USER") or getpass.getuser()


# --- output -----------------------------------------------------------------------------------------------


def _about(approvals: "Approvals", sha256: str) -> dict[str, Any]:
    """Return a row of the list of apps."""
    from federation.approval import fab

    decision = approvals.decision(sha256)
    try:
        name = fab.read(_content(approvals, sha256)).name
    except Refusal as refusal:
        name = refusal.code
    return {
        "app": sha256,
        "name": name,
        "verdict": approvals.verdict(sha256),
        "decided": decision.at.isoformat() if decision else "",
        "by": decision.by if decision else "",
        "note": decision.note if decision else "",
    }


def _review(approvals: "Approvals", content: bytes) -> "Review":
    """Review an app against the last approved app, or else against the release's own."""
    from federation.approval import fab
    from federation.approval.approvals import own_app_sha256
    from federation.approval.review import review

    app = fab.read(content)
    approved = [d.sha256 for d in reversed(approvals.decisions()) if approvals.verdict(d.sha256) == "approved"]
    before = next((sha256 for sha256 in [*approved, own_app_sha256()] if sha256 != app.sha256), "")
    try:
        return review(app, fab.read(_content(approvals, before)) if before else None)
    except Refusal:  # without the file of the earlier app, the whole app is shown as new
        return review(app)


def _printable(content: dict[str, str]) -> dict[str, str]:
    from federation.system.terminal_text import printable

    return {key: printable(value) for key, value in content.items()}


def _show(review: "Review", verdict: str) -> None:
    """Show an app, with terminal control characters removed."""
    from federation.approval.review import CAUTION
    from federation.system.terminal_text import printable

    out = typer.echo
    out(f"app         {printable(review.app)}\nhash        {review.sha256}\nmay run     {verdict}")
    out(f"needs       {printable(', '.join(review.dependencies)) or 'nothing else'} (nothing is installed for it)")
    out(f"imports     {printable(', '.join(review.imports))}\n\nfiles")
    for name, size, sha256 in review.files:
        out(f"  {size:>9}  {sha256[:_SHOWN_DIGITS]}  {printable(name)}")
    out(f"\nto check: {len(review.findings)}")
    for finding in review.findings[:_SHOWN_FINDINGS]:
        out(f"  {printable(finding.file)}:{finding.line}  {printable(finding.what)}  ({finding.why})")
    if len(review.findings) > _SHOWN_FINDINGS:
        out(f"  and {len(review.findings) - _SHOWN_FINDINGS} more")
    out(f"{CAUTION}\n\ndifference from {review.compared_with[:_SHOWN_DIGITS] or 'nothing'}")
    for line in review.difference or ["(the files are the same)"]:
        out(f"  {printable(line)}")
    if review.left_out:
        out(f"  and {review.left_out} more lines: read the app itself before you decide")


def _show_month(month: "Month") -> None:
    from federation.ledger.view import reason_of, remedy
    from federation.system.terminal_text import printable

    for title, passages in (("left", month.left), ("came in", month.came), ("decided here", month.here)):
        if not passages:
            continue
        print_table(
            ["run", "round", "when (UTC)", "what", "count", "bytes", "app", "verdict"],
            [
                [
                    printable(p.run),
                    "" if p.round is None else str(p.round),
                    p.first[:19].replace("T", " "),
                    printable(p.kind),
                    str(p.count),
                    f"{p.bytes:,}",
                    printable(p.app[:_SHOWN_DIGITS]),
                    printable(p.verdict),
                ]
                for p in passages
            ],
            title=f"{month.month}: {title}",
        )
    if month.codes:
        print_table(
            ["refused", "count", "why", "what to do"],
            [
                [printable(code), str(count), reason.says if reason else "", remedy(reason)]
                for code, count in month.codes.items()
                for reason in [reason_of(code)]
            ],
        )
    totals = month.totals
    typer.echo(
        f"Left in {month.month}: {totals['left']['count']} messages, {totals['left']['bytes']:,} bytes. "
        f"Came in: {totals['came']['count']}, {totals['came']['bytes']:,} bytes. Refused: {totals['refused']['count']}."
    )
