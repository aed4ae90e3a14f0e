"""What the server writes to MLflow, and nobody else does: parameters, figures of each round, artifacts, the model.

SQLite and files under the server's folder by default; MLFLOW_TRACKING_URI names another tracking server. What is
written is listed here, so that nothing else gets there: no path of a site, no user, no count of a site's patients.

A study does not stop because MLflow does. What it cannot take now waits in the run's folder, in tracking.jsonl, and is
handed over before whatever comes next: the next round's figures, or the next run on this server.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.rounds.replies import EXAMPLES
from federation.rounds.reports import RoundReport
from federation.study import Study

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE = "candidate"
SPOOL = "tracking.jsonl"
# MLflow would fill these in with the user and the script of this machine.
_NEUTRAL_TAGS = {"mlflow.user": "fedthorax", "mlflow.source.name": "fedthorax", "mlflow.source.type": "PROJECT"}
# By itself MLflow tries for minutes, while the sites wait for the next round.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def tracking_uri(server_folder: Path) -> str:
    """Where a server's experiments are: its own SQLite file, unless MLFLOW_TRACKING_URI names a tracking server."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{server_folder / 'mlflow.db'}"


def hand_over_rest(server_folder: Path, say: Callable[[str], None]) -> None:
    """Hand over what earlier runs on this server could not."""
    for spool in sorted((server_folder / "runs").glob(f"*/{SPOOL}")):
        study = Study.model_validate_json((spool.parent / "study.json").read_text())
        Tracker(server_folder, study, spool.parent.name, say).hand_over()


class Tracker:
    """One run of a study in MLflow. A resumed study goes on in the same run.

    `say` is told when MLflow does not answer, and when it does again.
    """

    def __init__(self, server_folder: Path, study: Study, run_name: str, say: Callable[[str], None]) -> None:
        self.server_folder = server_folder
        self.study = study
        self.run_name = run_name
        self.say = say
        self.spool = server_folder / "runs" / run_name / SPOOL
        lines = self.spool.read_text().splitlines() if self.spool.exists() else []
        self._waiting: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._answers = not lines
        self._client: MlflowClient | None = None
        self._version: str | None = None

    def begin(self, tags: Mapping[str, str]) -> None:
        """Say that the run goes on, and with which study."""
        tables = self.study.model_dump(mode="json", exclude_none=True).items()
        params = {f"{table}.{key}": str(value) for table, values in tables for key, value in (values or {}).items()}
        self._record("begin", params=params, tags=dict(tags))

    def log_round(self, report: RoundReport, names: Mapping[int, str]) -> None:
        """Figures of one round: means over sites (named as such), each site's own, and what the round cost.

        The head that a site told of its ledger becomes the run's tag `ledger.<site>`.
        """
        figures = {f"mean_{name}": value for name, value in report.aggregated.items()}
        for node_id, metrics in report.metrics.items():
            site = names.get(node_id, "unknown")
            figures |= {f"{site}/{k}": v for k, v in metrics.items() if k != EXAMPLES}
        figures |= {
            "round_seconds": report.seconds,
            "round_sites": len(report.valid),
            "round_lost": float(report.lost),
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
        }
        heads = {names.get(node, "unknown"): head for node, head in report.ledger.items()}
        tags = {f"ledger.{site}": f"{head.lines} {head.head}" for site, head in heads.items()}
        self._record("figures", values=figures, step=report.round, at_ms=_now_ms(), tags=tags)

    def log_final(self, figures: Mapping[str, float], rounds: int) -> None:
        """Figures of the final model on the sites' test patients."""
        values = {f"final/{name}": value for name, value in figures.items()}
        self._record("figures", values=values, step=rounds, at_ms=_now_ms(), tags={})

    def add_artifacts(self, path: Path, name: str) -> None:
        """Copy a folder or a file into the run's artifacts."""
        self._record("artifacts", path=str(path), name=name)

    def register(self, release: Path, sha256: str) -> str | None:
        """Register a release as the study's newest model version, with the alias `candidate`.

        Returns its version; None if MLflow does not answer now.
        """
        self._version = None
        self._record("artifacts", path=str(release), name="model")
        self._record("version", sha256=sha256)
        return self._version

    def end(self, *, completed: bool) -> None:
        self._record("end", status="FINISHED" if completed else "FAILED")

    # --- handing over ------------------------------------------------------------------------------------------

    def _record(self, what: str, **details: Any) -> None:
        self._waiting.append({"what": what, **details})
        self.hand_over()

    def hand_over(self) -> None:
        """Give MLflow all that waits, in its order; what it does not take is kept in the run's folder."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        did_answer = self._answers
        try:
            while self._waiting:
                details = dict(self._waiting[0])
                self._deliver(details.pop("what"), details)
                self._waiting.pop(0)
            self._answers = True
        except (MlflowException, SQLAlchemyError, OSError) as error:  # requests' exceptions are OSErrors
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                raise  # ours to mend, and no better later
            self._answers, self._client = False, None
        if self._waiting:
            self.spool.write_text("".join(json.dumps(each) + "\n" for each in self._waiting))
        else:
            self.spool.unlink(missing_ok=True)
        if did_answer != self._answers:
            told = "answers again and has what waited" if self._answers else "does not answer; what it is to have waits"
            self.say(f"MLflow {told}")

    def _deliver(self, what: str, details: Mapping[str, Any]) -> None:
        client = self._client = self._client or self._connect()
        deliver: Mapping[str, Callable[..., None]] = {
            "begin": self._begin,
            "figures": self._figures,
            "artifacts": self._artifacts,
            "version": self._new_version,
            "end": self._end,
        }
        deliver[what](client, **details)

    def _connect(self) -> "MlflowClient":
        """A client, once the run is there: found by its name or made."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        uri = tracking_uri(self.server_folder)
        client = MlflowClient(uri, uri)
        name = self.study.study.name
        experiment = client.get_experiment_by_name(name)
        # A tracking server keeps artifacts where it likes; beside our own file they go into the same folder.
        place = (self.server_folder / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name, place)
        found = client.search_runs([experiment_id], f"tags.`mlflow.runName` = '{self.run_name}'", max_results=1)
        run = found[0] if found else client.create_run(experiment_id, run_name=self.run_name, tags=_NEUTRAL_TAGS)
        self.run_id = run.info.run_id
        return client

    def _begin(self, client: "MlflowClient", params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        client.update_run(self.run_id, status="RUNNING")
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
            metrics=[Metric(name, float(value), at_ms, step) for name, value in values.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def _artifacts(self, client: "MlflowClient", path: str, name: str) -> None:
        if Path(path).is_dir():
            client.log_artifacts(self.run_id, path, name)
        elif Path(path).exists():  # a checkpoint that waited may have been replaced
            client.log_artifact(self.run_id, path, name)

    def _new_version(self, client: "MlflowClient", sha256: str) -> None:
        from mlflow.exceptions import MlflowException

        name = self.study.study.name
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            name, f"runs:/{self.run_id}/model", run_id=self.run_id, tags={"sha256": sha256}
        )
        client.set_registered_model_alias(name, CANDIDATE, version.version)
        self._version = str(version.version)

    def _end(self, client: "MlflowClient", status: str) -> None:
        client.set_terminated(self.run_id, status)


def _now_ms() -> int:
    return int(time.time() * 1000)
