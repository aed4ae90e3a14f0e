"""The page shows results that could not be delivered as FHIR or HL7, and sends them again: in a real browser."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from pipeline.clinic.records import Patient
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.settings import SETTINGS, Clinic
from pipeline.clinic.store import new_id
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Tokens
from tests.e2e.browser import open_browser
from tests.helpers import scored_answers
from tests.pipeline.clinic.results.receivers import Receiver

pytestmark = pytest.mark.e2e
LINE, SELECT = "#deliveries li", "document.querySelector('#find-shown')"


@contextmanager
def served(clinic: Clinic) -> Iterator[str]:
    """Serve the page from a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(make_app(clinic), port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def queued(clinic: Clinic, folder: Path) -> str:
    """Store an answer that waits to be sent; return the id of its job."""
    folder.mkdir()
    scored_answers.write_scan(folder)
    scan = scored_answers.series_of(folder)
    patient = Patient("SYNTHETIC-1", "", "Doe^Jane")
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="test", patient=patient)
        job = store.jobs.take()
        assert job is not None
        made = scored_answers.answer_to(scored_answers.score_of(folder), scan, clinic.answers / new_id())
        made = replace(made, job_id=job.id, patient=patient)
        store.answers.add(job, made, deliver=Outbox(clinic).targets_of_new(made))
    return job.id


def attempt(clinic: Clinic) -> None:
    with clinic.store() as store:
        (waiting,) = store.deliveries.in_state("waiting")
    Outbox(clinic).attempt(waiting)


def test_undelivered_result_is_in_the_worklist_with_what_to_do_and_sent_again(tmp_path: Path) -> None:
    receiver = Receiver("AE")
    with receiver.running() as port:
        (tmp_path / SETTINGS).write_text(f'[results.hl7]\nhost = "127.0.0.1"\nport = {port}\nsend = "always"\n')
        clinic = Clinic.open(tmp_path)
        job_id = queued(clinic, tmp_path / "scan")
        attempt(clinic)
        token = Tokens(clinic.folder).make("reader", "score", by="test")
        with served(clinic) as url, open_browser(tmp_path / "browser") as page:
            page.goto(f"{url}/#token={token}")
            page.wait_for_text("HL7 receiver: not delivered (E_HL7_REFUSED)", "#scans")
            page.js(f"{SELECT}.value = 'undelivered'; {SELECT}.dispatchEvent(new Event('input', {{bubbles: true}}))")
            page.wait_for("document.querySelectorAll('#scans li').length === 1")
            page.js(f"location.hash = '#/scans/{job_id}'")
            page.wait_for_text("not accepted (1 try, E_HL7_REFUSED). Ask its administrator for the reason.", LINE)
            receiver.code = "AA"
            page.click(f"{LINE} button")
            page.wait_for_text("HL7 receiver: being sent", LINE)
            attempt(clinic)
            page.wait_for_text("HL7 receiver: sent", LINE)
            page.wait_for("document.querySelectorAll('#scans li').length === 0")
            assert [each for each in page.problems if "niivue.js" not in each] == []  # may not be built here
    assert len(receiver.received) == 2 and len(receiver.by_control_id) == 1
