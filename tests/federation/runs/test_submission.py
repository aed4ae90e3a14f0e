"""Tests of building the app and of submitting and watching a run, without a running server."""

import io
import os
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from flwr.proto.control_pb2 import ListRunsResponse, StartRunRequest, StartRunResponse, StreamLogsResponse
from flwr.proto.run_pb2 import Run, RunStatus

from federation.runs import submission
from federation.runs.submission import build_app, simulation_server, status, submit, wait
from federation.server.start import init_server
from federation.system.process import free_port
from models.refusal import Refusal


class FakeControl:
    """A stand-in for the calls of Flower's Control API that a run needs."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.request = StartRunRequest()

    def StartRun(self, request: StartRunRequest) -> StartRunResponse:  # noqa: N802
        self.request = request
        return StartRunResponse(run_id=7)

    def StreamLogs(self, request: object) -> Iterator[StreamLogsResponse]:  # noqa: N802
        return (StreamLogsResponse(log_output=piece) for piece in self.pieces)

    def ListRuns(self, request: object) -> ListRunsResponse:  # noqa: N802
        return ListRunsResponse(run_dict={7: Run(status=RunStatus(status="finished", sub_status="completed"))})


@pytest.fixture
def fake_control(monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    fake = FakeControl("one\ntw", "o\n", "three")

    @contextmanager
    def control(folder: Path) -> Iterator[FakeControl]:
        yield fake

    monkeypatch.setattr(submission, "control", control)
    return fake


@pytest.fixture
def simulation(tmp_path: Path) -> Path:
    (tmp_path / "server.toml").write_text(f"port = {free_port()}\nsimulated_sites = 3\n")
    return tmp_path


def test_app_hash_does_not_depend_on_its_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, sha256 = build_app()
    copy = shutil.copytree(submission.APP, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "fedthorax_app" / "__pycache__").mkdir()
    (copy / "fedthorax_app" / "__pycache__" / "client_app.cpython-311.pyc").write_bytes(b"compiled")
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    monkeypatch.setattr(submission, "APP", copy)
    assert build_app() == (content, sha256)
    (copy / "fedthorax_app" / "client_app.py").write_text("import os\n")
    assert build_app()[1] != sha256


def test_app_is_a_small_shim_without_dependencies() -> None:
    with zipfile.ZipFile(io.BytesIO(build_app()[0])) as app:
        files = {name: app.read(name).decode() for name in app.namelist() if not name.startswith(".info/")}
    config = tomllib.loads(files.pop("pyproject.toml"))
    assert set(files) == {f"fedthorax_app/{name}.py" for name in ("__init__", "client_app", "server_app")}
    assert sum(len(text) for text in files.values()) < 500
    assert config["project"]["dependencies"] == []
    assert config["tool"]["flwr"]["app"]["config"] == {"study": "", "run": ""}


def test_real_run_is_submitted_to_the_enrolled_nodes(tmp_path: Path, fake_control: FakeControl) -> None:
    init_server(tmp_path, port=free_port())
    study = '{"name": "a \'quoted\' \\"study\\"", "rounds": 2}\n'
    assert submit(tmp_path, {"study": study}) == 7
    assert fake_control.request.override_config["study"].string == study
    assert fake_control.request.fab.hash_str == build_app()[1]
    assert not fake_control.request.HasField("override_federation_config")


def test_simulation_has_one_node_per_site(simulation: Path, fake_control: FakeControl) -> None:
    submit(simulation, {})
    config = fake_control.request.override_federation_config
    assert config.num_supernodes == 3
    assert 1 <= config.init_args_num_cpus <= 3


def test_each_log_line_is_given_once_however_it_is_split(tmp_path: Path, fake_control: FakeControl) -> None:
    lines: list[str] = []
    assert wait(tmp_path, 7, lines.append) == "finished:completed"
    assert lines == ["one", "two", "three"]


def test_simulation_without_existing_sites_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / f"a{os.pathsep}b"
    odd.mkdir()
    for sites in ([], [tmp_path / "absent"], [odd]):
        with pytest.raises(Refusal, match="E_NO_SITES"), simulation_server(tmp_path / "server", sites):
            pass
    assert not (tmp_path / "server").exists()


def test_simulation_refuses_the_folder_of_another_server(tmp_path: Path, simulation: Path) -> None:
    init_server(tmp_path / "real", port=free_port())
    before = (tmp_path / "real" / "server.toml").read_text()
    with pytest.raises(Refusal, match="E_EXISTS"), simulation_server(tmp_path / "real", [tmp_path]):
        pass
    assert (tmp_path / "real" / "server.toml").read_text() == before
    # The simulation server is still running.
    with answering(simulation, 200, ""), pytest.raises(Refusal, match="E_PORT_IN_USE"):
        simulation_server(simulation, [tmp_path]).__enter__()


def test_finished_simulation_leaves_its_folder_reusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    def start_superlink(folder: Path, **options: Any) -> nullcontext[None]:
        started.append(options)
        return nullcontext()

    monkeypatch.setattr(submission, "start_superlink", start_superlink)
    sites = [tmp_path / "a", tmp_path / "b"]
    for site in sites:
        site.mkdir()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), simulation_server(tmp_path / "server", sites):
            assert submission.read_server_config(tmp_path / "server").simulated_sites == 2
            raise KeyboardInterrupt
        assert not (tmp_path / "server" / "server.toml").exists()
    assert started[0]["FEDTHORAX_SIMULATED_SITES"] == f"{sites[0]}{os.pathsep}{sites[1]}"
    assert started[0]["RAY_AUTH_MODE"] == "token"
    assert started[0]["RAY_AUTH_TOKEN"] != started[1]["RAY_AUTH_TOKEN"]


@contextmanager
def answering(simulation: Path, code: int, body: str) -> Iterator[None]:
    """An HTTP server in a thread that always gives the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", submission.read_server_config(simulation).port), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (404, '{"code": 16, "detail": "Run ID not found."}', "E_RUN_UNKNOWN: "),
        (
            400,
            '{"code": 15, "detail": "Invalid run configuration."}',
            "E_CONTROL_FAILED: .* Invalid run configuration",
        ),
        (502, "<html>", "E_CONTROL_FAILED: .* HTTP 502"),
    ],
)
def test_error_of_the_control_api_becomes_a_refusal(simulation: Path, code: int, body: str, expected: str) -> None:
    with answering(simulation, code, body), pytest.raises(Refusal, match=expected):
        status(simulation, 7)


def test_stopped_server_is_reported_as_unreachable(simulation: Path) -> None:
    with pytest.raises(Refusal, match="E_SERVER_UNREACHABLE"):
        status(simulation, 7)
