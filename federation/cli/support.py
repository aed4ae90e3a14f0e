"""`support-report` of `fedthorax node`, `fedthorax server` and `fedthorax clinic`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.cli.console import say
from federation.migration.reasons import ARCHIVE_EXISTS
from models.refusal import Refusal

SiteDir = Annotated[Path, typer.Argument(help="The site's folder.")]
ServerDir = Annotated[Path, typer.Argument(help="The server's folder.")]
ClinicDir = Annotated[Path, typer.Argument(metavar="CLINIC", help="The clinic's folder.")]
NewFile = Annotated[Path, typer.Argument(dir_okay=False, help="The report: a new file.")]


def report_site(site_dir: SiteDir, file: NewFile) -> None:
    """Write a report for whoever helps with a problem: states, counts and codes, and nothing of a patient or a log.

    Read it before you send it: it contains this site's limits for studies and the number of refusals by code.
    """
    from federation.support.node_report import node_report

    _write(
        node_report(site_dir),
        file,
        without="patient, path of this machine, name of the hospital or text of a log",
    )


def report_server(folder: ServerDir, file: NewFile) -> None:
    """Write a report for whoever helps with a problem: states, counts and codes, and no name, key or text of a log.

    Read it before you send it: it contains the numbers of hospitals and runs, and the newest study's settings.
    """
    from federation.support.server_report import server_report

    _write(
        server_report(folder),
        file,
        without="key, password, name of a hospital, a study or a run, weights or text of a log",
    )


def report_clinic(folder: ClinicDir, file: NewFile) -> None:
    """Write a report for whoever helps with a problem: states, counts and codes, and nothing of a patient or a log.

    Read it before you send it: it contains the numbers of scans, answers and deliveries.
    """
    from federation.support.clinic_report import clinic_report

    _write(
        clinic_report(folder),
        file,
        without="patient, answer, date of a scan, path of this machine, name of a person or text of a log",
    )


def _write(report: Mapping[str, Any], file: Path, *, without: str) -> None:
    """Write a report with what is known of the machine to a new private file, and say what is in it.

    Raises Refusal E_ARCHIVE_EXISTS.
    """
    from federation.cli.environment_report import environment_report

    content = {**report, "environment": environment_report().splitlines()}
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refusal(ARCHIVE_EXISTS, private=str(file)) from None
    with os.fdopen(handle, "w") as out:
        json.dump(content, out, indent=1)
    say(f"Wrote {file}: {', '.join(name.replace('_', ' ') for name in content)}.")
    say(f"It holds no {without}. Read it before you send it.")
