"""Import a study's experiments from plain files into an MLflow that does not contain them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from federation.migration import reasons
from federation.migration.archive import Progress
from federation.migration.experiments import (
    PAGE,
    RUN_TAGS,
    Experiment,
    RegisteredModel,
    Run,
    all_pages,
    read_experiment,
)
from models.refusal import Refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FIGURES, _PARAMETERS = 1000, 100  # maximum that MLflow accepts in one request
_ENDS = ("FINISHED", "FAILED", "KILLED")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Restored:
    """The new ids in MLflow: of experiments by name, of runs by their old id."""

    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)


def load_experiments(folder: Path) -> list[Experiment]:
    """Read the experiments that `save_experiment` wrote to `folder`. Raises Refusal E_ARCHIVE_DAMAGED."""
    try:
        found = [Experiment.model_validate_json(file.read_bytes()) for file in sorted(folder.glob("*/experiment.json"))]
    except (ValueError, ValidationError) as error:
        raise Refusal(reasons.ARCHIVE_DAMAGED, private=str(error)) from error
    for experiment in found:
        for run in experiment.runs:
            below = folder / experiment.name / "artifacts" / run.id
            files = {str(f.relative_to(below)): f.stat().st_size for f in below.rglob("*") if f.is_file()}
            if files != run.artifacts:
                raise Refusal(reasons.ARCHIVE_DAMAGED, private=f"artifacts of {run.name}")
    return found


def is_there(client: "MlflowClient", experiment: Experiment) -> bool:
    """Whether this MLflow already contains these runs, because both servers share it.

    Raises Refusal E_MLFLOW_TAKEN if another experiment or model has the study's name there.
    """
    found = client.get_experiment_by_name(experiment.name)
    if found is not None and found.lifecycle_stage == "active":
        there = all_pages(lambda token: client.search_runs([found.experiment_id], max_results=PAGE, page_token=token))
        if {run.id for run in experiment.runs} <= {run.info.run_id for run in there}:
            return True
    if found is not None or client.search_registered_models(f"name = '{experiment.name}'"):
        raise Refusal(reasons.MLFLOW_TAKEN, name=experiment.name)
    return False


@contextmanager
def restoring(
    client: "MlflowClient",
    experiments: Sequence[Experiment],
    folder: Path,
    place: str | None,
    progress: Progress | None = None,
) -> Iterator[Restored]:
    """Write experiments to MLflow, which must not contain their names; remove them if the block fails.

    `folder`: the folder that `save_experiment` wrote; `place`: the place of artifacts, or MLflow's default;
    `progress` gets (runs written, all runs). Raises Refusal E_MOVE_LOST if MLflow returns other data than was written,
    and MLflow's errors.
    """
    made = Restored()
    try:
        for experiment in experiments:
            made.experiments[experiment.name] = client.create_experiment(experiment.name, place, experiment.tags)
            for run in experiment.runs:
                made.runs[run.id] = _restore_run(client, made.experiments[experiment.name], run)
                if run.artifacts:
                    client.log_artifacts(made.runs[run.id], str(folder / experiment.name / "artifacts" / run.id))
                if progress:
                    progress(len(made.runs), sum(len(each.runs) for each in experiments))
            _link_runs(client, experiment, made.runs)
            if experiment.model:
                _restore_model(client, experiment.name, experiment.model, made.runs)
            back = read_experiment(client, experiment.name)
            if back is None or back.renamed({}).text() != experiment.renamed(made.runs).text():
                raise Refusal(reasons.MOVE_LOST, what="MLflow's experiments")
        yield made
    except BaseException:
        for name, number in made.experiments.items():
            _take_out(client, name, number)
        raise


def _restore_run(client: "MlflowClient", experiment_id: str, run: Run) -> str:
    from mlflow.entities import Metric, Param

    tags = {name: value for name, value in run.tags.items() if name not in RUN_TAGS}
    new = client.create_run(experiment_id, start_time=run.start_ms, tags=tags, run_name=run.name).info.run_id
    params = [Param(name, value) for name, value in run.parameters.items()]
    for some in _parts(params, _PARAMETERS):
        client.log_batch(new, params=some)
    values = [Metric(name, value, ms, step) for name, history in run.figures.items() for step, ms, value in history]
    for part in _parts(values, _FIGURES):
        client.log_batch(new, metrics=part)
    if run.status in _ENDS:
        client.set_terminated(new, run.status, run.end_ms)
    else:
        client.update_run(new, run.status)
    return new


def _link_runs(client: "MlflowClient", experiment: Experiment, ids: Mapping[str, str]) -> None:
    for run in experiment.runs:
        for tag in RUN_TAGS:
            if tag in run.tags:
                client.set_tag(ids[run.id], tag, ids.get(run.tags[tag], run.tags[tag]))


def _restore_model(client: "MlflowClient", name: str, model: RegisteredModel, ids: Mapping[str, str]) -> None:
    """Create the model and its versions with their old numbers. Numbers of deleted versions stay unused."""
    client.create_registered_model(name, model.tags, model.description)
    number = 0
    for version in model.versions:
        source = f"runs:/{ids[version.run]}/{version.path}"
        while number < version.number:
            made = client.create_model_version(
                name, source, ids[version.run], tags=version.tags, description=version.description
            )
            number = int(made.version)
            if number < version.number:
                client.delete_model_version(name, made.version)
    for alias, target in model.aliases.items():
        client.set_registered_model_alias(name, alias, str(target))


def _take_out(client: "MlflowClient", name: str, experiment_id: str) -> None:
    """Remove experiments. A deleted experiment keeps its name in MLflow, so it is renamed first."""
    with suppress(Exception):
        client.delete_registered_model(name)
    with suppress(Exception):
        client.rename_experiment(experiment_id, f"{name} (import broken off, {experiment_id})")
        client.delete_experiment(experiment_id)


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
