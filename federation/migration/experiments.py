"""Export a study's experiments to plain files, through MLflow's client only, so that any store works.

mlflow/<study>/experiment.json       runs with parameters, tags and every metric value; the registered model
mlflow/<study>/artifacts/<run id>/   the files of a run

MLflow gives a run a new id in each store. References to runs (nested runs, model versions) are replaced by the new id.
Not exported, because the client cannot do it: the registration time of a run's model, deleted runs, traces.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from federation.migration import reasons
from federation.migration.archive import Experiments, Progress
from federation.runs import reasons as runs_reasons
from models.refusal import Refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 1000
_AT_ONCE = 8
# A number that the databases of MLflow can hold.
_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
RUN_TAGS = ("mlflow.parentRunId", "mlflow.rootRunId")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Run(_Part):
    """One run. `figures`: for each metric its values (step, time in ms, value), ordered by step and time."""

    id: str = Field(pattern=r"^[0-9a-zA-Z-]{1,64}$")
    name: str
    status: Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
    start_ms: _Number
    end_ms: _Number | None
    parameters: dict[str, str]
    tags: dict[str, str]
    figures: dict[str, list[tuple[_Number, _Number, float]]]
    artifacts: dict[str, int]  # size in bytes by path


class Version(_Part):
    """One version of the registered model: the files in `path` of a run."""

    number: int = Field(ge=1, le=100_000)
    run: str
    path: str
    description: str
    tags: dict[str, str]


class RegisteredModel(_Part):
    """The registered model with the study's name."""

    description: str
    tags: dict[str, str]
    aliases: dict[str, int]
    versions: list[Version]


class Experiment(_Part):
    """All data of one study in MLflow."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    tags: dict[str, str]
    runs: list[Run]
    model: RegisteredModel | None

    @model_validator(mode="after")
    def versions_are_of_its_runs(self) -> Self:
        if self.model and not {version.run for version in self.model.versions} <= {run.id for run in self.runs}:
            raise ValueError("a version of the model comes from a run that is not in the experiment")
        return self

    def renamed(self, ids: Mapping[str, str]) -> Self:
        """Return the same experiment with other run ids, in an order that does not depend on the ids."""

        def tags(run: Run) -> dict[str, str]:
            return {k: ids.get(v, v) if k in RUN_TAGS else v for k, v in run.tags.items()}

        runs = [run.model_copy(update={"id": ids.get(run.id, run.id), "tags": tags(run)}) for run in self.runs]
        model = self.model and self.model.model_copy(
            update={"versions": [v.model_copy(update={"run": ids.get(v.run, v.run)}) for v in self.model.versions]}
        )
        return self.model_copy(update={"runs": sorted(runs, key=lambda run: run.id), "model": model})

    def text(self) -> str:
        """Return the experiment as JSON. pydantic's own JSON cannot represent NaN."""
        return json.dumps(self.model_dump(), indent=1, sort_keys=True)

    def amount(self) -> Experiments:
        return Experiments(
            runs=len(self.runs),
            parameters=sum(len(run.parameters) for run in self.runs),
            figures=sum(len(values) for run in self.runs for values in run.figures.values()),
            artifacts=sum(len(run.artifacts) for run in self.runs),
            versions=len(self.model.versions) if self.model else 0,
        )


def connect(uri: str) -> "MlflowClient":
    """Make a client that fails soon if MLflow is not responding; by default it retries for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


@contextmanager
def answering() -> Iterator[None]:
    """Turn errors of MLflow into a Refusal E_MLFLOW_SILENT."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        raise Refusal(runs_reasons.MLFLOW_SILENT, private=str(error)) from error


def read_experiment(client: "MlflowClient", name: str, progress: Progress | None = None) -> Experiment | None:
    """Read a study's data from MLflow; None if there is none. `progress` gets (runs read, all runs).

    Raises Refusal E_MLFLOW_SOURCE if the files of a version do not belong to a run of the study, and MLflow's errors.
    """
    found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        return None
    places = {}
    runs: list[Run] = []
    there = all_pages(lambda token: client.search_runs([found.experiment_id], max_results=PAGE, page_token=token))
    for run in there:
        places[run.info.run_id] = run.info.artifact_uri
        runs.append(
            Run(
                id=run.info.run_id,
                name=run.info.run_name or "",
                status=run.info.status,
                start_ms=run.info.start_time,
                end_ms=run.info.end_time,
                parameters=run.data.params,
                tags=run.data.tags,
                figures=_figures(client, run.info.run_id, sorted(run.data.metrics)),
                artifacts=dict(_files(client, run.info.run_id)),
            )
        )
        if progress:
            progress(len(runs), len(there))
    return Experiment(name=name, tags=found.tags, runs=runs, model=_model(client, name, places))


def save_experiment(client: "MlflowClient", experiment: Experiment, folder: Path) -> None:
    """Write an experiment to `folder`, with the artifacts of its runs. Raises MLflow's errors and OSError."""
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(experiment.text(), encoding="utf-8")
    for run in experiment.runs:
        if run.artifacts:
            (folder / "artifacts" / run.id).mkdir(parents=True)
            client.download_artifacts(run.id, "", str(folder / "artifacts" / run.id))


def all_pages(page: Callable[[str | None], Any]) -> list[Any]:
    """Collect all pages of a paged answer of MLflow."""
    found, token = [], None
    while True:
        answer = page(token)
        found += answer
        token = answer.token
        if not token:
            return found


def _figures(client: "MlflowClient", run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, int, float]]]:
    def history(name: str) -> list[tuple[int, int, float]]:
        return sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, name))

    with ThreadPoolExecutor(_AT_ONCE) as pool:  # each needs a request to MLflow, and a run may have thousands
        return dict(zip(names, pool.map(history, names), strict=True))


def _files(client: "MlflowClient", run_id: str, path: str | None = None) -> Iterator[tuple[str, int]]:
    for found in client.list_artifacts(run_id, path):
        if found.is_dir:
            yield from _files(client, run_id, found.path)
        else:
            yield found.path, found.file_size or 0


def _model(client: "MlflowClient", name: str, places: Mapping[str, str]) -> RegisteredModel | None:
    models = client.search_registered_models(f"name = '{name}'")
    if not models:
        return None
    model = client.get_registered_model(name)
    versions = all_pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
    return RegisteredModel(
        description=model.description or "",
        tags=model.tags,
        aliases={alias: int(number) for alias, number in model.aliases.items()},
        versions=[_version(each, places) for each in sorted(versions, key=lambda each: int(each.version))],
    )


def _version(version: Any, places: Mapping[str, str]) -> Version:
    """Convert a version. Its files are given as `runs:/<id>/<path>`, or as a place in that run's artifacts."""
    for run_id, place in places.items():
        for begin in (f"runs:/{run_id}/", f"{place.rstrip('/')}/"):
            if version.source.startswith(begin):
                return Version(
                    number=int(version.version),
                    run=run_id,
                    path=version.source.removeprefix(begin),
                    description=version.description or "",
                    tags=version.tags,
                )
    raise Refusal(reasons.MLFLOW_SOURCE, version=version.version, model=version.name, private=version.source)
