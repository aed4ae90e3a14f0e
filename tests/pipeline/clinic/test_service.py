"""Tests of the service without its processes: refusals at start, and restarts of failed tasks."""

import logging
import socket
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.clinic.background import keep_running, log_to
from pipeline.clinic.reasons import CLINIC_BUSY
from pipeline.clinic.service import background_tasks, run_service
from pipeline.clinic.settings import SETTINGS, Clinic
from pipeline.pacs import reasons
from pipeline.system.locks import alone

CERTIFICATE = '[server]\ncertificate = "page.crt"\nkey = "page.key"\n'


def refused(folder: Path, **options: int) -> Refusal:
    with pytest.raises(Refusal) as caught:
        run_service(folder, **options)  # type: ignore[arg-type]
    return caught.value


def test_second_service_for_a_folder_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path / "service.lock", CLINIC_BUSY):
        assert refused(tmp_path).code == "E_CLINIC_BUSY"
    assert refused(tmp_path / "nowhere").code == "E_NO_CLINIC"


def test_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        refusal = refused(tmp_path, port=taken.getsockname()[1])
    assert refusal.code == "E_CLINIC_ADDRESS"
    # No worker has started, so no worker log exists.
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["service.log"]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unusable_certificate_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / SETTINGS).write_text(CERTIFICATE)
    if content:
        (tmp_path / "page.crt").write_text(content)
        (tmp_path / "page.key").write_text(content)
    refusal = refused(tmp_path)
    assert refusal.code == "E_CLINIC_TLS"
    assert str(tmp_path) not in str(refusal)


class Impatient(threading.Event):
    """An event that records the requested waiting times and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


def test_failed_task_is_restarted_until_stop_is_requested(caplog: pytest.LogCaptureFixture) -> None:
    failures = [Refusal(reasons.PACS_SILENT, private="CANARY"), ValueError("an error"), None]
    stop = Impatient()

    def task(given: threading.Event) -> None:
        assert given is stop
        failure = failures.pop(0)
        if failure:
            raise failure
        stop.set()

    keep_running("outbox", task, stop)
    assert failures == []
    assert stop.waits[:2] == [1.0, 2.0]  # the pause grows with each failure
    assert "E_PACS_SILENT" in caplog.text and "an error" in caplog.text
    assert "CANARY" not in caplog.text


def test_log_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    with log_to(path):
        logging.getLogger("fedthorax.clinic").info("a thing has happened")
    logging.getLogger("fedthorax.clinic").error("a thing has happened elsewhere")
    assert "a thing has happened\n" in path.read_text()
    assert "elsewhere" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_configured_tasks_run(tmp_path: Path) -> None:
    assert set(background_tasks(Clinic.open(tmp_path))) == {"worker", "tidying"}
    (tmp_path / SETTINGS).write_text(
        '[pacs]\nprotocol = "dicomweb"\n[pacs.dicomweb]\nurl = "http://127.0.0.1:9/web"\n[receiver]\nenabled = true\n'
    )
    assert {"fetching", "receiver"} <= set(background_tasks(Clinic.open(tmp_path)))
    (tmp_path / SETTINGS).write_text('[results.hl7]\nhost = "127.0.0.1"\n')
    assert set(background_tasks(Clinic.open(tmp_path))) == {"worker", "tidying", "outbox hl7"}
