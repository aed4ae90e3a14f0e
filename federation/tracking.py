"""What the server writes to MLflow, and nobody else does: parameters, figures of each round, artifacts, the model.

SQLite and files under the server's folder by default; MLFLOW_TRACKING_URI names another tracking server. What is
written is listed here, so that nothing else gets there: no path of a site, no user, no count of a site's patients.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from federation.replies import EXAMPLES
from federation.strategy import RoundReport
from federation.study import Study

CANDIDATE = "candidate"
# MLflow would fill these in with the user and the script of this machine.
_NEUTRAL_TAGS = {"mlflow.user": "fedthorax", "mlflow.source.name": "fedthorax", "mlflow.source.type": "PROJECT"}


def tracking_uri(server_folder: Path) -> str:
    """Where a server's experiments are: its own SQLite file, unless MLFLOW_TRACKING_URI names a tracking server."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{server_folder / 'mlflow.db'}"


class Tracker:
    """One run of a study in MLflow. A resumed study goes on in the same run."""

    def __init__(self, server_folder: Path, study: Study, run_name: str, tags: Mapping[str, str]) -> None:
        from mlflow import MlflowClient

        uri = tracking_uri(server_folder)
        self.client = MlflowClient(uri, uri)
        self.study = study
        name = study.study.name
        experiment = self.client.get_experiment_by_name(name)
        # A tracking server keeps artifacts where it likes; beside our own file they go into the same folder.
        place = (server_folder / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name, place)
        found = self.client.search_runs([experiment_id], f"tags.`mlflow.runName` = '{run_name}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        run = self.client.create_run(experiment_id, run_name=run_name, tags={**_NEUTRAL_TAGS, **tags})
        self.run_id = run.info.run_id
        for table, values in study.model_dump(mode="json").items():
            for key, value in values.items():
                self.client.log_param(self.run_id, f"{table}.{key}", value)

    def log_round(self, report: RoundReport, names: Mapping[int, str]) -> None:
        """Figures of one round: means over sites (named as such), each site's own, and what the round cost."""
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
        self._log(figures, report.round)

    def log_final(self, figures: Mapping[str, float], rounds: int) -> None:
        """Figures of the final model on the sites' test patients."""
        self._log({f"final/{name}": value for name, value in figures.items()}, rounds)

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def add_artifacts(self, folder: Path, name: str) -> None:
        """Copy a folder or a file into the run's artifacts."""
        if folder.is_dir():
            self.client.log_artifacts(self.run_id, str(folder), name)
        else:
            self.client.log_artifact(self.run_id, str(folder), name)

    def register(self, release: Path, sha256: str) -> str:
        """Register a release as the study's newest model version, with the alias `candidate`; its version."""
        from mlflow.exceptions import MlflowException

        self.add_artifacts(release, "model")
        name = self.study.study.name
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(
            name, f"runs:/{self.run_id}/model", run_id=self.run_id, tags={"sha256": sha256}
        )
        self.client.set_registered_model_alias(name, CANDIDATE, version.version)
        return str(version.version)

    def end(self, *, completed: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if completed else "FAILED")
