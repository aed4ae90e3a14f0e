"""`fedthorax clinic ...`: manage the clinic's folder that `fedthorax serve` uses: tokens, models, audit log."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.cli.backup import backup_clinic, restore_clinic
from federation.cli.clinic_deliveries import send_again, status
from federation.cli.console import counted, print_json, print_json_list, print_table, quoted, say
from federation.cli.options import Json
from federation.cli.serve import BY, SignedBy
from federation.cli.support import report_clinic
from federation.cli.upgrade import check_clinic, undo_clinic

if TYPE_CHECKING:
    from pipeline.clinic.settings import Clinic

app = typer.Typer(help="The clinician's page: its folder, its users and its models.", no_args_is_help=True)
ClinicDir = Annotated[Path, typer.Argument(metavar="CLINIC", help="The clinic's folder.")]
_SHOWN_RECORDS = 1000  # of the audit log, in a table without --since
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The model's SHA-256 or its first digits.")]


class AccessRole(StrEnum):
    read = "read"
    score = "score"
    admin = "admin"


@app.command()
def init(folder: ClinicDir) -> None:
    """Create a clinic's folder with a settings file to edit."""
    from pipeline.clinic.settings import init_clinic

    init_clinic(folder)
    say(
        f"Created a clinic. Edit {folder / 'clinic.toml'}, then run "
        f"`fedthorax serve {quoted(folder)} --model MODEL_DIR`."
    )


# --- users ------------------------------------------------------------------------------------------------


@app.command()
def token(
    folder: ClinicDir,
    name: Annotated[str, typer.Argument(help="Person or program that uses the token. The audit log shows this name.")],
    role: Annotated[
        AccessRole, typer.Option(help="read: see answers; score: also submit scans; admin: also manage.")
    ] = AccessRole.score,
    days: Annotated[
        float | None, typer.Option(min=0.01, max=3650, help="Days until it expires. Default: no expiry.")
    ] = None,
    person: Annotated[
        str, typer.Option(help="Name of its owner, FAMILY^GIVEN, who may then accept, correct and reject results.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Create a token for a person to sign in or a program to call the API. It is shown once and not stored."""
    from pipeline.clinic.web.auth import Tokens

    if days is not None and math.isnan(days):  # a range lets it pass
        raise typer.BadParameter("'nan' is not a number of days.", param_hint="--days")
    secret = Tokens(_open(folder).folder).make(name, role.value, by=BY, days=days, person=person)
    if as_json:
        print_json({"name": name, "role": role.value, "person": person, "token": secret})
        return
    typer.echo(secret)
    say(
        f"Send it to {name} over a confidential channel. To revoke it: "
        f"fedthorax clinic revoke {quoted(folder)} {quoted(name)}"
    )


@app.command()
def tokens(folder: ClinicDir, as_json: Json = False) -> None:
    """List the tokens by name, without the secrets."""
    from pipeline.clinic.web.auth import Tokens

    made = [each.to_json() for each in Tokens(_open(folder).folder).all()]
    if as_json:
        print_json(made)
        return
    columns = ("name", "role", "person", "made_at", "ends_at", "revoked_at")
    _print(columns, made)


@app.command()
def revoke(folder: ClinicDir, name: Annotated[str, typer.Argument(help="The token's name.")]) -> None:
    """Revoke a token and end the browser sessions that signed in with it, at once."""
    from pipeline.clinic.web.auth import Tokens

    Tokens(_open(folder).folder).revoke(name, by=BY)
    say(f"Revoked the token {name}.")


# --- models -----------------------------------------------------------------------------------------------


@app.command()
def models(folder: ClinicDir, as_json: Json = False) -> None:
    """List the clinic's models, and how often a shadow model agrees with the live one."""
    from pipeline.clinic.model_registry import overview

    clinic = _open(folder)
    with clinic.store() as store:
        kept = overview(clinic, store)
    if as_json:
        print_json(kept)
        return
    print_table(
        ["model", "study", "role", "answers", "agreement with live", "signed by"],
        [
            [
                each["sha256"][:12] + (f" from {each['derived_from'][:12]}" if each["derived_from"] else ""),
                each["study"],
                each["role"] or "",
                str(each["answers"]),
                _beside(each["beside_live"]),
                (each["signed_by"] or "not checked")[:12],
            ]
            for each in kept
        ],
        whole=1,
    )


@app.command("add-model")
def add_model(
    folder: ClinicDir,
    model: Annotated[Path, typer.Argument(help="Folder of a release.")],
    signed_by: SignedBy = None,
    live: Annotated[bool, typer.Option("--live", help="Make it the live model if there is none yet.")] = False,
    as_json: Json = False,
) -> None:
    """Verify a release and store a copy of it."""
    from federation.cli.trust import trusted_keys
    from pipeline.clinic import model_registry

    clinic = _open(folder)
    added = model_registry.add(clinic, model, trusted_keys(signed_by or []), by=BY)
    if live:
        with clinic.store() as store:
            added = model_registry.take_up(store, added, by=BY)
    if as_json:
        print_json(added.to_json())
    else:
        say(f"Stored model {added.sha256[:12]} ({added.name}); role: {added.role or 'none yet'}.")


@app.command()
def shadow(
    folder: ClinicDir,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As in `promote`. Leave it out to end the shadow.")
    ] = None,
) -> None:
    """Run a second model on the same scans. Clinicians do not see its answers."""
    from pipeline.clinic.model_registry import named, set_shadow

    with _open(folder).store() as store:
        if model is None:
            store.models.set_shadow(None, by=BY)
            say("No model runs in shadow.")
            return
        chosen = named(store, model)
        set_shadow(store, chosen.sha256, by=BY)
    say(
        f"Model {chosen.sha256[:12]} runs in shadow from the next scan on. Compare: "
        f"fedthorax clinic models {quoted(folder)}"
    )


@app.command()
def promote(
    folder: ClinicDir,
    model: ModelName,
    force: Annotated[bool, typer.Option("--force", help="Promote it even if it never ran in shadow.")] = False,
) -> None:
    """Make a model live from the next scan on. Earlier answers keep the name of the model that produced them."""
    from pipeline.clinic.model_registry import named
    from pipeline.clinic.model_registry import promote as let_answer

    with _open(folder).store() as store:
        chosen = named(store, model)
        let_answer(store, chosen.sha256, by=BY, force=force)
    say(f"Model {chosen.sha256[:12]} is live.")


for name, command in (
    *(("status", status), ("send-again", send_again), ("backup", backup_clinic), ("restore", restore_clinic)),
    *(("upgrade-check", check_clinic), ("upgrade-undo", undo_clinic), ("support-report", report_clinic)),
):
    app.command(name)(command)


# --- labels for the next study ----------------------------------------------------------------------------


@app.command("export-labels")
def export_labels(
    folder: ClinicDir,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The new file, for the table labels of the node's site.toml.")
    ],
    as_json: Json = False,
) -> None:
    """Write PCR results, later outcomes and decisions as labels for the node's next study. Nothing is sent."""
    from dataclasses import asdict

    from pipeline.clinic.labels_export import export_labels as export

    exported = export(_open(folder), file, by=BY)
    if as_json:
        print_json(asdict(exported))
        return
    say(f"Labels of {counted(exported.patients, 'patient')}, {exported.severe_known} with a known course: {file}")
    for why, count in exported.left_out.items():
        say(f"  left out, {why}: {count}")


# --- the audit log ----------------------------------------------------------------------------------------


@app.command()
def audit(
    folder: ClinicDir,
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Show records from this day on.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Show only the newest records, so many. Default: all with --since or --json, else 1000.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the audit log: who did what and when, with the hashes of scans and models. It names no patient."""
    most = limit if limit or since or as_json else _SHOWN_RECORDS
    with _open(folder).store() as store:
        found = store.audit.newest(most, since) if most else store.audit.every(since)
        left_out = max(0, store.audit.count(since) - most) if most else 0
        records = (record.to_json() for record in found)
        if as_json:
            print_json_list(records)
        else:
            _print(("at", "who", "action", "answer_id", "model_sha256", "code"), list(records))
    if left_out:
        how = "Leave --limit out" if since or as_json else "Give --since, --json or a larger --limit"
        say(f"Older records that are not shown: {left_out}. {how} to get them.")


def _print(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> None:
    """Print a table with shortened hashes and times."""

    def shown(column: str, value: Any) -> str:
        text = str(value or "")
        if column.endswith(("_id", "_sha256")):
            return text[:12]
        return text[:16].replace("T", " ") if column == "at" or column.endswith("_at") else text

    print_table(
        [column.replace("_", " ") for column in columns],
        [[shown(column, line[column]) for column in columns] for line in lines],
    )


def _open(folder: Path) -> "Clinic":
    from pipeline.clinic.settings import Clinic

    return Clinic.open(folder)


def _beside(comparison: dict[str, object] | None) -> str:
    if comparison is None:
        return ""
    agreement = comparison["agreement"]
    assert isinstance(agreement, dict)
    shares = ", ".join(f"{label} {100 * share:.0f} %" for label, share in agreement.items())
    return f"{comparison['scans']} scans, same level: {shares}"
