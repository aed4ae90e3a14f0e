"""`upgrade-check` says what changes and whether now is safe; `upgrade-undo` goes back."""

import fcntl
import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.main import app
from federation.node.start import LOCK
from federation.node.state import NodeState
from federation.secure_aggregation import store as masked_rounds
from federation.server.start import init_server
from federation.superlink.control import read_server_config
from federation.upgrade.clinics import plan_clinic
from federation.upgrade.plan import Plan
from federation.upgrade.servers import plan_server
from federation.upgrade.sites import plan_site, undo_site
from models.refusal import Refusal
from pipeline.clinic.service import LOCK as SERVICE_LOCK
from pipeline.clinic.settings import Clinic, init_clinic
from pipeline.site.folder import Site, init_site, site_settings
from pipeline.system.folder_format import FILE


@contextmanager
def held(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="north"))


def with_old_rounds(site: Site) -> Path:
    """Give the site a file of masked rounds in format 1."""
    folder = site.folder / "gateway" / "secagg"
    masked_rounds.Store(folder, site.folder / "witness").close()
    with closing(sqlite3.connect(folder / masked_rounds.FILE, isolation_level=None)) as database:
        database.executescript(
            "ALTER TABLE runs DROP COLUMN study;"
            "DROP TABLE summed; DROP TABLE revealed; CREATE TABLE revealed (model TEXT PRIMARY KEY) STRICT;"
            f"INSERT INTO revealed VALUES ('{'a' * 64}'); PRAGMA user_version = 1;"
        )
    return folder / masked_rounds.FILE


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files, but not what SQLite puts beside a database while somebody reads it."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {str(path): path.read_bytes() for path in files}


def test_plan_names_what_is_migrated_and_changes_nothing(site: Site) -> None:
    with_old_rounds(site)
    before = contents(site.folder)
    plan = plan_site(site)
    assert contents(site.folder) == before
    (change,) = plan.changes
    assert (change.file, change.found, change.known) == (
        "gateway/secagg/rounds.sqlite",
        1,
        masked_rounds.FORMAT.version,
    )
    assert change.effect == "migrated"
    assert plan.safe_now and not plan.running
    assert any("upgrade-undo" in command for command in plan.back)
    assert any(" backup " in command for command in plan.forward)


def test_plan_of_a_site_without_migrations_needs_no_undo(site: Site) -> None:
    plan = plan_site(site)
    assert plan.safe_now and plan.changes == []
    assert not any("upgrade-undo" in command for command in plan.back)


def test_plan_waits_for_the_task_of_a_round(site: Site) -> None:
    state = NodeState.begin(site.logs)
    with held(site.logs / LOCK):
        state.save(site.logs)
        assert plan_site(site).safe_now  # between two rounds
        state.doing = "training for round 2"
        state.save(site.logs)
        plan = plan_site(site)
        assert plan.running and not plan.safe_now
        assert "task of a round" in plan.waits_for[0]
    assert plan_site(site).safe_now  # the node was killed meanwhile


def test_plan_waits_for_an_ingest(site: Site) -> None:
    with held(site.cohort_folder / "lock"):
        assert plan_site(site).waits_for == ["an ingest is under way"]


def test_plan_refuses_a_newer_and_a_damaged_file(site: Site) -> None:
    file = with_old_rounds(site)
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA user_version = 99")
    plan = plan_site(site)
    assert not plan.safe_now and plan.changes[0].effect == "cannot be opened"
    file.write_bytes(b"no database " * 999)
    assert plan_site(site).changes[0].effect == "damaged"


def test_plan_says_how_much_disk_is_missing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with_old_rounds(site)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert any("MB must be free" in line for line in plan_site(site).waits_for)


def test_site_goes_back_to_the_file_before_the_upgrade(site: Site) -> None:
    file = with_old_rounds(site)
    masked_rounds.Store(file.parent, site.folder / "witness").close()
    with held(site.logs / LOCK), pytest.raises(Refusal, match="E_STILL_RUNNING"):
        undo_site(site)
    assert undo_site(site) == {"gateway/secagg/rounds.sqlite": 1}
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT * FROM revealed").fetchall() == [("a" * 64,)]
    assert not (site.folder / FILE).exists()
    store = masked_rounds.Store(file.parent, site.folder / "witness")  # and forward again
    assert store.was_revealed("a" * 64, "train")
    store.close()


def test_site_that_was_not_migrated_has_nothing_to_undo(site: Site) -> None:
    with pytest.raises(Refusal, match="E_NO_WAY_BACK"):
        undo_site(site)


# --- a server and a clinic --------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Path:
    init_server(tmp_path / "server")
    return tmp_path / "server"


def test_server_waits_for_a_run_and_names_sites_that_it_would_not_accept(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_server(server).safe_now
    monkeypatch.setattr("federation.upgrade.servers.unfinished", lambda _: ["covid-1", "covid-0"])
    monkeypatch.setattr(
        "federation.upgrade.servers.state", lambda _, run: "running" if run.name == "covid-1" else "interrupted"
    )
    monkeypatch.setattr("federation.upgrade.servers.last_versions", lambda _: {"south": "0.0.1"})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", read_server_config(server).control_port))
        listener.listen()
        plan = plan_server(server)
    assert plan.running and len(plan.waits_for) == 2
    assert "covid-1" in plan.waits_for[0] and "the site must upgrade" in plan.waits_for[1]


def test_clinic_waits_for_its_scans(tmp_path: Path) -> None:
    clinic = init_clinic(tmp_path / "clinic")
    assert plan_clinic(clinic).safe_now
    assert " clinic backup " in plan_clinic(clinic).forward[0]
    with closing(sqlite3.connect(clinic.folder / "clinic.sqlite", isolation_level=None)) as database:
        database.execute(
            "INSERT INTO jobs (id, state, source, asked_by, received_at, is_whole)"
            " VALUES ('a', 'waiting', 'upload', 'x', '2026-01-01', 1)"
        )
    with held(clinic.folder / SERVICE_LOCK):
        plan = plan_clinic(Clinic.open(clinic.folder))
    assert plan.waits_for == ["scans wait to be scored: 1"]
    assert plan_clinic(clinic).safe_now  # a page that does not run keeps its queue


def test_commands_print_the_plan_and_fail_if_now_is_not_safe(site: Site, server: Path, tmp_path: Path) -> None:
    init_clinic(tmp_path / "clinic")
    run = CliRunner().invoke
    for command, folder in (("node", site.folder), ("server", server), ("clinic", tmp_path / "clinic")):
        found = run(app, [command, "upgrade-check", str(folder), "--json"])
        assert found.exit_code == 0 and json.loads(found.stdout)["safe_now"] is True
    with held(site.cohort_folder / "lock"):
        assert run(app, ["node", "upgrade-check", str(site.folder)]).exit_code == 1


def test_plan_is_json(site: Site) -> None:
    with_old_rounds(site)
    plan: Plan = plan_site(site)
    assert json.loads(json.dumps(plan.to_json()))["changes"][0]["effect"] == "migrated"
