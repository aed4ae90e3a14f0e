"""A laboratory's results that are sent or fetched are the same as those in its files."""

import json
from datetime import date
from pathlib import Path

import pytest
from hl7.client import MLLPClient
from typer.testing import CliRunner

from federation.cli.node import app
from federation.system.process import free_port
from pipeline.phantom.feeds import TIME_ZONE, laboratory_table, write_feed
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.records.laboratory import read_pcr
from pipeline.site.folder import Site, init_site
from tests.pipeline.feeds.fhir_server import FhirServer, serving
from tests.pipeline.feeds.listener_rig import Rig, running
from tests.pipeline.phantom.test_feeds import drawn

pytestmark = pytest.mark.slow

Results = tuple[set[tuple[str, date, bool | None]], list[tuple[str, str]]]


def make_site(folder: Path, laboratory: str, more: str = "") -> Site:
    site = f'[site]\nname = "synthetic"\ntime_zone = "{TIME_ZONE}"'
    return init_site(folder, "\n".join((site, laboratory, more, '[outcomes]\nfile = "outcomes.csv"\n')))


def read(site: Site) -> Results:
    """Results by patient and day, and findings, as an ingest reads them."""
    site = Site.open(site.folder)
    assert site.settings.laboratory is not None
    found, findings = read_pcr(site.settings.laboratory, time_zone=TIME_ZONE)
    results = {(each.patient_id, each.collected.date(), each.positive) for each in found}
    return results, sorted((finding.reason.code, finding.patient_id) for finding in findings)


@pytest.mark.parametrize("at", HOSPITALS, ids=lambda at: at.name)
def test_sent_messages_give_the_same_results_as_a_file(tmp_path: Path, at: Hospital) -> None:
    """With preliminary and corrected versions, in the hospital's own encoding, and each message sent twice."""
    (tmp_path / "files").mkdir()
    write_feed(tmp_path / "files", drawn(at, 12), at.laboratory, "hl7")
    table = laboratory_table(at.laboratory, "hl7")
    of_file = make_site(
        tmp_path / "files" / "site", table.replace('"laboratory.hl7"', f'"{tmp_path}/files/laboratory.hl7"')
    )
    messages = (tmp_path / "files" / "laboratory.hl7").read_bytes().split(b"MSH|")[1:]
    port = free_port()
    table = "\n".join(line for line in table.splitlines() if not line.startswith("file ="))
    listening = make_site(tmp_path / "site", table, f"[laboratory.listener]\nport = {port}\nkeep_free_gb = 0")
    with running(Rig(listening, port)) as rig:
        with MLLPClient("127.0.0.1", port) as client:
            answers = [client.send_message(b"MSH|" + each) for each in reversed(messages * 2)]
        assert all(b"MSA|AA|" in each for each in answers)
        assert len(rig.stored) == len(messages) > 12
    assert read(listening) == read(of_file)


def test_fetched_resources_give_the_same_results_as_files_and_commands_report_them(tmp_path: Path) -> None:
    at = HOSPITALS[0]
    write_feed(tmp_path, drawn(at, 12), at.laboratory, "fhir")
    table = laboratory_table(at.laboratory, "fhir")
    of_file = make_site(tmp_path / "files", table.replace('"laboratory.ndjson"', f'"{tmp_path}/laboratory.ndjson"'))
    # A server has one version of each resource: the last.
    lines = map(json.loads, (tmp_path / "laboratory.ndjson").read_text().splitlines())
    newest = {f"{each['resourceType']}/{each['id']}": each for each in lines}
    table = "\n".join(line for line in table.splitlines() if not line.startswith("file ="))
    with serving(FhirServer(list(newest.values()))) as server:
        fetching = make_site(tmp_path / "site", table, f'[fhir]\nurl = "{server.url}"\npage_size = 7')
        told = CliRunner().invoke(app, ["pull", str(fetching.folder), "--json"])
        assert told.exit_code == 0
        assert json.loads(told.stdout)["fhir"]["resources"] > 12
        assert json.loads(told.stdout)["omop"] is None
    assert read(fetching) == read(of_file)
    status = CliRunner().invoke(app, ["status", str(fetching.folder), "--json"])
    assert "results_queued" not in json.loads(status.stdout)
