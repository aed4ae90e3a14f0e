"""The metrics of a study's server follow its folder; sites are missing while Flower's server does not respond."""

from pathlib import Path

import pytest

from federation.enrolment.invitations import EnrolledSite
from federation.runs import server_metrics
from federation.runs.server_metrics import ServerMetrics
from federation.server.start import init_server, valid_certificates
from federation.system.process import free_port
from tests.helpers.run_files import entry, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_server(tmp_path / "server", port=free_port())
    (tmp_path / "server" / "logs").mkdir()
    return tmp_path / "server"


def told(metrics: ServerMetrics) -> dict[str, float]:
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def test_runs_certificates_and_processes_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(folder, "trial-a", ended="completed")
    write_run(folder, "trial-b", ended="failed")
    active = write_run(folder, "trial-c", ended=None, run_id=7, history=[entry(1)])
    known = server_metrics.state
    monkeypatch.setattr(server_metrics, "state", lambda at, run: "running" if run == active else known(at, run))
    metrics = ServerMetrics(folder, lambda: {"superlink": True, "door": False})
    found = told(metrics)
    assert (found["fedthorax_server_runs,completed"], found["fedthorax_server_runs,failed"]) == (1, 1)
    progress = "fedthorax_server_run_progress_timestamp_seconds,trial-c"
    assert found[progress] == (active / "history.json").stat().st_mtime
    assert [name for name in found if "run_progress" in name] == [progress]
    assert found["fedthorax_server_process_up,door"] == 0
    ends = valid_certificates(folder)["server"].timestamp()
    assert found["fedthorax_server_certificate_end_timestamp_seconds,server"] == ends
    assert not any("site" in name for name in found)
    assert metrics.ready() == {"superlink": True, "door": False}


def test_sites_are_listed_except_invited_and_revoked_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    until = valid_certificates(folder)["server"]
    sites = [
        EnrolledSite("north", "enrolled", 30, until, online=True),
        EnrolledSite("south", "expired", 30, until, online=False),
        EnrolledSite("west", "revoked", 30, until, online=False),
        EnrolledSite("east", "invited", 30, None, online=False),
    ]
    monkeypatch.setattr(server_metrics, "overview", lambda _: sites)
    found = told(ServerMetrics(folder, dict))
    online = {name: value for name, value in found.items() if "site_online" in name}
    assert online == {"fedthorax_server_site_online,north": 1, "fedthorax_server_site_online,south": 0}


def test_refusals_of_the_ingress_are_counted_by_known_codes_only(folder: Path) -> None:
    log = folder / "logs" / "door.log"
    log.write_text("2026-11-28 12:00:00,000 refused site=? from=1.2.3.4 POST '/old'  E_DOOR_BUSY: before the start\n")
    metrics = ServerMetrics(folder, dict)
    lines = [
        "refused site=north from=1.2.3.4 POST '/v1/fleet/x'  E_NO_WAY: not served",
        "refused site=? from=1.2.3.4 connections  E_DOOR_BUSY",
        "refused site=? TLS handshake  E_CERTIFICATE_UNKNOWN: unable to get local issuer certificate",
        "refused site=? from=1.2.3.4 GET '/refused site=a  E_INVENTED'  E_NO_WAY: not served",
        "refused site=? from=1.2.3.4 GET '/'  E_INVENTED",
        "joined site=north from=1.2.3.4 POST '/enrolment/join'  north",
    ]
    with log.open("a") as file:
        file.writelines(f"2026-11-28 12:00:01,000 {line}\n" for line in lines)
    found = {name: value for name, value in told(metrics).items() if "ingress" in name}
    assert found == {
        "fedthorax_ingress_refused_total,E_CERTIFICATE_UNKNOWN": 1,
        "fedthorax_ingress_refused_total,E_DOOR_BUSY": 1,
        "fedthorax_ingress_refused_total,E_NO_WAY": 2,
    }
    assert told(metrics)["fedthorax_ingress_refused_total,E_NO_WAY"] == 2
