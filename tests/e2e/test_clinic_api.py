"""The clinic API with a real service and real requests, together with the `clinic` commands.

All scans are synthetic, and the models' weights are random.
"""

import json
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from federation.system.process import free_port
from federation.system.reaper import descendants, read_parents
from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import save_release
from pipeline.clinic.settings import SETTINGS
from pipeline.clinic.web.auth import Access, Tokens
from tests.e2e.conftest import Command, ok, run_command
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import write_series
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.scoring.test_score import SPACING_MM, chest

pytestmark = pytest.mark.e2e

SECONDS = 400  # timeout of every wait
AT_ONCE, WAITING_SCANS = 100, 20
SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)


class Service:
    """A running service, its folder and its clients."""

    def __init__(self, folder: Path, command: Command, port: int) -> None:
        self.folder, self.command, self.port = folder, command, port
        self.address = f"http://127.0.0.1:{port}"

    def client(self, name: str, role: Access) -> httpx.Client:
        headers = {"Authorization": f"Bearer {Tokens(self.folder).make(name, role, by='test')}"}
        return httpx.Client(base_url=f"{self.address}/api/v1", headers=headers, timeout=SECONDS)

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not what():
            assert self.command.process.poll() is None, self.command.text()
            assert time.monotonic() < deadline, self.command.text()
            time.sleep(0.1)

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.address}/health/ready").status_code == 200
        return False


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("releases")
    for number, name in enumerate(("first", "second")):
        save_release(folder / name, build_network(SMALL, seed=number), description(study=name, network=SMALL))
    return folder / "first", folder / "second"


@pytest.fixture(scope="module")
def service(
    releases: tuple[Path, Path], start: Callable[..., Command], tmp_path_factory: pytest.TempPathFactory
) -> Service:
    """A service with the first model, started for the first time."""
    folder, port = tmp_path_factory.mktemp("clinic"), free_port()
    (folder / SETTINGS).write_text(f"[limits]\nwaiting_scans = {WAITING_SCANS}\nrequests_per_minute = 100000\n")
    running = Service(folder, start("serve", folder, "--model", releases[0], "--port", str(port)), port)
    running.wait_for(running.is_ready)
    return running


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, tuple[str, bytes]]]:
    """A synthetic chest as the files of an upload form."""
    folder = tmp_path_factory.mktemp("scan")
    write_series(folder, chest(), spacing_mm=SPACING_MM)
    return [("files", (f"Doe^Jane\u202e{path.name}", path.read_bytes())) for path in sorted(folder.iterdir())]


def scored(service: Service, client: httpx.Client, scan: list[tuple[str, tuple[str, bytes]]]) -> dict[str, object]:
    """Send a scan and return its answer."""
    sent = client.post("/scans", files=scan)
    assert sent.status_code == 202, sent.text
    service.wait_for(lambda: client.get(f"/jobs/{sent.json()['id']}").json()["state"] not in ("waiting", "working"))
    job = client.get(f"/jobs/{sent.json()['id']}").json()
    assert job["state"] == "answered", job
    content: dict[str, object] = client.get(f"/answers/{job['answer_id']}").json()
    return content


def test_token_of_the_first_start_signs_in_once(service: Service) -> None:
    secret = service.command.wait_for(r"#token=\S+", seconds=SECONDS).removeprefix("#token=")
    with httpx.Client(base_url=service.address, timeout=SECONDS) as browser:
        assert browser.post("/api/v1/session", json={"token": secret}).json()["role"] == "admin"
        assert browser.get("/api/v1/models").json()["models"][0]["role"] == "live"
    again = httpx.post(f"{service.address}/api/v1/session", json={"token": secret}, timeout=SECONDS)
    assert (again.status_code, again.json()["code"]) == (401, "E_TOKEN")


def test_model_is_promoted_only_after_shadow_mode(
    service: Service, releases: tuple[Path, Path], scan: list[tuple[str, tuple[str, bytes]]]
) -> None:
    client = service.client("night desk", "score")
    before = scored(service, client, scan)
    assert before["model"]["name"] == "first"  # type: ignore[index]

    second = json.loads(ok("clinic", "add-model", service.folder, releases[1], "--json"))["sha256"]
    hasty = run_command("clinic", "promote", service.folder, second[:12])
    assert hasty.returncode == 1 and "E_NOT_SHADOWED" in hasty.stderr
    ok("clinic", "shadow", service.folder, second[:12])
    assert scored(service, client, scan)["model"]["name"] == "first"  # type: ignore[index]

    def beside() -> dict[str, object] | None:
        told = {model["sha256"]: model for model in client.get("/models").json()["models"]}
        compared: dict[str, object] | None = told[second]["beside_live"]
        return compared

    service.wait_for(beside)  # the shadow model answers after the live model
    assert beside()["scans"] == 1  # type: ignore[index]
    ok("clinic", "promote", service.folder, second[:12])
    assert scored(service, client, scan)["model"]["name"] == "second"  # type: ignore[index]
    assert client.get(f"/answers/{before['id']}").json() == before

    done = [record["action"] for record in json.loads(ok("clinic", "audit", service.folder, "--json"))]
    assert Counter(done)["answer"] == 3
    assert done.count("shadow_answer") == 1 and done.count("promote") == 2


def test_revoked_token_is_refused_at_once(service: Service) -> None:
    secret = ok("clinic", "token", service.folder, "somebody", "--role", "read").strip()

    def ask() -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.get(f"{service.address}/api/v1/jobs", headers=headers, timeout=SECONDS)

    assert ask().status_code == 200
    ok("clinic", "revoke", service.folder, "somebody")
    assert ask().json()["code"] == "E_TOKEN"


def test_100_parallel_uploads_are_queued_or_get_429(service: Service) -> None:
    client = service.client("busy", "score")
    before = {job["id"] for job in client.get("/jobs").json()["jobs"]}
    children = descendants(service.command.process.pid, read_parents())
    for worker in children:
        os.kill(worker, signal.SIGSTOP)  # nothing leaves the queue during the uploads
    try:
        together = threading.Barrier(AT_ONCE, timeout=SECONDS)

        def body() -> Iterator[bytes]:
            yield b"no zip"
            together.wait()  # until every upload has begun
            yield bytes(1_000_000)

        def send(_: int) -> httpx.Response:
            return client.post("/scans", content=body(), headers={"Content-Type": "application/zip"})

        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(send, range(AT_ONCE)))
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses.keys() == {202, 429}
        assert 1 <= statuses[202] <= WAITING_SCANS
        for answer in answers:
            if answer.status_code == 429:
                assert answer.json()["code"] == "E_QUEUE_FULL"
                assert int(answer.headers["Retry-After"]) > 0
    finally:
        for worker in children:
            os.kill(worker, signal.SIGCONT)
    queued = {answer.json()["id"] for answer in answers if answer.status_code == 202}
    service.wait_for(lambda: not client.get("/jobs", params={"state": "waiting"}).json()["jobs"])
    service.wait_for(lambda: not client.get("/jobs", params={"state": "working"}).json()["jobs"])
    jobs = {job["id"]: job for job in client.get("/jobs", params={"limit": 500}).json()["jobs"]}
    assert jobs.keys() == before | queued
    assert {jobs[each]["code"] for each in queued} == {"E_ARCHIVE_BROKEN"}
    service.wait_for(lambda: not list((service.folder / "scans").iterdir()))  # removed after the code is stored


def test_peak_memory_of_the_server_is_below_300_mb(service: Service) -> None:
    """Peak memory after all tests above. The server never imports PyTorch, which alone takes more."""
    process = Path(f"/proc/{service.command.process.pid}")
    assert "libtorch" not in (process / "maps").read_text()
    peak_kb = int(re.findall(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())[0])
    assert peak_kb < 300_000


def test_interrupted_upload_leaves_no_files_or_jobs(service: Service) -> None:
    client = service.client("cut off", "score")
    scans = service.folder / "scans"
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = [
            *("POST /api/v1/scans HTTP/1.1", f"Host: 127.0.0.1:{service.port}", "Content-Type: application/zip"),
            *(f"Authorization: {client.headers['authorization']}", "Content-Length: 9000000", "", ""),
        ]
        connection.sendall("\r\n".join(head).encode() + bytes(1_000_000))
        service.wait_for(lambda: any(path.stat().st_size for path in scans.rglob("*.zip")))
    service.wait_for(lambda: not list(scans.iterdir()))
    assert client.get("/jobs", params={"state": "waiting"}).json() == {"jobs": []}


def test_logs_contain_no_tokens_or_patient_data(service: Service) -> None:
    logs = "".join(path.read_text() for path in (service.folder / "logs").iterdir())
    assert "fct_" not in logs
    assert not any(word in logs for word in ("Doe", "Jane", "patients/"))
    assert "E_QUEUE_FULL" in logs


def test_service_uses_tls_with_the_hospitals_certificate(start: Callable[..., Command], tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    certificate, key = authority.sign("page")
    folder, port = tmp_path / "clinic", free_port()
    folder.mkdir()
    (folder / SETTINGS).write_text(f'[server]\nport = {port}\ncertificate = "{certificate}"\nkey = "{key}"\n')
    command = start("serve", folder)
    secret = command.wait_for(rf"https://127.0.0.1:{port}/#token=\S+", seconds=SECONDS).partition("=")[2]
    trust = ssl.create_default_context(cafile=authority.path)
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, timeout=SECONDS) as browser:
        page = browser.get("/")
        assert "Not a medical device" in page.text
        assert "max-age" in page.headers["strict-transport-security"]
        signed_in = browser.post("/api/v1/session", json={"token": secret})
        assert signed_in.headers["set-cookie"].startswith("__Host-fedthorax=")
        assert "Secure" in signed_in.headers["set-cookie"]
        assert browser.get("/api/v1/session").json()["role"] == "admin"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/", timeout=SECONDS)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{port}/", timeout=SECONDS)  # the default CAs do not trust this certificate
