"""The report on a server holds no key, no password and no name of a hospital, a study or a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import load_pem_x509_certificate
from typer.testing import CliRunner

from federation.cli.main import app
from federation.enrolment.invitations import invite
from federation.enrolment.registry import record, registry
from federation.server.start import init_server
from federation.superlink.control import MOVED
from federation.system.process import free_port
from models.refusal import Refusal
from tests.federation.support.planted import (
    FAMILY,
    FORMS,
    NAME,
    SECRET,
    SENTENCE,
    assert_nothing_planted,
    traceback_of,
)
from tests.helpers.run_files import entry, study, write_run

HOSPITAL, STUDY = "bergqvist-sylvi", "study-4401728395566"
DATABASE = f"postgresql://mlflow:{SECRET}@{FAMILY}.example/mlflow"
LOGS = ("superlink.log", "superexec.log", "door.log", "door.err", "door.log.2")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server of a study whose hospitals, runs, addresses and passwords are planted."""
    folder = tmp_path / HOSPITAL / "server"
    init_server(folder, hosts=[f"{HOSPITAL}.example"], port=free_port())
    with (folder / "server.toml").open("a") as settings:
        settings.write(f"# {SENTENCE}\n")
    (folder / "superexec.secret").write_text(SECRET)
    (folder / "logs").mkdir()
    for log in (*LOGS, f"{HOSPITAL}.log"):
        (folder / "logs" / log).write_text(f"{DATABASE}\n{traceback_of(SENTENCE)}")
    code = invite(folder, HOSPITAL, patients=30)
    (folder / "logs" / "superlink.log").write_text(code)
    refused = {HOSPITAL: "E_REPLY_UPDATE", NAME: f"E_{FAMILY.upper()}"}
    rounds = [
        entry(1, sites=[HOSPITAL], versions={HOSPITAL: "0.1.0", NAME: SENTENCE}),
        entry(
            2,
            lost=True,
            lost_for="E_HANDSHAKE_QUORUM",
            refused=refused,
        ),
    ]
    run = write_run(folder, STUDY, of=study(name=STUDY), history=rounds, ended="failed", group=HOSPITAL)
    (run / "mlflow.json").write_text(json.dumps({"uri": DATABASE}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return folder


def report_on(folder: Path, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["server", "support-report", str(folder), str(file)])
    assert result.exit_code == 0, result.output
    assert "Read it before you send it" in result.output
    written = file.read_bytes()
    assert_nothing_planted(json.loads(written))
    assert not [word for word in (HOSPITAL, STUDY, str(tmp_path)) if word in written.decode()]
    keys = [path.read_text() for path in (folder / "certificates").glob("*.key")]
    lines = [line for key in keys for line in key.splitlines() if not line.startswith("-")]
    assert lines and not [line for line in lines if line in written.decode()]
    return json.loads(written)


def test_no_name_key_or_password_is_in_the_report(server: Path, tmp_path: Path) -> None:
    report = report_on(server, tmp_path)
    assert (server / "logs" / "superlink.log").read_text() not in json.dumps(report)  # an invitation's code
    assert report["settings"]["address"] == "(set)"
    assert report["hospitals"]["open_codes"] == 1
    assert report["hospitals"]["online"] == {"problem": "E_SERVER_UNREACHABLE"}
    assert report["hospitals"]["versions"] == {"0.1.0": 1, "other": 1}
    (run,) = report["runs"]
    assert (run["state"], run["rounds"], run["rounds_done"]) == ("failed", 4, 2)
    assert run["lost"] == {"E_HANDSHAKE_QUORUM": 1}
    assert run["refused"] == {"E_REPLY_UPDATE": 1, "other": 1}
    assert report["newest_study"]["study"]["name"] == "(set)"
    assert report["databases"]["sites.sqlite"]["intact"]
    assert not report["running"]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_a_log_is_in_the_report(form: str, server: Path, tmp_path: Path) -> None:
    for log in LOGS:
        (server / "logs" / log).write_bytes(b"E_DOOR_BUSY " + FORMS[form] + b"\n" + FORMS[form])
    logs = report_on(server, tmp_path)["logs"]
    assert set(logs) == set(LOGS)
    assert logs["door.log.2"]["codes"]["E_DOOR_BUSY"] == 1


def test_hospitals_are_counted_by_state(server: Path, tmp_path: Path) -> None:
    certificate = load_pem_x509_certificate((server / "certificates" / "server.crt").read_bytes())
    with registry(server) as db:
        record(db, HOSPITAL, certificate)
        assert report_on(server, tmp_path)["hospitals"]["states"] == {"enrolled": 1}
        db.execute("UPDATE certificates SET revoked = 1")
    (tmp_path / "report.json").unlink()
    assert report_on(server, tmp_path)["hospitals"]["states"] == {"revoked": 1}


def test_report_changes_nothing(server: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in server.rglob("*") if path.is_file()}
    report_on(server, tmp_path)
    assert {path: path.read_bytes() for path in server.rglob("*") if path.is_file()} == before


def test_report_is_made_of_a_moved_and_damaged_server(server: Path, tmp_path: Path) -> None:
    (server / MOVED).write_text(SENTENCE)
    (server / "sites.sqlite").write_bytes(SENTENCE.encode() * 99)
    (server / "runs" / STUDY / "history.json").write_text(SENTENCE)
    report = report_on(server, tmp_path)
    assert report["settings"] == {"problem": "E_SERVER_MOVED"}
    assert report["hospitals"] == report["databases"]["sites.sqlite"] == {"problem": "DatabaseError"}
    assert report["runs"] == [{"problem": "E_RUN_FILES"}]


def test_no_report_is_made_of_another_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["server", "support-report", str(tmp_path), str(tmp_path / "report.json")])
    assert isinstance(result.exception, Refusal) and result.exception.code == "E_NO_SERVER"
