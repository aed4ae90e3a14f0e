"""`fedthorax study ...`: what a data scientist does."""

from pathlib import Path
from typing import Annotated

import typer

from federation.commands.console import print_json, progress_bar, say

app = typer.Typer(help="Data scientists: launch, resume and compare federated training.", no_args_is_help=True)
StudyFile = Annotated[Path, typer.Argument(help="The study file; configs/study.toml explains it.")]
ServerDir = Annotated[Path, typer.Option("--server", help="The server's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


@app.command()
def run(
    study_file: StudyFile,
    server: ServerDir = Path("server"),
    simulate: Annotated[
        list[Path] | None,
        typer.Option(help="A site's folder on this machine; repeat it. Runs on Flower's simulation, without server."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a study on a running server, or with --simulate over site folders of this machine."""
    from federation.studies.launch import launch, simulate_study
    from federation.study import Study
    from models.settings import load_settings

    study = load_settings(study_file, Study)
    result = simulate_study(study, server, simulate, say) if simulate else launch(study, server, say)
    _tell(result.to_json(), as_json=as_json)


@app.command()
def resume(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `study run` printed it.")],
    server: ServerDir = Path("server"),
    as_json: Json = False,
) -> None:
    """Go on with a run from its last checkpoint, after the server or the study came to a halt."""
    from federation.studies.launch import resume as go_on

    _tell(go_on(run_name, server, say).to_json(), as_json=as_json)


@app.command()
def baseline(
    study_file: StudyFile,
    sites: Annotated[list[Path], typer.Argument(help="One site: a local model. Several: a pooled one.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    threads: Annotated[int, typer.Option(min=1, help="Processor cores to use.")] = 1,
) -> None:
    """Train without federation, by the same step: one site alone, or synthetic sites pooled on this machine."""
    from federation.studies.baselines import train_baseline
    from federation.study import Study
    from models.settings import load_settings
    from pipeline.site import Site

    release = train_baseline(
        load_settings(study_file, Study), [Site.open(folder) for folder in sites], out, threads=threads
    )
    say(f"Wrote {out}, release {release.sha256[:12]}.")


@app.command()
def attack(
    model: Annotated[Path, typer.Argument(help="Folder of the release; attacks.json and its card are written there.")],
    members: Annotated[list[Path], typer.Option(help="A site that trained it, on this machine; repeat it.")],
    study_file: Annotated[
        Path | None, typer.Option("--study", help="The study's file; without it, the default training is assumed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what attacks find out from a model about its training patients, and write it into its card."""
    from federation.studies.attack import measure, require_controls, study_of
    from models.attacks import attacks_section
    from models.release import add_attacks, load_release
    from pipeline.site import Site

    study = study_of(load_release(model).description, study_file)
    with progress_bar("attacks") as progress:
        attacks = measure(model, [Site.open(folder) for folder in members], study, progress)
    add_attacks(model, attacks)
    require_controls(attacks)
    if as_json:
        print_json(attacks.model_dump(mode="json"))
    else:
        typer.echo(attacks_section(attacks))


def _tell(content: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json(content)
        return
    say(f"Run {content['run']} is complete. Candidate model: {content['release']}")
    say(f"See it in MLflow: {content['mlflow']}")
