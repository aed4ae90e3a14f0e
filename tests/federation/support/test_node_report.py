"""The report for support holds states, counts and codes, and nothing that the canary's scanner could find."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.main import app
from federation.ledger.chain import Entry, Ledger, ledger_file
from federation.ledger.restored import accept, mark_restored
from federation.node.state import NodeState, now
from federation.node.withdrawal import withdraw
from pipeline.cohort.ingest import Assessment
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from tests.canary.scanner import Planted, Scanner
from tests.helpers.own import truth_of

NAME = "Bergqvist^Sylvi"
pytestmark = pytest.mark.slow


@pytest.fixture
def site(small_ingest: tuple[Site, Assessment], tmp_path: Path) -> Site:
    """A copy of a site whose logs, ledger, state and export say more than they should."""
    shutil.copytree(small_ingest[0].folder, tmp_path / "site")
    site = Site.open(tmp_path / "site")
    Ledger(ledger_file(site)).append(Entry(NAME, 1, "out", f"error {NAME}", 1, "", "", "", "E_REPLY_UPDATE"))
    mark_restored(ledger_file(site), NAME)
    accept(ledger_file(site), f"{NAME} decided")
    site.logs.mkdir(exist_ok=True)
    for log in ("client.log", "failures.log", "gateway.log", "gateway.log.1", f"{NAME}.log"):
        (site.logs / log).write_text(f"2026 ERROR E_DISK {NAME}\nE_BERGQVIST_SYLVI and E_DISK\n")
    state = NodeState(pid=1, started=now(), doing=f"the app says: {NAME}", refused="E_DISK", refused_at=now())
    state.save(site.logs)
    return site


def test_nothing_of_a_patient_is_in_the_report(site: Site, small_hospital: Path, tmp_path: Path) -> None:
    patients = [each["patient_id"] for each in truth_of(small_hospital)["patients"]]
    with Cohort(site) as cohort:
        rows = cohort.patients()
    texts = (*(row.pseudonym for row in rows), *(row.tensor for row in rows), NAME, "E_BERGQVIST_SYLVI")
    scanner = Scanner([Planted("it", texts)])
    file = tmp_path / "report.json"
    assert CliRunner().invoke(app, ["node", "support-report", str(site.folder), str(file)]).exit_code == 0
    assert scanner.scan((site.folder / "cohort" / "cohort.csv").read_bytes())  # control
    assert scanner.scan(file.read_bytes()) == []
    assert not [word for word in (*patients, site.name, str(site.folder)) if word in file.read_text()]
    assert file.stat().st_mode & 0o777 == 0o600


def test_report_counts_codes_of_logs_ledger_and_ingest(site: Site, tmp_path: Path) -> None:
    withdraw(site, ["nobody"])
    file = tmp_path / "report.json"
    assert CliRunner().invoke(app, ["node", "support-report", str(site.folder), str(file)]).exit_code == 0
    report = json.loads(file.read_text())
    assert report["logs"]["gateway.log"]["codes"] == report["logs"]["gateway.log.1"]["codes"] == {"E_DISK": 2}
    assert report["logs"]["client.log"] == {"codes": ["E_DISK"]}  # the study's code can write it
    assert report["ledger"] == {
        **{"lines": 4, "passed": {"here": 3}, "refused": {"E_REPLY_UPDATE": 1}, "restored": False}
    }
    assert report["node"]["last_refusal"] == "E_DISK"
    assert sum(report["refusals_at_ingest"].values()) > 0
    assert report["settings"]["gateway"]["max_batch_size"] == 64
    assert report["settings"]["site"]["name"] == "(set)"
    assert report["databases"]["cohort.sqlite"]["intact"]
    assert any("torch" in line for line in report["environment"])
    assert (
        CliRunner().invoke(app, ["node", "support-report", str(site.folder), str(file)]).exit_code == 1
    )  # no overwrite


def test_report_on_wrong_settings_says_only_their_code(site: Site, tmp_path: Path) -> None:
    (site.folder / "site.toml").write_text(f"'{NAME}' = 1")
    file = tmp_path / "report.json"
    assert CliRunner().invoke(app, ["node", "support-report", str(site.folder), str(file)]).exit_code == 0
    report = json.loads(file.read_text())
    assert report["settings"] == {"problem": "E_SETTINGS_KEY"} and report["logs"]["client.log"]["codes"]
    assert NAME not in file.read_text()
