"""`fedthorax study ...`: the commands of a data scientist."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli.console import live, outliving_the_terminal, print_json, print_table, progress_bar, quoted, say
from federation.cli.new_study import init
from federation.cli.options import Json
from federation.cli.release_run import release
from federation.cli.report import report
from federation.cli.study_encoder import encoder, make_encoder
from federation.cli.study_network import network

if TYPE_CHECKING:
    from federation.runs.launch import Finished, Say

app = typer.Typer(help="Data scientists: launch, resume and compare federated training.", no_args_is_help=True)
StudyFile = Annotated[Path, typer.Argument(help="The study file. configs/study.toml explains its keys.")]
ServerDir = Annotated[Path, typer.Option("--server", help="The server's folder.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `study run` or `study list` shows it.")]
Simulate = Annotated[
    list[Path] | None,
    typer.Option(
        help="Simulate without a server: a site's folder on this machine, or a folder of sites. May be repeated."
    ),
]


app.command()(init)
app.command()(network)
app.command()(make_encoder)
app.command()(encoder)


@app.command()
def run(
    study_files: Annotated[list[Path], typer.Argument(help="Study files. configs/study.toml explains their keys.")],
    server: ServerDir = Path("server"),
    simulate: Simulate = None,
    group: Annotated[str, typer.Option(help="Name of the group of runs, used to compare them.")] = "",
    as_json: Json = False,
) -> None:
    """Run studies, one run for each file and seed, on a running server or on site folders of this machine.

    A run continues when the terminal is closed (`study follow RUN` shows it again). Ctrl-C stops the run.
    """
    from federation.runs.launch import launch_all, plan, server_of
    from federation.runs.run_folder import NAME

    if group and not re.fullmatch(NAME, group):
        raise typer.BadParameter("a group's name may contain only the letters a to z, digits and hyphens")
    studies = plan(study_files)
    with outliving_the_terminal():
        with _watching(server) as (tell, began), server_of(server, simulate):
            finished = launch_all(studies, server, tell, group=group, began=began)
        _tell(finished, as_json=as_json)


@app.command()
def resume(
    run_name: RunName, server: ServerDir = Path("server"), simulate: Simulate = None, as_json: Json = False
) -> None:
    """Resume a run from its last checkpoint after the server or the study stopped."""
    from federation.runs.launch import resume as go_on
    from federation.runs.launch import server_of

    with outliving_the_terminal():
        with _watching(server) as (tell, began), server_of(server, simulate):
            finished = go_on(run_name, server, tell, began=began)
        _tell([finished], as_json=as_json)


@app.command()
def follow(run_name: RunName, server: ServerDir = Path("server"), as_json: Json = False) -> None:
    """Show the log of a run from its first line, and how it ends. Ctrl-C stops the display, not the run."""
    from federation.runs.launch import follow as watch

    try:
        with _watching(server) as (tell, began):
            finished = watch(run_name, server, tell, began=began)
    except KeyboardInterrupt:
        say(f"{run_name} continues; `fedthorax study follow {run_name} --server {quoted(server)}` shows it again")
        return
    _tell([finished], as_json=as_json)


@app.command()
def stop(run_name: RunName, server: ServerDir = Path("server")) -> None:
    """Stop a run. It can be resumed."""
    from federation.runs.launch import stop_run

    stop_run(run_name, server)
    say(f"{run_name} is stopped; `fedthorax study resume {run_name} --server {quoted(server)}` resumes it")


@app.command()
def accept_ledger(
    run_name: RunName,
    site: Annotated[str, typer.Argument(help="The site's name.")],
    note: Annotated[str, typer.Option(help="Who decided, and why: it stays in the run's history.")],
    server: ServerDir = Path("server"),
) -> None:
    """Let a site go on with a stopped run although its ledger was cut (E_LEDGER_CUT), as after a restore.

    Ask the hospital first: it records the restore in its own ledger with `fedthorax node accept-restore`.
    """
    from federation.runs.accepted_ledgers import accept_ledger as accept

    cut = accept(server, run_name, site, note)
    say(f"Accepted that the ledger of {site} may lack lines up to {cut.lines}, in {run_name} only.")
    say(f"Next: fedthorax study resume {run_name} --server {quoted(server)}.")


@app.command(name="list")
def list_runs(server: ServerDir = Path("server"), as_json: Json = False) -> None:
    """List the runs of a server's folder, oldest first, with the mean over sites of the AUROC of severe.

    Of a complete run it is on test patients, with its interval; of another run, on validation patients of its last
    round, for which no interval leaves the sites.
    """
    from federation.runs.listing import list_lines, summaries
    from federation.runs.run_folder import require_server

    require_server(server)
    runs = summaries(server)
    if as_json:
        print_json(runs)
        return
    columns = ["run and group", "state", "strategy", "AUROC\nsevere", "begun\n(UTC)"]
    rows = [  # two lines each, for a narrow terminal
        [f"{run}\n{group}", f"{state}\n{number}", f"{strategy}\n{seed and f'seed {seed}'}", *map(_in_two_lines, rest)]
        for run, state, number, strategy, seed, group, *rest in list_lines(runs)
    ]
    print_table(columns, rows, whole=1)


@app.command()
def show(run_name: RunName, server: ServerDir = Path("server"), as_json: Json = False) -> None:
    """Show one run: its rounds, sites and refusals, the final model's metrics, and where its files are."""
    from federation.runs.listing import detail, final_table, label_of_rounds, masked_lines, results_or_none, round_lines
    from federation.runs.run_folder import find_run
    from federation.runs.training_length import trained_long

    details = detail(server, run_name)
    if as_json:
        print_json(details)
        return
    title = f"{run_name}: {details['strategy']}, seed {details['seed']}, {details['state']}"
    say(title + (f", group {details['group']}" if details["group"] else ""))
    if failure := details["failure"]:
        say(f"It ended with {failure['code']}: {failure['says']}. {failure['remedy']}")
    elif details["state"] == "failed":
        say(f"Why it failed is not recorded in its folder: see the log in {server / 'logs'}.")
    if rounds := round_lines(details["history"]):
        auroc = "mean AUROC severe" if label_of_rounds(details["history"]) == "severe" else "mean AUROC PCR"
        columns = ["round", "sites", "loss", auroc, "seconds", "MB up / down", "refused or flagged"]
        title = "Rounds (means over sites, on validation patients, without intervals)"
        print_table(columns, rounds, title=title)
    else:
        say(f"No round: {details['standing']}.")
    for warning in trained_long(details["history"]):
        say(f"{warning}. {warning.remedy}")
    if results := results_or_none(find_run(server, run_name)):
        (_, *places), lines = final_table(results)
        masked = masked_lines(results)
        pairs = [(name, pair) for name, *row in lines for pair in zip(places, row, strict=True)]
        cells = [[name, place, found or "–"] for name, (place, found) in pairs if found or not masked]
        title = "The final model on the sites' test patients (95 % intervals)"
        print_table(["figure and site", "value"], _grouped(cells), title=title, whole=1)
        for line in masked:
            typer.echo(line)
    for what, where in details["where"].items():
        typer.echo(f"{what}: {where}")


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or groups of runs, by name.")],
    server: ServerDir = Path("server"),
    as_json: Json = False,
) -> None:
    """Compare the final metrics of runs, and subtract the first one. Runs of a group that differ only by seed are one.

    Intervals are 95 %. A cell's interval is over the patients of these sites, and ± is the standard deviation over
    seeds. No scores leave a hospital, so the interval of a difference over patients holds for any correlation of the
    two models; the one over sites uses that both have the same patients at each site, and is often narrower.
    """
    from federation.comparison.compare_runs import compare as set_side_by_side

    comparison = set_side_by_side(server, names)
    if as_json:
        print_json(comparison.to_json())
        return
    titles = [column.title for column in comparison.columns]
    title = "The final models on the sites' test patients (95 % interval over patients, ± deviation over seeds)"
    lines = comparison.lines()
    if lines:
        print_table(["figure and site", *titles], _grouped(lines), title=title, whole=1)
    for each in comparison.differences():
        title = f"{_in_a_line(each.title)} MINUS {_in_a_line(each.minus)}, on the same test patients (95 % intervals)"
        columns = ["figure and site", "change", "over patients", "over seeds", "over sites and seeds"]
        if lines:
            print_table(columns, _grouped(each.lines()), title=title, whole=1)
    for warning in comparison.warnings:
        say(f"{warning}. {warning.remedy}")


def _grouped(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return lines of figure, site and cells with the figure once, as a heading: a terminal is narrow."""
    rows = []
    for k, (figure, site, *cells) in enumerate(lines):
        if not k or lines[k - 1][0] != figure:
            rows.append([figure, *("" for _ in cells)])
        rows.append([f"  {site}", *cells])
    return rows


def _in_two_lines(cell: str) -> str:
    return cell.replace(" ", "\n", 1)


def _in_a_line(title: str) -> str:
    return title.replace("\n", ", ")


app.command()(report)
app.command()(release)


@app.command()
def baseline(
    study_file: StudyFile,
    sites: Annotated[list[Path], typer.Argument(help="One site: a local model. Several: a pooled one.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    threads: Annotated[int, typer.Option(min=1, help="Processor cores to use.")] = 1,
) -> None:
    """Train without federation, with the same training step: one site, or synthetic sites pooled."""
    from federation.coordinator.baselines import train_baseline
    from federation.protocol.study_config import Study
    from models.settings import load_settings
    from pipeline.site.folder import Site

    release = train_baseline(
        load_settings(study_file, Study), [Site.open(folder) for folder in sites], out, threads=threads
    )
    say(f"Wrote {out}, release {release.sha256[:12]}.")


@app.command()
def attack(
    model: Annotated[
        Path, typer.Argument(help="Folder of the release. attacks.json and the model card are written there.")
    ],
    members: Annotated[list[Path], typer.Option(help="A site on this machine that trained it. May be repeated.")],
    study_file: Annotated[
        Path | None, typer.Option("--study", help="The study file. Default: the default training settings.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what attacks reveal from a model about its training patients, and write it to the model card.

    This takes about 12 minutes of one processor core for scans of the default size.
    """
    from federation.cli.attack_tables import print_attacks
    from federation.comparison.attack import measure, require_controls, study_of
    from models.release import add_attacks, load_release
    from pipeline.site.folder import Site

    study = study_of(load_release(model).description, study_file)
    with progress_bar("attacks") as progress:
        attacks = measure(model, [Site.open(folder) for folder in members], study, progress)
    add_attacks(model, attacks)
    require_controls(attacks)
    if as_json:
        print_json(attacks.model_dump(mode="json"))
    else:
        print_attacks(attacks)


@contextmanager
def _watching(server: Path) -> Iterator[tuple["Say", Callable[[str], None]]]:
    """Return the output for runs on `server`, and the function to call with the name of each run that begins."""
    from federation.runs.progress import Progress

    progress = Progress(server)
    with live(progress.now) as tell:
        yield tell, progress.watch


def _tell(finished: Sequence["Finished"], *, as_json: bool) -> None:
    """Print finished runs. As JSON, one run is one object; several are {"runs": [...]}."""
    if as_json:
        runs = [each.to_json() for each in finished]
        print_json(runs[0] if len(runs) == 1 else {"runs": runs})
        return
    for each in finished:
        say(f"Run {each.run} is complete. Candidate model: {each.release}")
        for warning in each.warnings:
            say(f"{warning}. {warning.remedy}")
        say(f"To see it in MLflow: {each.mlflow}")
