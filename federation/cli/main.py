"""Root of the command line `fedthorax`.

Each command imports the heavy libraries that it needs inside its own function.
"""

import errno
import os
import re
import signal
import sys
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from federation.cli import clinic, importing, node, server, study
from federation.cli.adapt import adapt
from federation.cli.argument_help import show_argument_help
from federation.cli.console import (
    OutputError,
    give_up_output,
    print_json,
    print_refusal,
    progress_bar,
    quoted,
    say,
    watched_output,
)
from federation.cli.explain import explain
from federation.cli.options import Json
from federation.cli.reasons import ADDRESS_MISSING, DATABASE, LIBRARY, PATH
from federation.cli.serve import serve
from federation.cli.verify_release import verify_release
from federation.system.process import QUIET
from models.reasons import SYSTEM
from models.refusal import Refusal
from pipeline.system.garbage import uncollected

# Errors that other permissions or more free space do not mend.
_WRONG_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST)

show_argument_help()
app = typer.Typer(
    help="Hospitals train a model of severe Covid-19 on chest CT and PCR together; no raw data leaves a hospital.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(node.app, name="node")
app.add_typer(importing.app, name="import")
app.add_typer(clinic.app, name="clinic")
app.add_typer(server.app, name="server")
app.add_typer(study.app, name="study")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version: the environment report of a bug report.")
    ] = False,
) -> None:
    if verbose and not version:
        context.fail("--verbose needs --version.")
    if version:
        typer.echo(_version(verbose=verbose))
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.fail("Missing command.")


def _version(*, verbose: bool) -> str:
    if not verbose:
        return f"fedthorax {metadata.version('fedthorax')}"
    from federation.cli.environment_report import environment_report

    return environment_report().rstrip()


class LaboratoryFeed(StrEnum):
    csv = "csv"
    hl7 = "hl7"
    fhir = "fhir"


class PhantomAnatomy(StrEnum):
    random = "random"
    template = "template"


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for all files of the demo.")] = Path("demo"),
    patients: Annotated[int, typer.Option(min=1, help="Patients at each training hospital.")] = 120,
) -> None:
    """Run the whole workflow on synthetic hospitals, on this machine."""
    from federation.cli.demo import run_demo

    run_demo(folder, patients=patients)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="New or empty folder for the hospitals.")],
    sites: Annotated[int, typer.Option(min=1, max=100, help="Number of hospitals.")] = 4,
    patients: Annotated[int, typer.Option(min=1, max=5000, help="Patients at each, without the defective ones.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed produces the same bytes.")] = 1,
    defects: Annotated[bool, typer.Option(help="Add one patient for each kind of defect.")] = True,
    laboratory: Annotated[LaboratoryFeed, typer.Option(help="Format of the laboratory export.")] = LaboratoryFeed.csv,
    anatomy: Annotated[
        PhantomAnatomy, typer.Option(help="Random bodies, or a simple one that varies little and is made sooner.")
    ] = PhantomAnatomy.random,
    randomise: Annotated[bool, typer.Option("--randomise", help="Each scan looks as from another scanner.")] = False,
    as_json: Json = False,
) -> None:
    """Write synthetic hospitals: DICOM, laboratory and outcome files, and truth.json with the true labels."""
    from pipeline.phantom.generate import make_hospitals

    with progress_bar("synthetic patients") as progress:
        folders = make_hospitals(
            out,
            patients=[patients] * sites,
            seed=seed,
            defects=defects,
            laboratory=laboratory.value,
            anatomy=anatomy.value,
            randomise=randomise,
            progress=progress,
        )
    if as_json:
        print_json({"hospitals": [folder.name for folder in folders]})
    else:
        say(f"Wrote {', '.join(folder.name for folder in folders)} under {out}.")
        say(f"Next, make a site from one: `fedthorax node init SITE_DIR --from {quoted(folders[0])}`.")


@app.command()
def score(
    series: Annotated[list[Path], typer.Argument(help="One chest CT: a DICOM folder, a zip or DICOM files.")],
    model: Annotated[
        Path | None, typer.Option(envvar="FEDTHORAX_MODEL", help="Folder of the release. Default: demo/model.")
    ] = None,
    signed_by: Annotated[
        list[Path] | None,
        typer.Option(help="Public key (.pub) that must have signed the release. Repeat to trust several."),
    ] = None,
    series_uid: Annotated[
        str | None, typer.Option(help="SeriesInstanceUID of the scan, if there are several DICOM series.")
    ] = None,
    lungs: Annotated[
        Path | None,
        typer.Option(help="Your own lung mask of this scan: NIfTI (1 right, 2 left) or a DICOM segmentation."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the HTML page, the JSON and the label maps to this folder, in place of an earlier answer in it."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, auto, cuda or cuda:N. Another device than the CPU may change the last digits.")
    ] = "cpu",
    run_package: Annotated[
        bool,
        typer.Option("--run-package", help="Run the network of an installed package that the release names."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score one scan: probability of severe Covid-19, with quality checks. Research use, not a medical device."""
    with uncollected():
        from federation.cli.scoring import score_series
        from federation.cli.trust import trusted_keys
        from models.compute_settings import DEVICE

    if not re.fullmatch(DEVICE, device):
        raise typer.BadParameter(f"{device} is not cpu, auto, cuda or cuda:N", param_hint="--device")
    score_series(
        series,
        model=model or Path("demo/model"),
        trusted=trusted_keys(signed_by or []),
        series_uid=series_uid,
        lungs=lungs,
        out=out,
        device=device,
        runs_package=run_package,
        as_json=as_json,
    )


app.command()(serve)
app.command()(adapt)
app.command()(explain)
app.command()(verify_release)


def main() -> None:
    """Run a command. A refusal or a system error is shown as a code and a remedy, not as a stack trace."""
    os.environ.update(QUIET)
    signal.signal(signal.SIGTERM, _end)
    try:
        with watched_output():
            ended = _run()
    except OSError as error:
        give_up_output(error)
        ended = 1
    sys.exit(ended)


def _run() -> str | int | None:
    """Run a command and return its exit status. Raises OutputError."""
    try:
        app()
    except SystemExit as end:
        return end.code
    except OutputError:
        raise
    except Exception as error:
        if (refusal := _refusal_of(error)) is None:
            raise
        print_refusal(refusal, as_json="--json" in sys.argv)
        return 1
    return 0


def _refusal_of(error: Exception) -> Refusal | None:
    """Return what to show for an error, or None if only a stack trace tells what is wrong."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, OSError | ImportError) and (library := _library_problem(error)):
        return library
    if isinstance(error, OSError):
        if error.errno == errno.EADDRNOTAVAIL:
            return Refusal(ADDRESS_MISSING)
        reason = PATH if error.errno in _WRONG_PATHS else SYSTEM
        return Refusal(reason, problem=error.strerror or type(error).__name__, private=str(error.filename or ""))
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib, up to Python 3.12
        return Refusal(SYSTEM, problem=os.strerror(errno.ELOOP), private=str(error))
    return _database_problem(error)


def _database_problem(error: Exception) -> Refusal | None:
    """Return a refusal if SQLite cannot use a file, or None. Its texts name no value of a table."""
    import sqlite3

    unusable = {
        *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL),
    }
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in unusable:
        return Refusal(DATABASE, problem=str(error))
    return None


def _end(*_: object) -> NoReturn:
    """End in order at the first SIGTERM, so that child processes are ended; a second one must not disturb this."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _library_problem(error: OSError | ImportError) -> Refusal | None:
    """Return a refusal if the dynamic linker refused a shared library, or None. Its error has a message only."""
    found = re.search(r"version `?\w+_[\d.]+'? not found|cannot open shared object file|undefined symbol", str(error))
    return Refusal(LIBRARY, problem=found[0], private=str(error)) if found else None
