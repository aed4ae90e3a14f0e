"""Track a run in MLflow: parameters, metrics of each round, artifacts and the model.

Only the server writes to MLflow. The default store is SQLite and files in the server's folder; MLFLOW_TRACKING_URI
selects another tracking server. This module lists everything that is written, so that nothing else gets there: no
path of a site, no user, and in the figures no count of a site's patients, which the results have. docs/mlflow.md
explains how to set up a tracking server.

The runs of a group differ by seed or strategy. They are nested runs below one parent run with the group's name.

If MLflow is not available, the study continues. The data is queued in tracking.jsonl in the run's folder, and is
uploaded before the next data: the next round's metrics, or the next run on this server.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from federation.protocol.metric_allowlist import EXAMPLES
from federation.protocol.study_config import Study
from federation.runs import reasons
from federation.runs.model_signature import MLMODEL, mlmodel
from federation.runs.run_folder import read_note, read_study
from federation.runs.tracking_queue import SPOOL, TrackingQueue
from federation.strategy.round_report import RoundReport
from federation.system.process import without_proxy
from models.refusal import Reason, Refusal
from pipeline.preprocessing.preprocess_settings import METHODS
from pipeline.system.atomic_files import write_durably

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

CANDIDATE = "candidate"
WHERE = "mlflow.json"
GROUP = "fedthorax.group"  # tag: the group that a run belongs to, or that a parent run represents
_IS_GROUP = {"fedthorax.kind": "group"}
# Without these, MLflow records the user and the script of this machine.
_NEUTRAL_TAGS = {"mlflow.user": "fedthorax", "mlflow.source.name": "fedthorax", "mlflow.source.type": "PROJECT"}
# Otherwise MLflow's page opens in a mode for language models, without runs: the tag is for versions before 3.17.
_KIND = ("mlflow.experimentKind", "custom_model_development")
_PAGE_KIND = "workflowType=machine_learning"
_UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens
_HABITS = {
    # By default MLflow retries for minutes, while the sites wait for the next round.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


_DESCRIPTION = (
    "The final model of the run {run}, a candidate for a release (SHA-256 {sha256}...). Input: a chest CT, prepared as "
    "model.json of the artifacts says; output: logits of pcr_positive and severe, which model.json calibrates to "
    "probabilities. It is no MLflow flavour: open it with `fedthorax score`. card.md says for whom it was judged. "
    "Research only, no medical device."
)


class Where(BaseModel):
    """The content of mlflow.json: the store, without user and password, and the ids of experiment and run in it."""

    uri: str
    experiment: str = ""
    run: str = ""


def tracking_uri(server_folder: Path) -> str:
    """Return the URI of a server's experiments: MLFLOW_TRACKING_URI if it is set, or else its own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{server_folder / 'mlflow.db'}"


def artifact_place(server_folder: Path, uri: str) -> str | None:
    """Return the place of artifacts: beside the server's SQLite file; None if a tracking server decides."""
    return (server_folder / "mlartifacts").as_uri() if uri.startswith("sqlite") else None


def how_to_see(server_folder: Path, run_folder: Path) -> str:
    """Return how to open a run in MLflow's interface: an address, or the command that serves a database.

    The server's own record is used, because this process may be set to another tracking server.
    Raises Refusal E_RUN_FILES.
    """
    where = read_where(run_folder) or Where(uri=without_user(tracking_uri(server_folder.resolve())))
    page = f"/#/experiments/{where.experiment}/runs/{where.run}?{_PAGE_KIND}" if where.run else ""
    if urlsplit(where.uri).scheme in ("http", "https"):
        return where.uri.rstrip("/") + page
    mlflow = Path(sys.executable).with_name("mlflow")
    command = f"MLFLOW_DISABLE_TELEMETRY=true {mlflow} ui --backend-store-uri {where.uri}"
    return f"{command}, then {_UI}{page}" if page else command


def read_where(run_folder: Path) -> Where | None:
    """Read where a run's metrics are; None if MLflow has none yet. Raises Refusal E_RUN_FILES."""
    try:
        return Where.model_validate_json((run_folder / WHERE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise Refusal(reasons.RUN_FILES, file=WHERE, private=f"{run_folder}: {error}") from error


def without_user(uri: str) -> str:
    """Remove user and password from an address."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def hand_over_rest(server_folder: Path, say: Callable[[str], None]) -> None:
    """Upload the queued data of other runs on this server. What cannot be uploaded stays, and is said."""
    for spool in sorted((server_folder / "runs").glob(f"*/{SPOOL}")):
        run_folder = spool.parent
        try:
            study = read_study(run_folder)
        except Refusal as refusal:
            say(f"{run_folder.name}: {refusal}. {refusal.remedy}")
            continue
        Tracker(server_folder, study, run_folder.name, say).hand_over()


def attach(server_folder: Path, run_name: str, files: Sequence[Path], name: str, say: Callable[[str], None]) -> bool:
    """Copy files that were made after the run into `name` of its artifacts in MLflow; return whether it has them.

    Only if the run was recorded in the store of today's settings. A copied server folder, or one whose server uses
    MLFLOW_TRACKING_URI and this process does not, would else get a second record of the run.
    Raises Refusal E_RUN_FILES.
    """
    run_folder = server_folder / "runs" / run_name
    where = read_where(run_folder)
    if where is None or where.uri != without_user(tracking_uri(server_folder)):
        return False
    study = Study.model_validate_json((run_folder / "study.json").read_text())
    tracker = Tracker(server_folder, study, run_name, say)
    for file in files:
        tracker.add_artifacts(file.resolve(), name)
    return not tracker.has_queued


class Tracker:
    """One run of a study in MLflow. A resumed study continues in the same run.

    `say` is called when MLflow stops responding, and when it responds again. `clock`: seconds since 1970, UTC.
    """

    def __init__(
        self,
        server_folder: Path,
        study: Study,
        run_name: str,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.server_folder = server_folder
        self.study = study
        self.run_name = run_name
        self.say = say
        self._clock = clock
        self._queue = TrackingQueue(server_folder / "runs" / run_name)
        self._trouble: Reason | None = reasons.TRACKING_SILENT if self.has_queued else None
        self._client: MlflowClient | None = None
        self._version: str | None = None

    @property
    def has_queued(self) -> bool:
        """Whether data of this run still waits for MLflow."""
        return self._queue.file.exists()

    def begin(self, tags: Mapping[str, str]) -> None:
        """Mark the run as running, and record the study's parameters."""
        self._record("begin", params=params(self.study), tags=dict(tags))

    def log_round(self, report: RoundReport, names: Mapping[int, str]) -> None:
        """Log one round: means over sites (`mean_...`), each site's own metrics, duration and traffic.

        The ledger head that a site reported becomes the run's tag `ledger.<site>`.
        """
        figures = {f"mean_{name}": value for name, value in report.aggregated.items()}
        for node_id, metrics in report.metrics.items():
            site = names.get(node_id, "unknown")
            figures |= {f"{site}/{k}": v for k, v in metrics.items() if k != EXAMPLES}
        figures |= {
            "round_seconds": report.seconds,
            "round_sites": len(report.valid),
            "round_lost": float(report.lost),
            **{f"votes_{answer}": float(count) for answer, count in report.votes.items()},
            **({"rounds_undone": float(len(report.undone))} if report.undone else {}),
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
        }
        heads = {names.get(node, "unknown"): head for node, head in report.ledger.items()}
        tags = {f"ledger.{site}": f"{head.lines} {head.head}" for site, head in heads.items()}
        self._record("figures", values=figures, step=report.round, at_ms=self._now_ms(), tags=tags)

    def log_final(self, figures: Mapping[str, float]) -> None:
        """Log the final model's metrics on the sites' test patients.

        At step 0: MLflow shows a bar with the value. At a later step it would draw a curve of a single point.
        """
        values = {f"final/{name}": value for name, value in figures.items()}
        self._record("figures", values=values, step=0, at_ms=self._now_ms(), tags={})

    def add_artifacts(self, path: Path, name: str) -> None:
        """Copy a folder or a file into the run's artifacts."""
        self._record("artifacts", path=self._portable(path), name=name)

    def register(self, release: Path, sha256: str) -> str | None:
        """Register a release as the study's newest model version, with the alias `candidate`.

        Returns its version; None if MLflow is not responding.
        """
        self._version = None
        self._record("version", path=self._portable(release), sha256=sha256)
        return self._version

    def end(self, *, completed: bool) -> None:
        self._record("end", status="FINISHED" if completed else "FAILED")

    # --- uploading ---------------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _portable(self, path: Path) -> str:
        """Return a path for the queue: relative to the server's folder, which may be moved before it is uploaded."""
        return str(path.relative_to(self.server_folder) if path.is_relative_to(self.server_folder) else path)

    def _record(self, what: str, **details: Any) -> None:
        self.hand_over({"what": what, **details})

    def hand_over(self, *new: dict[str, Any]) -> None:
        """Upload the queued data in order, then `new`. Data that MLflow does not accept stays in the run's folder."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        before, self._trouble = self._trouble, None
        try:
            self._queue.deliver(list(new), self._deliver)
        except (MlflowException, SQLAlchemyError, OSError, Refusal) as error:  # requests' exceptions are OSErrors
            trouble = error if isinstance(error, Refusal) else Refusal(_trouble(error), run=self.run_name)
            log.warning("MLflow did not take the data of the run %s: %s", self.run_name, error)
            self._trouble, self._client = trouble.reason, None
            if trouble.reason != before:
                self._say(trouble)
        if self._queue.has_lost:
            self._queue.has_lost = False
            self._say(Refusal(reasons.TRACKING_DAMAGED, run=self.run_name))
        if before and not self._trouble:
            self.say("MLflow responds again; the queued data is uploaded")

    def _say(self, refusal: Refusal) -> None:
        self.say(f"{refusal}. {refusal.remedy}")

    def _deliver(self, entry: Mapping[str, Any]) -> None:
        client = self._client = self._client or self._connect()
        deliver: Mapping[str, Callable[..., None]] = {
            "begin": self._begin,
            "figures": self._figures,
            "artifacts": self._artifacts,
            "version": self._new_version,
            "end": self._end,
        }
        details = {name: value for name, value in entry.items() if name != "what"}
        deliver[entry["what"]](client, **details)

    def _connect(self) -> "MlflowClient":
        """Return a client, after the run was found by its name or created."""
        for name, value in _HABITS.items():
            os.environ.setdefault(name, value)
        os.environ["no_proxy"] = without_proxy()  # MLflow has no other way to reach this machine without the proxy
        from mlflow import MlflowClient

        uri = tracking_uri(self.server_folder)
        client = MlflowClient(uri, uri)
        name = self.study.study.name
        experiment = client.get_experiment_by_name(name)
        place = artifact_place(self.server_folder, uri)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name, place)
        client.set_experiment_tag(experiment_id, *_KIND)
        group, tags = read_note(self._queue.file.parent).group, {}
        self._parent_id = ""
        if group:
            self._parent_id = self._run(client, experiment_id, group, {GROUP: group, **_IS_GROUP})
            tags = {GROUP: group, "mlflow.parentRunId": self._parent_id}
        self.run_id = self._run(client, experiment_id, self.run_name, tags)
        where = Where(uri=without_user(uri), experiment=experiment_id, run=self.run_id)
        write_durably(self._queue.file.with_name(WHERE), where.model_dump_json().encode())
        return client

    def _run(self, client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Return the id of the run with this name; create the run if it does not exist.

        Raises Refusal W_TRACKING_REFUSED if somebody deleted it: a second run would lack what the first one has.
        """
        from mlflow.entities import LifecycleStage, ViewType

        found = client.search_runs([experiment_id], f"tags.`mlflow.runName` = '{name}'", run_view_type=ViewType.ALL)
        if not found:
            run = client.create_run(experiment_id, run_name=name, tags={**_NEUTRAL_TAGS, **tags})
            return str(run.info.run_id)
        active = [run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
        if not active:
            raise Refusal(reasons.TRACKING_REFUSED, run=self.run_name)
        return str(active[0].info.run_id)

    def _begin(self, client: "MlflowClient", params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        for run_id in filter(None, (self.run_id, self._parent_id)):
            client.update_run(run_id, status="RUNNING")
        client.log_batch(
            self.run_id,
            params=[Param(name, value) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def _figures(
        self, client: "MlflowClient", values: Mapping[str, float], step: int, at_ms: int, tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric, RunTag

        client.log_batch(
            self.run_id,
            # Our metric names mark a subgroup with @, which MLflow does not allow.
            metrics=[Metric(name.replace("@", "/"), float(value), at_ms, step) for name, value in values.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def _artifacts(self, client: "MlflowClient", path: str, name: str) -> None:
        place = self.server_folder / path
        if place.is_dir():
            client.log_artifacts(self.run_id, str(place), name)
        elif place.exists():  # a queued checkpoint may have been replaced since
            client.log_artifact(self.run_id, str(place), name)

    def _new_version(self, client: "MlflowClient", sha256: str, path: str | None = None) -> None:
        """Register the release in the folder `path`, once. Earlier versions queued its files without a path here.

        Raises Refusal W_TRACKING_NO_MODEL if the folder does not exist.
        """
        if path is not None:
            if not (self.server_folder / path).is_dir():
                raise Refusal(reasons.TRACKING_NO_MODEL, run=self.run_name)
            self._artifacts(client, path, "model")
        # Not in the candidate's own folder, whose files the release signs.
        client.log_text(self.run_id, mlmodel(self.run_id, self.study.preprocessing), f"model/{MLMODEL}")
        name = self.study.study.name
        _create_registered_model(client, name)
        version = self._registered(client, sha256) or client.create_model_version(
            name,
            f"runs:/{self.run_id}/model",
            run_id=self.run_id,
            tags={"sha256": sha256},
            description=_DESCRIPTION.format(run=self.run_name, sha256=sha256[:12]),
            await_creation_for=0,
        )
        client.set_registered_model_alias(name, CANDIDATE, version.version)
        self._version = str(version.version)

    def _registered(self, client: "MlflowClient", sha256: str) -> "ModelVersion | None":
        """Return this run's version with these weights, if a process that was killed then had registered it."""
        found = client.search_model_versions(f"name = '{self.study.study.name}' and run_id = '{self.run_id}'")
        return next((version for version in found if version.tags.get("sha256") == sha256), None)

    def _end(self, client: "MlflowClient", status: str) -> None:
        client.set_terminated(self.run_id, status)
        if self._parent_id:  # the last run of a group is not known in advance; the next run sets it to running again
            client.set_terminated(self._parent_id, "FINISHED")


def params(study: Study) -> dict[str, str]:
    """Flatten a study's settings for MLflow: `table.key`, and `strategy.options.name` for each option.

    `preprocessing.method` is the word of the study's file, if there is one.
    """
    found: dict[str, str] = {}
    for table, values in study.model_dump(mode="json", exclude_none=True, exclude={"study": {"seeds"}}).items():
        for key, value in values.items():
            if isinstance(value, dict):
                found |= {f"{table}.{key}.{part}": str(each) for part, each in value.items()}
            else:
                found[f"{table}.{key}"] = str(value)
    method = study.preprocessing.method
    return found | {"preprocessing.method": next((word for word, of in METHODS.items() if of == method), str(method))}


def _create_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _trouble(error: Exception) -> Reason:
    """Return the reason why MLflow did not accept data."""
    code = getattr(error, "error_code", "")
    if code == "INVALID_PARAMETER_VALUE":  # also: the run or the experiment was deleted
        return reasons.TRACKING_REFUSED
    return reasons.TRACKING_ACCESS if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") else reasons.TRACKING_SILENT
