"""`fedthorax node support-report`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import say


def support_report(
    site_dir: Annotated[Path, typer.Argument(help="The site's folder.")],
    file: Annotated[Path, typer.Argument(dir_okay=False, help="The report: a new file.")],
) -> None:
    """Write a report for whoever helps with a problem: states, counts and codes, and nothing of a patient or a log.

    Read it before you send it: it contains this site's limits for studies and the number of refusals by code.
    """
    from federation.cli.environment_report import environment_report
    from federation.node.support_report import support_report as report
    from pipeline.site.folder import Site

    content = {**report(Site.open(site_dir)), "environment": environment_report().splitlines()}
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(content, out, indent=1)
    say(f"Wrote {file}. Read it before you send it.")
