"""`fedthorax node studies | approve-study | revoke-study`: which studies may learn from this hospital's patients."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.cli import reasons
from federation.cli.apps import Json, Note, SiteDir, user
from federation.cli.console import print_json, print_table, say
from models.refusal import Refusal

if TYPE_CHECKING:
    from federation.approval.studies import StudyApprovals
    from federation.approval.study_review import StudyReview
    from federation.protocol.study_config import Study

StudyName = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="A study of this release by name, a digest or its first 8 digits, or a study file.",
    ),
]
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_SHOWN_DIGITS = 12


def studies(
    site_dir: SiteDir,
    show: Annotated[str, typer.Option(metavar="STUDY", help="Show what a study asks for, in place of the list.")] = "",
    as_json: Json = False,
) -> None:
    """The studies of this release and those that were asked for, and which of them may run at this site."""
    from federation.approval.studies import StudyApprovals
    from pipeline.site.folder import Site

    approvals = StudyApprovals(Site.open(site_dir))
    if show:
        review, verdict = _review(approvals, show)
        if as_json:
            print_json({"verdict": verdict, **review.to_json()})
        else:
            _show(review, verdict)
        return
    known = [_about(approvals, digest) for digest in _known(approvals)]
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
                about["verdict"],
                about["decided"][:10],
                about["by"],
                f"{len(about['weakens'])} settings",
            ]
            for about in known
        ],
        whole=1,
    )
    say(f"Look at one: fedthorax node studies {site_dir} --show STUDY")


def approve_study(
    site_dir: SiteDir,
    study: StudyName,
    note: Note = "",
    yes: Annotated[bool, typer.Option("--yes", help="Approve without being asked: it was looked at before.")] = False,
) -> None:
    """Let a study run here, after a look at what it asks for. Its name, seeds and sites may differ, nothing else."""
    from federation.approval.studies import StudyApprovals
    from pipeline.site.folder import Site

    approvals = StudyApprovals(Site.open(site_dir))
    review, verdict = _review(approvals, study)
    _show(review, verdict)
    if not yes:
        typer.confirm("Let this study learn from this hospital's patients?", abort=True, err=True)
    digest = approvals.approve(_found(approvals, study).model_dump_json(), by=user(), note=note)
    say(f"Approved {digest}. It may run here from now on; `fedthorax node revoke-study` ends that.")


def revoke_study(site_dir: SiteDir, study: StudyName, note: Note = "") -> None:
    """Let a study run here no more; the gateway refuses it from now on, also where site.toml names it."""
    from federation.approval.studies import StudyApprovals
    from pipeline.site.folder import Site

    approvals = StudyApprovals(Site.open(site_dir))
    review, _ = _review(approvals, study)
    approvals.revoke(review.digest, by=user(), note=note)
    say(f"Revoked {review.digest}.")


# --- which study is meant ---------------------------------------------------------------------------------


def _known(approvals: "StudyApprovals") -> dict[str, "Study"]:
    """The release's own studies, those decided on and those that were asked for, by digest, each once."""
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
            except (ValueError, KeyError):  # of another release, or no study
                continue
    return known


def _found(approvals: "StudyApprovals", study: str) -> "Study":
    """The study that is meant. Raises Refusal: E_STUDY_UNKNOWN, E_STUDY_AMBIGUOUS, those of `load_settings`."""
    from federation.approval.presets import presets
    from federation.protocol.study_config import Study
    from models.settings import load_settings

    if study in presets():
        return presets()[study]
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


# --- what is shown ----------------------------------------------------------------------------------------


def _review(approvals: "StudyApprovals", name: str) -> tuple["StudyReview", str]:
    """A study's review, and whether it may run here."""
    from federation.approval.presets import names_of
    from federation.approval.studies import study_digest
    from federation.approval.study_review import review_study

    study = _found(approvals, name)
    digest = study_digest(study.model_dump_json())
    names = names_of(digest)
    return review_study(study, digest, names), approvals.verdict(digest, names)


def _about(approvals: "StudyApprovals", digest: str) -> dict[str, Any]:
    """A line of the list of studies."""
    review, verdict = _review(approvals, digest)
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


def _show(review: "StudyReview", verdict: str) -> None:
    """A study on the screen, with nothing in it that a terminal would obey."""
    from federation.approval.review import printable

    out = typer.echo
    out(f"study       {review.digest}")
    out(f"release     {', '.join(review.presets) or 'no study of this release has these settings'}")
    out(f"may run     {verdict}\n")
    print_table(["table", "setting", "value"], [[printable(cell) for cell in row] for row in review.settings])
    out(f"\nweakens privacy: {len(review.weakens)}")
    for line in review.weakens:
        out(f"  - {line}")
