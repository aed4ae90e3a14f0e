"""`fedthorax node studies | approve-study | revoke-study`: which studies may train on this hospital's patients."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.cli import reasons
from federation.cli.apps import Note, SiteDir, user
from federation.cli.console import print_json, print_table, quoted, say
from federation.cli.options import Json
from models.refusal import Refusal

if TYPE_CHECKING:
    from federation.approval.studies import StudyApprovals
    from federation.approval.study_review import StudyReview
    from federation.protocol.study_config import Study
    from pipeline.site.folder import Site

StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Name of a study of this release, a study's digest or its first 8 digits, or a study file.",
    ),
]
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_ALL_DIGITS, _SHOWN_DIGITS = 64, 12


def studies(
    site_dir: SiteDir,
    show: Annotated[
        str, typer.Option(metavar="STUDY", help="Show the settings of one study instead of the list.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the studies of this release and the studies that were requested, and which of them may run here."""
    from federation.approval.studies import StudyApprovals
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    approvals = StudyApprovals(site)
    if show:
        found = _found(approvals, show)
        review, verdict = _review(approvals, found)
        if as_json:
            refused = _refused_with(site, found)
            print_json({"verdict": verdict, "refused_with": refused, **review.to_json()})
        else:
            _show(review, verdict)
            _say_labels(site)
        return
    known = [
        {**_about(approvals, digest), "refused_with": _refused_with(site, study)}
        for digest, study in _known(approvals).items()
    ]
    if as_json:
        print_json(known)
        return
    columns = ["study", "of this release", "may run here", "decided", "by", "weakens privacy"]
    print_table(
        columns,
        [
            [
                about["study"][:_SHOWN_DIGITS],
                ", ".join(about["presets"]),
                f"no: {about['refused_with']}" if about["refused_with"] else about["verdict"],
                about["decided"][:10],
                about["by"],
                f"{len(about['weakens'])} settings",
            ]
            for about in known
        ],
        whole=1,
    )
    _say_labels(site)
    say(f"To show one: fedthorax node studies {quoted(site_dir)} --show STUDY")


def approve_study(
    site_dir: SiteDir,
    study: StudyName,
    note: Note = "",
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Approve without a question; for a study that was reviewed before. A digest must be whole."
        ),
    ] = False,
) -> None:
    """Review a study's settings and let it run here. Only its name, seeds and sites may change later."""
    from federation.approval.studies import StudyApprovals
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    approvals = StudyApprovals(site)
    if yes and _DIGEST.fullmatch(study.lower()) and len(study) < _ALL_DIGITS:
        raise Refusal(reasons.STUDY_DIGITS)
    # Once: while somebody reads, the server may send another study with the same first digits.
    found = _found(approvals, study)
    review, verdict = _review(approvals, found)
    _show(review, verdict)
    _say_labels(site)
    if not yes:
        typer.confirm("Let this study train on this hospital's patients?", abort=True, err=True)
    digest = approvals.approve(found.model_dump_json(), by=user(), note=note)
    say(f"Approved {digest}. It may run here from now on; `fedthorax node revoke-study` ends that.")


def revoke_study(site_dir: SiteDir, study: StudyName, note: Note = "") -> None:
    """Withdraw a study's approval. The gateway refuses it from now on, even if site.toml names it."""
    from federation.approval.studies import StudyApprovals
    from pipeline.site.folder import Site

    approvals = StudyApprovals(Site.open(site_dir))
    review, _ = _review(approvals, _found(approvals, study))
    approvals.revoke(review.digest, by=user(), note=note)
    say(f"Revoked {review.digest}.")


# --- finding a study --------------------------------------------------------------------------------------


def _known(approvals: "StudyApprovals") -> dict[str, "Study"]:
    """Return the release's own studies, the decided and the requested ones, by digest, each once."""
    from federation.approval.presets import presets
    from federation.approval.studies import as_study, study_digest
    from federation.protocol.study_config import Study

    known = {study_digest(study.model_dump_json()): study for study in presets().values()}
    decided = [decision.sha256 for decision in approvals.decisions()]
    for digest in [*decided, *(path.stem for path in approvals.kept())]:
        settings = approvals.content(digest)
        if digest not in known and settings is not None:
            try:
                known[digest] = Study.model_validate_json(as_study(settings))
            except (ValueError, KeyError):  # a study of another release, or not a study
                continue
    return known


def _found(approvals: "StudyApprovals", study: str) -> "Study":
    """Find a study. Raises Refusal: E_STUDY_UNKNOWN, E_STUDY_AMBIGUOUS, those of `load_settings`."""
    from federation.approval.presets import presets, sized
    from federation.protocol.study_config import Study
    from models.settings import load_settings

    shipped = {**presets(), **sized()}
    if study in shipped:
        return shipped[study]
    if Path(study).is_file():
        return load_settings(Path(study), Study)
    if not _DIGEST.fullmatch(study.lower()):
        raise Refusal(reasons.STUDY_UNKNOWN)
    found = [each for digest, each in _known(approvals).items() if digest.startswith(study.lower())]
    if not found:
        raise Refusal(reasons.STUDY_UNKNOWN)
    if len(found) > 1:
        raise Refusal(reasons.STUDY_AMBIGUOUS, count=len(found))
    return found[0]


# --- output -----------------------------------------------------------------------------------------------


def _review(approvals: "StudyApprovals", study: "Study") -> tuple["StudyReview", str]:
    """Return a study's review and whether it may run here."""
    from federation.approval.presets import names_of
    from federation.approval.studies import study_digest
    from federation.approval.study_review import review_study

    digest = study_digest(study.model_dump_json())
    names = names_of(digest)
    return review_study(study, digest, names), approvals.verdict(digest, names)


def _about(approvals: "StudyApprovals", digest: str) -> dict[str, Any]:
    """Return a row of the list of studies."""
    review, verdict = _review(approvals, _found(approvals, digest))
    decision = approvals.decision(digest)
    return {
        "study": digest,
        "presets": review.presets,
        "verdict": verdict,
        "decided": decision.at.isoformat() if decision else "",
        "by": decision.by if decision else "",
        "note": decision.note if decision else "",
        "weakens": review.weakens,
    }


def _refused_with(site: "Site", study: "Study") -> str:
    """Return the code with which this site refuses a study because it has no labels; "" if it does not."""
    from federation.protocol.site_labels import require_labels

    try:
        require_labels(site.settings, pretrains=study.network.pretrains)
    except Refusal as refusal:
        return refusal.code
    return ""


def _say_labels(site: "Site") -> None:
    from pipeline.doctor.reasons import CT_ONLY_USES

    if not site.settings.has_labels:
        say(f"This site has chest CT only. {CT_ONLY_USES}")


def _show(review: "StudyReview", verdict: str) -> None:
    """Show a study, with terminal control characters removed."""
    from federation.system.terminal_text import printable

    out = typer.echo
    out(f"study       {review.digest}")
    out(f"release     {', '.join(review.presets) or 'no study of this release has these settings'}")
    out(f"may run     {verdict}\n")
    print_table(["table", "setting", "value"], [[printable(cell) for cell in row] for row in review.settings])
    out(f"\nweakens privacy: {len(review.weakens)}")
    for line in review.weakens:
        out(f"  - {line}")
