"""`fedthorax study report`: write the report of a run."""

from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import print_json, say
from federation.cli.options import Json


def report(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `study list` shows it.")],
    server: Annotated[Path, typer.Option("--server", help="The server's folder.")] = Path("server"),
    out: Annotated[Path | None, typer.Option(help="Folder of the report. Default: SERVER/runs/RUN/report.")] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run: one HTML page that opens offline and prints, and its numbers in report.json.

    The run's artifacts in MLflow get a copy.
    """
    from federation.runs.run_folder import find_run

    folder = find_run(server, run_name)  # before the imports that take seconds
    from federation.report.page import write_report
    from federation.runs.results import read_results
    from federation.runs.tracking import attach

    written = write_report(read_results(folder), out or folder / "report")
    is_attached = attach(folder.resolve().parents[1], folder.name, (written.page, written.numbers), "report", say)
    if as_json:
        print_json(
            {
                "run": run_name,
                "page": str(written.page),
                "numbers": str(written.numbers),
                "mlflow": "report" if is_attached else None,
            }
        )
    else:
        say(f"Wrote {written.page}. Open it in a browser or print it. Its numbers: {written.numbers}")
        if is_attached:
            say("The run's artifacts in MLflow have a copy, in `report`")
