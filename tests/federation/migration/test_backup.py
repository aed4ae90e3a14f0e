"""Backups of sites, servers and clinics: private files, restored completely or not at all."""

import gzip
import io
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.main import app
from federation.enrolment.certificates import create_node_key
from federation.enrolment.invitations import has_open_code, invite
from federation.enrolment.registry import registry
from federation.ledger.chain import Entry, Ledger, ledger_file, read_lines, verify
from federation.ledger.restored import is_restored
from federation.migration.backup import back_up_clinic, back_up_server, back_up_site, restore_server, restore_site
from federation.server.start import init_server
from federation.system import backup
from federation.system.backup import restore_backup, write_backup
from models.refusal import Refusal
from pipeline.clinic.records import Answer, Patient
from pipeline.clinic.retention import tidy
from pipeline.clinic.settings import Clinic, init_clinic
from pipeline.clinic.store import new_id, now
from pipeline.clinic.web.auth import Tokens
from pipeline.site.folder import Site, init_site, site_settings
from pipeline.site.withdrawn import Withdrawn


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with keys, a ledger, a password file, and data that a backup leaves out."""
    site = init_site(tmp_path / "site", site_settings(None, name="north"))
    create_node_key(site.node_key)
    Ledger(ledger_file(site)).append(Entry("run", 1, "in", "train", 1, "", "", "", "passed"))
    (site.folder / "pacs.password").write_text("secret\n")
    (site.folder / "gateway").mkdir()
    for name in ("cohort/cohort.sqlite", "logs/node.log", "gateway/in/task", "gateway/unanswered", "check.html"):
        (site.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (site.folder / name).write_text("not in the backup")
    for name in ("answers/one.json", "secagg/rounds.sqlite", "rounds.json", "private.json"):
        (site.folder / "gateway" / name).parent.mkdir(exist_ok=True)
        (site.folder / "gateway" / name).write_text("[]")
    return site


@pytest.fixture
def server(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    init_server(folder)
    invite(folder, "north", patients=240)
    for name in ("release.key", "releases/run/model.json", "runs/run/study.json", "logs/door.log", "state.db"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    """A clinic with an answer, a token and a model, and with files that a backup leaves out."""
    clinic = init_clinic(tmp_path / "clinic")
    answer(clinic)
    for name in ("models/one/model.json", "keys/page.key"):
        (clinic.folder / name).parent.mkdir(exist_ok=True)
        (clinic.folder / name).write_text(name)
    for name in ("logs/service.log", "scans/one/1.dcm", "received/2.dcm", "work/3.dcm", "clinic.sqlite.v1"):
        (clinic.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (clinic.folder / name).write_text("not in the backup")
    return clinic


def answer(clinic: Clinic) -> str:
    """Add an answer with a file, as the worker does: the file first."""
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="night desk")
        job, name = store.jobs.take(), new_id()
        assert job
        (clinic.answers / name).mkdir()
        (clinic.answers / name / "score.json").write_text("{}")
        patient = store.keys.keyed(Patient("SYNTHETIC-7", "WARD", "CANARY^SYNTHETIC", "F", 63.0))
        about = {"probability": {"severe": 0.5}, "withheld": None, "interval": None, "level": {"severe": None}}
        score = {"input": {"hu_sha256": "a" * 64}, **about}
        ids = {"study_uid": "2.25.1", "series_uid": "2.25.2", "accession": "", "acquired_at": None}
        made = {"model_sha256": "b" * 64, "model_name": "one", "role": "live", "folder": clinic.answers / name}
        store.answers.add(job, Answer(name, job.id, now(), score=score, patient=patient, **ids, **made))  # type: ignore[arg-type]
    return name


def answers(folder: Path) -> list[str]:
    with Clinic.open(folder).store() as store:
        return [str(row["id"]) for row in store.database.rows("SELECT id FROM answers")]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in [folder, *folder.rglob("*")]}


def test_restored_site_has_the_same_keys_pseudonyms_and_ledger(site: Site, tmp_path: Path) -> None:
    count = back_up_site(site.folder, tmp_path / "backup")
    assert restore_backup("site", tmp_path / "backup", tmp_path / "again") == count
    again = Site.open(tmp_path / "again")
    assert again.pseudonym("4711") == site.pseudonym("4711")
    assert verify(ledger_file(again)) == verify(ledger_file(site))
    assert set(files(again.folder)) == {
        *("site.toml", "format.json", "pacs.password", "ledger/ledger.jsonl"),
        *("keys/pseudonym.key", "keys/node", "keys/node.pub"),
        *(f"gateway/{name}" for name in ("answers/one.json", "secagg/rounds.sqlite", "rounds.json", "private.json")),
    }
    assert all(files(site.folder)[name] == content for name, content in files(again.folder).items())


def test_patients_who_withdrew_stay_withdrawn_however_many_they_are(site: Site, tmp_path: Path) -> None:
    names = [f"{number:016x}" for number in range(17_000)]
    Withdrawn(site).add(names)
    assert (site.folder / "withdrawn.txt").stat().st_size > 2**20
    back_up_site(site.folder, tmp_path / "backup")
    restore_site(tmp_path / "backup", tmp_path / "again")
    again = Withdrawn(Site.open(tmp_path / "again"))
    assert len(again) == len(names)
    assert names[-1] in again


def test_files_that_a_backup_leaves_out_for_their_size_are_named(site: Site, tmp_path: Path) -> None:
    Withdrawn(site).add(f"{number:016x}" for number in range(17_000))
    (site.folder / "export.csv").write_bytes(bytes(2**20 + 1))
    done = CliRunner().invoke(app, ["node", "backup", str(site.folder), str(tmp_path / "backup")])
    assert done.exit_code == 0
    named = [line for line in done.output.splitlines() if line.startswith("Not in the backup")]
    assert len(named) == 1
    assert "export.csv" in named[0]
    restore_site(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again" / "export.csv").exists()


def behind_a_link(path: Path, place: Path) -> bytes:
    """Move a file to another place, which a link leads to; return its content."""
    place.parent.mkdir(exist_ok=True)
    content = path.read_bytes()
    path.rename(place)
    path.symlink_to(place)
    return content


def test_keys_and_settings_that_are_links_are_in_the_backup_as_files(
    site: Site, server: Path, clinic: Clinic, tmp_path: Path
) -> None:
    kept = {
        folder / name: behind_a_link(folder / name, tmp_path / "safe" / Path(name).name)
        for folder, names in (
            (site.folder, ("keys/pseudonym.key", "site.toml", "pacs.password")),
            (server, ("certificates/ca.key", "server.toml")),
            (clinic.folder, ("keys/page.key", "clinic.toml", "clinic.sqlite")),
        )
        for name in names
    }
    for kind, folder in (("node", site.folder), ("server", server), ("clinic", clinic.folder)):
        file, again = tmp_path / f"{kind}.backup", tmp_path / f"{kind}-again"
        assert CliRunner().invoke(app, [kind, "backup", str(folder), str(file)]).exit_code == 0
        assert CliRunner().invoke(app, [kind, "restore", str(file), str(again)]).exit_code == 0
        for path, content in kept.items():
            if path.is_relative_to(folder):
                restored = again / path.relative_to(folder)
                assert not restored.is_symlink()
                assert restored.read_bytes() == content or restored.suffix == ".sqlite"


def test_folders_that_are_links_are_in_the_backup_and_loops_end(server: Path, tmp_path: Path) -> None:
    (server / "runs" / "run").rename(tmp_path / "moved")
    (server / "runs" / "run").symlink_to(tmp_path / "moved")
    (tmp_path / "moved" / "loop").symlink_to(server / "runs")
    back_up_server(server, tmp_path / "backup")
    restore_backup("server", tmp_path / "backup", tmp_path / "again")
    assert [*(tmp_path / "again" / "runs").rglob("*")] == [
        tmp_path / "again/runs/run",
        tmp_path / "again/runs/run/study.json",
    ]


@pytest.mark.parametrize("name", ["keys/pseudonym.key", "pacs.password", "ledger/ledger.jsonl"])
def test_link_that_leads_to_nothing_is_refused(site: Site, tmp_path: Path, name: str) -> None:
    content = behind_a_link(site.folder / name, tmp_path / "safe" / "disk")
    (tmp_path / "safe" / "disk").unlink()
    with pytest.raises(Refusal, match=f"E_BACKUP_LINK: .*{Path(name).name}"):
        back_up_site(site.folder, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    (site.folder / name).unlink()
    (site.folder / name).write_bytes(content)
    (site.folder / ".#site.toml").symlink_to("somebody@desk.41")  # as an editor leaves it
    assert back_up_site(site.folder, tmp_path / "backup")


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_site_without_its_pseudonym_key_is_not_backed_up(site: Site, tmp_path: Path, content: bytes | None) -> None:
    """A backup without the key, which says that it holds it, would take the place of the last one that does."""
    key = site.folder / "keys" / "pseudonym.key"
    key.unlink()
    if content is not None:
        key.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(app, ["node", "backup", str(site.folder), str(tmp_path / "backup")])
    assert isinstance(done.exception, Refusal)
    assert done.exception.code == "E_SITE_KEY"
    assert "It holds the key" not in done.output
    assert sorted(tmp_path.iterdir()) == before


def test_restore_of_a_backup_without_the_pseudonym_key_says_so(site: Site, tmp_path: Path) -> None:
    parts = [path for path in site.folder.iterdir() if path.name != "keys"]
    write_backup("site", site.folder, [*parts, site.node_key], tmp_path / "backup")  # as earlier versions did
    done = CliRunner().invoke(app, ["node", "restore", str(tmp_path / "backup"), str(tmp_path / "again")])
    assert done.exit_code == 0
    assert "E_SITE_KEY" in done.output
    assert "Restore keys/pseudonym.key from a backup" in done.output
    back_up_site(site.folder, tmp_path / "whole")
    done = CliRunner().invoke(app, ["node", "restore", str(tmp_path / "whole"), str(tmp_path / "third")])
    assert "E_SITE_KEY" not in done.output


def test_keys_on_a_disk_that_is_away_are_not_called_lost(site: Site, tmp_path: Path) -> None:
    (site.folder / "keys").rename(tmp_path / "disk")
    (site.folder / "keys").symlink_to(tmp_path / "disk")
    assert back_up_site(site.folder, tmp_path / "backup")
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(Refusal, match=r"E_BACKUP_LINK: .*keys"):
        back_up_site(site.folder, tmp_path / "second")


@pytest.mark.parametrize("lost", ["site.toml", "ledger/ledger.jsonl"])
def test_backup_that_is_no_usable_site_changes_no_folder(site: Site, tmp_path: Path, lost: str) -> None:
    (site.folder / lost).write_bytes(b"\xff damaged\n")
    write_backup("site", site.folder, sorted(site.folder.iterdir()), tmp_path / "backup")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Refusal):
        restore_site(tmp_path / "backup", tmp_path / "again")
    assert sorted(tmp_path.iterdir()) == before


def test_restored_site_takes_part_only_after_the_restore_was_accepted(site: Site, tmp_path: Path) -> None:
    runner, again = CliRunner(), tmp_path / "again"
    back_up_site(site.folder, tmp_path / "backup")
    assert runner.invoke(app, ["node", "restore", str(tmp_path / "backup"), str(again)]).exit_code == 0
    kinds = [line.kind for line in read_lines(ledger_file(Site.open(again)))]
    assert kinds == ["train", "restored: a backup whose ledger has 1 lines"]
    assert is_restored(read_lines(ledger_file(Site.open(again))))
    assert runner.invoke(app, ["node", "accept-restore", str(again)]).exit_code == 2
    assert runner.invoke(app, ["node", "accept-restore", str(again), "--note", "by A.: it was stopped"]).exit_code == 0
    *_, last = read_lines(ledger_file(Site.open(again)))
    assert last.kind == "restore accepted: by A.: it was stopped"
    assert not is_restored(read_lines(ledger_file(Site.open(again))))
    assert not is_restored(read_lines(ledger_file(site)))


def test_backup_and_what_is_restored_from_it_are_private(site: Site, tmp_path: Path) -> None:
    back_up_site(site.folder, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    restore_backup("site", tmp_path / "backup", tmp_path / "again")
    assert modes(tmp_path / "again") == {(True, 0o700), (False, 0o600)}
    assert not list(tmp_path.glob(".*"))


def test_restored_server_has_its_keys_releases_and_roster(server: Path, tmp_path: Path) -> None:
    back_up_server(server, tmp_path / "backup")
    restore_backup("server", tmp_path / "backup", tmp_path / "again")
    before, after = files(server), files(tmp_path / "again")
    assert {name for name in before if name not in after} == {"logs/door.log", "state.db"}
    assert all(before[name] == content for name, content in after.items() if name != "sites.sqlite")
    with registry(tmp_path / "again") as db:
        assert db.execute("SELECT site, patients FROM invitations").fetchall() == [("north", 240)]
    assert modes(tmp_path / "again") == {(True, 0o700), (False, 0o600)}


def test_codes_of_a_restored_server_have_ended_and_the_command_says_so(server: Path, tmp_path: Path) -> None:
    back_up_server(server, tmp_path / "backup")
    done = CliRunner().invoke(app, ["server", "restore", str(tmp_path / "backup"), str(tmp_path / "again")])
    assert done.exit_code == 0
    assert not has_open_code(tmp_path / "again", "north")
    assert has_open_code(server, "north")
    assert "Enrol again: north" in done.output
    assert "revoke them now" in done.output
    invite(tmp_path / "again", "north", patients=240)
    assert has_open_code(tmp_path / "again", "north")


def test_backup_without_a_usable_server_changes_no_folder(server: Path, tmp_path: Path) -> None:
    (server / "server.toml").write_text("no settings")
    write_backup("server", server, sorted(server.iterdir()), tmp_path / "backup")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Refusal, match="E_SETTINGS"):
        restore_server(tmp_path / "backup", tmp_path / "again")
    assert sorted(tmp_path.iterdir()) == before


def test_database_that_is_in_use_is_backed_up_whole(server: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(server / "mlflow.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE runs (name)")
        db.execute("INSERT INTO runs VALUES ('one')")
        db.commit()  # still in the write-ahead log only
        back_up_server(server, tmp_path / "backup")
    restore_backup("server", tmp_path / "backup", tmp_path / "again")
    assert not list((tmp_path / "again").glob("mlflow.db-*"))
    with closing(sqlite3.connect(tmp_path / "again" / "mlflow.db")) as db:
        assert db.execute("SELECT name FROM runs").fetchall() == [("one",)]


def test_damaged_database_is_named_and_no_backup_is_written(server: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(server / "mlflow.db")) as db:
        db.executescript("CREATE TABLE runs (id); INSERT INTO runs VALUES (zeroblob(60000));")
    whole = (server / "mlflow.db").read_bytes()
    (server / "mlflow.db").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refusal, match=r"E_BACKUP_DATABASE: .*mlflow\.db .*malformed"):
        back_up_server(server, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    (server / "mlflow.db").rename(tmp_path / "damaged")
    assert back_up_server(server, tmp_path / "backup")


def test_restored_clinic_has_its_answers_tokens_and_models_while_it_runs(clinic: Clinic, tmp_path: Path) -> None:
    secret = Tokens(clinic.folder).make("ward", "read", by="test")
    with clinic.store():  # the newest rows are in the write-ahead log
        count = back_up_clinic(clinic.folder, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    assert restore_backup("clinic", tmp_path / "backup", tmp_path / "again") == count
    (name,) = answers(clinic.folder)
    expected = {"clinic.toml", "format.json", "clinic.sqlite", f"answers/{name}/score.json", "models/one/model.json"}
    assert set(files(tmp_path / "again")) == expected | {"keys/page.key"}
    assert modes(tmp_path / "again") == {(True, 0o700), (False, 0o600)}
    assert answers(tmp_path / "again") == [name]
    assert Tokens(tmp_path / "again").caller(secret).name == "ward"


def test_nobody_is_signed_in_at_a_restored_clinic(clinic: Clinic, tmp_path: Path) -> None:
    secret = Tokens(clinic.folder).make("ward", "read", by="test")
    Tokens(clinic.folder).sign_in(secret, hours=8)
    assert Tokens(clinic.folder).open_sessions() == 1
    back_up_clinic(clinic.folder, tmp_path / "backup")
    done = CliRunner().invoke(app, ["clinic", "restore", str(tmp_path / "backup"), str(tmp_path / "again")])
    assert done.exit_code == 0
    assert Tokens(tmp_path / "again").open_sessions() == 0
    assert Tokens(tmp_path / "again").caller(secret).name == "ward"
    assert "accounts that were disabled" in done.output
    assert modes(tmp_path / "again") == {(True, 0o700), (False, 0o600)}


def test_scans_that_are_kept_with_their_answers_are_backed_up(clinic: Clinic, tmp_path: Path) -> None:
    (clinic.folder / "clinic.toml").write_text("[keep]\nuploads = true\n")
    back_up_clinic(clinic.folder, tmp_path / "backup")
    restore_backup("clinic", tmp_path / "backup", tmp_path / "again")
    assert (tmp_path / "again" / "scans" / "one" / "1.dcm").exists()


def test_answer_that_comes_during_a_backup_is_whole_or_not_in_it(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, copied, late = answers(clinic.folder), backup.copy_database, []

    def then_an_answer_comes(path: Path, work: Path) -> Path:
        copy = copied(path, work)
        late.append(answer(clinic))
        return copy

    monkeypatch.setattr(backup, "copy_database", then_an_answer_comes)
    back_up_clinic(clinic.folder, tmp_path / "backup")
    restore_backup("clinic", tmp_path / "backup", tmp_path / "again")
    assert answers(tmp_path / "again") == first
    assert all((tmp_path / "again" / "answers" / name / "score.json").exists() for name in [*first, *late])
    again = Clinic.open(tmp_path / "again")
    with again.store() as store:
        tidy(again, store, at_start=True)
    assert sorted(path.name for path in again.answers.iterdir()) == first


def test_existing_backup_is_not_replaced(site: Site, tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("yesterday's")
    with pytest.raises(Refusal, match="E_BACKUP_EXISTS"):
        back_up_site(site.folder, tmp_path / "backup")
    assert (tmp_path / "backup").read_text() == "yesterday's"


def test_folder_with_files_is_not_restored_to(site: Site, tmp_path: Path) -> None:
    back_up_site(site.folder, tmp_path / "backup")
    before = files(site.folder)
    with pytest.raises(Refusal, match="E_BACKUP_FOLDER"):
        restore_backup("site", tmp_path / "backup", site.folder)
    assert files(site.folder) == before


def test_second_backup_to_one_file_at_the_same_time_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def another_is_faster(written: Path, file: Path) -> None:
        monkeypatch.undo()
        back_up_site(site.folder, file)
        link(written, file)

    monkeypatch.setattr(os, "link", another_is_faster)
    with pytest.raises(Refusal, match="E_BACKUP_EXISTS"):
        back_up_site(site.folder, tmp_path / "backup")
    assert restore_backup("site", tmp_path / "backup", tmp_path / "again")
    assert not list(tmp_path.glob(".*"))


# Each waits in the middle, when keys are in a hidden folder beside its target already.
BACKS_UP = """
import sys, time
from pathlib import Path
from federation.system.backup import write_backup

def parts(folder):
    yield folder / "keys"
    print("waits", flush=True)
    time.sleep(600)

write_backup("site", Path(sys.argv[1]), parts(Path(sys.argv[1])), Path(sys.argv[2]))
"""
RESTORES = """
import sys, time
from pathlib import Path
from federation.system.backup import restore_backup

def wait(folder):
    print("waits", flush=True)
    time.sleep(600)

restore_backup("site", Path(sys.argv[1]), Path(sys.argv[2]), wait)
"""


@contextmanager
def waiting(program: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process of its own until it waits. It is killed with SIGKILL after the block."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "waits\n"
            yield process
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def hidden(folder: Path) -> set[Path]:
    return {path for path in folder.iterdir() if path.name.startswith(".")}


def test_what_a_killed_backup_or_restore_left_is_removed_by_the_next_one(site: Site, tmp_path: Path) -> None:
    back_up_site(site.folder, tmp_path / "monday")
    with waiting(BACKS_UP, site.folder, tmp_path / "tuesday"):
        pass
    assert hidden(tmp_path)
    back_up_site(site.folder, tmp_path / "wednesday")  # names of backups differ each time
    assert not hidden(tmp_path)
    with waiting(RESTORES, tmp_path / "monday", tmp_path / "again"):
        pass
    (left,) = hidden(tmp_path)
    assert [path.read_bytes() for path in left.rglob("pseudonym.key")] == [
        (site.folder / "keys" / "pseudonym.key").read_bytes()
    ]
    assert not (tmp_path / "again").exists()
    restore_site(tmp_path / "monday", tmp_path / "again")
    assert not hidden(tmp_path)
    assert not hidden(tmp_path / "again")


def test_backups_and_restores_at_the_same_time_leave_each_others_files(site: Site, tmp_path: Path) -> None:
    back_up_site(site.folder, tmp_path / "monday")
    with (
        waiting(BACKS_UP, site.folder, tmp_path / "tuesday"),
        waiting(RESTORES, tmp_path / "monday", tmp_path / "again"),
    ):
        working = {path: files(path) for path in hidden(tmp_path)}
        back_up_site(site.folder, tmp_path / "wednesday")
        restore_site(tmp_path / "monday", tmp_path / "elsewhere")
        assert {path: files(path) for path in hidden(tmp_path)} == working
        assert len(working) == 2
    back_up_site(site.folder, tmp_path / "thursday")
    assert not hidden(tmp_path)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]  # gzip's checksum


def add(name: str, kind: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=out, mode="w:gz") as new:
            for member in old:
                new.addfile(member, old.extractfile(member))
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            new.addfile(member)
        return out.getvalue()

    return change


def time(mtime: str) -> Callable[[bytes], bytes]:
    """Add a file with this time, as the archive's own format writes it."""

    def change(content: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=out, mode="w:gz") as new:
            for member in old:
                new.addfile(member, old.extractfile(member))
            member = tarfile.TarInfo("late")
            member.pax_headers = {"mtime": mtime}
            new.addfile(member)
        return out.getvalue()

    return change


def about(text: bytes) -> Callable[[bytes], bytes]:
    """Replace the first member, which says what the archive is."""

    def change(content: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=out, mode="w:gz") as new:
            for place, member in enumerate(old):
                if place == 0:
                    member.size = len(text)
                new.addfile(member, io.BytesIO(text) if place == 0 else old.extractfile(member))
        return out.getvalue()

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(cut, flip, lambda content: b"", lambda content: gzip.compress(b"no archive")),
        *(add("../outside", tarfile.REGTYPE), add("/tmp/outside", tarfile.REGTYPE), add("link", tarfile.SYMTYPE)),
        add("site.toml", tarfile.REGTYPE),  # twice
        *(time("1e300"), time("inf"), time("-inf"), time("nan"), time(str(2**63))),
        *(about(b""), about(b"[]"), about(b"{}"), about(b"\xff"), about(b"[" * 3000)),
    ],
)
def test_damaged_or_forged_backup_is_refused_and_leaves_nothing(
    site: Site, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    back_up_site(site.folder, tmp_path / "backup")
    (tmp_path / "changed").write_bytes(change((tmp_path / "backup").read_bytes()))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Refusal, match="E_BACKUP_FORMAT"):
        restore_backup("site", tmp_path / "changed", tmp_path / "again")
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_file_is_named_as_empty(tmp_path: Path) -> None:
    (tmp_path / "backup").touch()
    with pytest.raises(Refusal, match="E_BACKUP_FORMAT") as refused:
        restore_backup("site", tmp_path / "backup", tmp_path / "again")
    assert refused.value.private == "empty file"


def test_backup_of_a_server_is_not_restored_as_a_site(server: Path, tmp_path: Path) -> None:
    back_up_server(server, tmp_path / "backup")
    with pytest.raises(Refusal, match="E_BACKUP_FORMAT"):
        restore_backup("site", tmp_path / "backup", tmp_path / "again")


def test_commands_back_up_and_restore(site: Site, server: Path, clinic: Clinic, tmp_path: Path) -> None:
    runner = CliRunner()
    for kind, folder in (("node", site.folder), ("server", server), ("clinic", clinic.folder)):
        file, again = tmp_path / f"{kind}.backup", tmp_path / f"{kind}-again"
        assert runner.invoke(app, [kind, "backup", str(folder), str(file)]).exit_code == 0
        assert runner.invoke(app, [kind, "restore", str(file), str(again)]).exit_code == 0
        assert runner.invoke(app, [kind, "backup", str(again), str(again / "inside")]).exit_code == 2
