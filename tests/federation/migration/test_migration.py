"""Tests of moving a study's server: export to one file, import elsewhere. Both are complete or change nothing."""

import json
import resource
import shutil
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from mlflow import MlflowClient

from federation.enrolment import invitations as enrolment
from federation.enrolment.certificates import host_names, public_pem
from federation.enrolment.invitations import JoinRequest, accept, enrolled_patients, invite, restore_roster, revoke
from federation.enrolment.registry import holder, open_registry, registry
from federation.migration import age_file, archive, import_archive
from federation.migration.common import Moved
from federation.migration.export import export_server
from federation.migration.import_archive import import_server
from federation.protocol.masked_replies import SUMMED_OVER
from federation.protocol.study_config import Study
from federation.runs.run_folder import RunNote, read_note, write_note
from federation.runs.tracking import WHERE, Tracker, tracking_uri
from federation.runs.tracking_queue import SPOOL
from federation.server.start import init_server, start_server
from federation.strategy.checkpoint import State, load_latest, save
from federation.superlink.control import EXPORTING, IMPORTING, MOVED, ca_certificate, read_server_config
from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably
from tests.federation.runs.test_tracking import report
from tests.helpers.killed import killed_copies

pytestmark = pytest.mark.slow

STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 2, "quorum": 1}})
PASSPHRASE = "correct horse battery staple"


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def leave(folder: Path, file: Path, passphrase: str | None = None) -> Moved:
    return export_server(folder, file, passphrase=passphrase, say=lambda _: None, bar=bar)


def arrive(file: Path, folder: Path, **how: object) -> Moved:
    return import_server(file, folder, bar=bar, **how)


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refusal:
        act()
    assert refusal.value.remedy
    return refusal.value.code


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def admit(folder: Path, name: str, patients: int) -> tuple[str, bytes]:
    """Enrol a site. Returns its certificate and its public key."""
    key = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA384())
    _, _, invitation, secret = invite(folder, name, patients=patients).split("/")
    text = request.public_bytes(Encoding.PEM).decode()
    _, pem = accept(folder, JoinRequest(invitation=invitation, secret=secret, request=text))
    return pem, public_pem(key.public_key())


@pytest.fixture(autouse=True)
def known_nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The nodes that would be registered at the SuperLink."""
    nodes: dict[str, bytes] = {}
    monkeypatch.setattr(enrolment, "enrol", lambda folder, key, name: nodes.update({name: key}))
    monkeypatch.setattr(enrolment, "strike_off", lambda folder, name: nodes.pop(name, None))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return nodes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age_file, "WORK_FACTOR", 4)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A server with one site and a run folder without a study, so that MLflow is not needed."""
    folder = tmp_path / "old"
    init_server(folder, hosts=["old.example", "192.0.2.7"], port=free_port())
    admit(folder, "north", 80)
    (folder / "runs" / "notes").mkdir(parents=True)
    (folder / "runs" / "notes" / "a").write_text("text")
    return folder


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty experiment store, created once: this takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}", f"sqlite:///{path}").search_experiments()
    return path


def state(number: int) -> State:
    draw = np.random.default_rng(number)
    return State(
        round=number,
        arrays={"w": draw.normal(size=(5, 3)).astype(np.float32)},
        buffers={"n.running_var": np.ones(3, np.float32)},
        memory={"m_t/w": draw.normal(size=(5, 3))},
        history=[{"round": r, "ledger": {"north": {"lines": r, "head": "0a" * 32}}} for r in range(1, number + 1)],
        about={"study": "trial"},
    )


@pytest.fixture
def old(bare: Path, empty_database: Path) -> Path:
    """A server in the middle of a study."""
    shutil.copy(empty_database, bare / "mlflow.db")
    run = bare / "runs" / "trial-1"
    run.mkdir()
    (run / "study.json").write_text(STUDY.model_dump_json())
    write_note(run, RunNote(begun=datetime(2026, 1, 1, tzinfo=UTC), run_id=77))
    tracker = Tracker(bare, STUDY, "trial-1", lambda _: None)
    tracker.begin({"synthetic": "true"})
    for number in (1, 2):
        save(run / "checkpoints", state(number))
        tracker.log_round(report(number), {1: "north"})
    write_durably(run / "history.json", json.dumps(state(2).history).encode())
    (run / "release").mkdir()
    (run / "release" / "card.md").write_text("a card")
    tracker.register(run / "release", "ab" * 32)
    for name in ("releases/trial-1/model.json", "releases/trial-1.pub", "encoders/ct/encoder.json"):
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        (bare / name).write_text(name)
    (run / "checkpoints" / "killed.tmp").write_bytes(b"half")
    return bare


@pytest.fixture
def other_mlflow(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that sets MLFLOW_TRACKING_URI to an empty store."""

    def use() -> None:
        shutil.copy(empty_database, tmp_path / "other.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")

    return use


# --- the new server ----------------------------------------------------------------------------------------


def test_imported_server_has_all_runs_checkpoints_and_history(
    old: Path, tmp_path: Path, other_mlflow: Callable[[], None]
):
    before = files(old)
    left = leave(old, tmp_path / "archive.tar")
    other_mlflow()
    assert stat.S_IMODE((tmp_path / "archive.tar").stat().st_mode) == 0o600
    new = tmp_path / "new"
    came = arrive(tmp_path / "archive.tar", new, hosts=["new.example"], port=9443)
    assert came == Moved(left.sha256, left.bytes, "new.example:9443", left.contents)
    assert came.contents.runs == {"trial-1": 2}
    assert (came.contents.sites, came.contents.certificates) == (1, 1)
    assert came.contents.experiments["trial"].versions == 1

    after = files(new)
    for name, content in before.items():
        is_carried = name.startswith(("runs/", "releases/", "encoders/"))
        if is_carried and not name.endswith((".tmp", WHERE, "run.json")):
            assert after[name] == content, name
    assert {name for name in after if name.startswith(("releases/", "encoders/"))} == {
        "releases/trial-1/model.json",
        "releases/trial-1.pub",
        "encoders/ct/encoder.json",
    }
    assert not [name for name in after if name.endswith(".tmp")]
    loaded = load_latest(new / "runs" / "trial-1" / "checkpoints").state
    np.testing.assert_array_equal(loaded.arrays["w"], state(2).arrays["w"])
    np.testing.assert_array_equal(loaded.memory["m_t/w"], state(2).memory["m_t/w"])
    assert loaded.history[-1]["ledger"]["north"]["lines"] == 2
    assert read_note(new / "runs" / "trial-1").run_id == 0, "the new server's SuperLink assigns its own run ids"
    assert not (new / IMPORTING).exists()
    assert stat.S_IMODE(new.stat().st_mode) == 0o700
    assert set(after) & {"state.db", "logs", MOVED} == set()


def test_imported_run_continues_in_mlflow(old: Path, tmp_path: Path):
    leave(old, tmp_path / "archive.tar")
    new = tmp_path / "new"
    arrive(tmp_path / "archive.tar", new)
    where = json.loads((new / "runs" / "trial-1" / WHERE).read_text())
    assert where["uri"] == f"sqlite:///{new / 'mlflow.db'}"
    tracker = Tracker(new, STUDY, "trial-1", lambda _: None)
    tracker.begin({"synthetic": "true"})
    tracker.log_round(report(3), {1: "north"})
    client = MlflowClient(tracking_uri(new), tracking_uri(new))
    (run,) = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    assert run.info.run_id == where["run"]
    losses = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "north/train_loss")}
    assert losses == {1: 0.5, 2: 0.25, 3: 0.5 / 3}
    assert client.get_model_version_by_alias("trial", "candidate").tags["sha256"] == "ab" * 32
    assert list((new / "mlartifacts").rglob("card.md"))


def test_tracking_server_shared_by_both_is_not_changed(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(old, tmp_path / "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    leave(old, tmp_path / "archive.tar")
    arrive(tmp_path / "archive.tar", tmp_path / "new")
    client = MlflowClient(tracking_uri(tmp_path), tracking_uri(tmp_path))
    assert len(client.search_runs([client.get_experiment_by_name("trial").experiment_id])) == 1
    assert not (tmp_path / "new" / "mlflow.db").exists()


def test_site_certificates_and_revocations_are_kept(bare: Path, tmp_path: Path, known_nodes: dict[str, bytes]):
    south, south_key = admit(bare, "south", 120)
    gone, _ = admit(bare, "gone", 10)
    revoke(bare, "gone")
    authority = ca_certificate(bare).read_bytes()
    leave(bare, tmp_path / "archive.tar")
    new = tmp_path / "new"
    arrive(tmp_path / "archive.tar", new, hosts=["new.example"])
    assert ca_certificate(new).read_bytes() == authority
    assert enrolled_patients(new) == {"north": 80, "south": 120}
    known_nodes.clear()
    restore_roster(new)
    assert set(known_nodes) == {"north", "south"}
    assert known_nodes["south"] == south_key
    with registry(new) as db:
        holder(db, x509.load_pem_x509_certificate(south.encode())).judge()
        with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
            holder(db, x509.load_pem_x509_certificate(gone.encode())).judge()
    listed = x509.load_pem_x509_crl((new / "certificates" / "crl.pem").read_bytes())
    serial = x509.load_pem_x509_certificate(gone.encode()).serial_number
    assert [entry.serial_number for entry in listed] == [serial]
    admit(new, "west", 5)  # the CA still signs certificates


def test_new_server_gets_its_own_certificate_from_the_same_ca(bare: Path, tmp_path: Path):
    leave(bare, tmp_path / "archive.tar")
    arrive(tmp_path / "archive.tar", tmp_path / "new", hosts=["new.example", "2001:db8::1"])
    certificates = tmp_path / "new" / "certificates"
    assert host_names(certificates / "server.crt") == ["new.example", "2001:db8::1"]
    certificate = x509.load_pem_x509_certificate((certificates / "server.crt").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_certificate(bare).read_bytes()))
    for secret in ("certificates/server.key", "certificates/loopback.key", "superexec.secret"):
        assert (tmp_path / "new" / secret).read_bytes() != (bare / secret).read_bytes()


def test_without_new_hosts_the_server_keeps_its_address(bare: Path, tmp_path: Path):
    toml = bare / "server.toml"
    port = read_server_config(bare).port
    toml.write_text(toml.read_text().replace(f'"old.example:{port}"', '"study.example:443"'))  # nginx as reverse proxy
    before = read_server_config(bare)
    assert before.address == "study.example:443"
    leave(bare, tmp_path / "archive.tar")
    came = arrive(tmp_path / "archive.tar", tmp_path / "new")
    after = read_server_config(tmp_path / "new")
    assert came.address == after.address == before.address
    assert (after.port, after.host) == (before.port, before.host)
    assert host_names(tmp_path / "new" / "certificates" / "server.crt") == ["old.example", "192.0.2.7"]


def test_new_server_asks_the_same_hospitals_for_sums(bare: Path, tmp_path: Path):
    """Otherwise it would ask others, and the hospitals would refuse."""
    noted = '{"' + "a" * 64 + '": {"evaluate.test": ["east", "north", "west"]}}'
    (bare / SUMMED_OVER).write_text(noted)
    leave(bare, tmp_path / "archive.tar")
    arrive(tmp_path / "archive.tar", tmp_path / "new")
    assert (tmp_path / "new" / SUMMED_OVER).read_text() == noted


def test_encrypted_archive_is_imported_with_its_passphrase(bare: Path, tmp_path: Path):
    left = leave(bare, tmp_path / "sealed", PASSPHRASE)
    key = (bare / "certificates" / "ca.key").read_bytes()
    assert key not in (tmp_path / "sealed").read_bytes()
    for wrong in (None, "another passphrase"):
        assert refused(lambda wrong=wrong: arrive(tmp_path / "sealed", tmp_path / "new", passphrase=wrong)) == (
            "E_PASSPHRASE"
        )
    assert not (tmp_path / "new").exists()
    assert arrive(tmp_path / "sealed", tmp_path / "new", passphrase=PASSPHRASE).sha256 == left.sha256
    assert (tmp_path / "new" / "certificates" / "ca.key").read_bytes() == key


def test_server_without_sites_and_runs_can_be_moved(tmp_path: Path):
    init_server(tmp_path / "old", port=free_port())
    leave(tmp_path / "old", tmp_path / "archive.tar")
    arrive(tmp_path / "archive.tar", tmp_path / "new")
    assert enrolled_patients(tmp_path / "new") == {}
    assert read_server_config(tmp_path / "new").host == "127.0.0.1"


# --- the old server ----------------------------------------------------------------------------------------


def test_exported_server_refuses_further_use(bare: Path, tmp_path: Path):
    leave(bare, tmp_path / "archive.tar")
    for act in (
        lambda: start_server(bare),
        lambda: invite(bare, "west"),
        lambda: revoke(bare, "north"),
        lambda: leave(bare, tmp_path / "again.tar"),
    ):
        assert refused(act) == "E_SERVER_MOVED"
    assert "archive.tar" in (bare / MOVED).read_text()
    (bare / MOVED).unlink()  # the remedy if the archive was never imported
    assert enrolled_patients(bare) == {"north": 80}


def leave_beside(folder: Path) -> None:
    leave(folder, folder.with_name("archive.tar"))


def test_killed_export_leaves_no_two_servers_and_says_what_to_do(bare: Path, tmp_path: Path):
    """At every moment: a server with an archive does not start, and one without says that nothing has moved."""
    place = tmp_path / "place"
    place.mkdir()
    server = bare.rename(place / bare.name)
    states = set()
    for folder in killed_copies(f"{__name__}:leave_beside", server, tmp_path / "killed"):
        carried = folder.with_name("archive.tar")
        marks = {name for name in (EXPORTING, MOVED) if (folder / name).exists()}
        states.add((carried.exists(), *sorted(marks)))
        if marks:
            code = "E_EXPORT_UNFINISHED" if EXPORTING in marks else "E_SERVER_MOVED"
            for act in (lambda at=folder: start_server(at), lambda at=folder: leave(at, at.with_name("again.tar"))):
                assert refused(act) == code
        if carried.exists():
            arrive(carried, folder.with_name("new"))  # it is whole
        else:
            assert MOVED not in marks
            for name in marks:
                assert str(carried) in (folder / name).read_text()
                (folder / name).unlink()  # the remedy
            leave(folder, carried)
            assert refused(lambda at=folder: start_server(at)) == "E_SERVER_MOVED"
            # One killed before its working folder had a lock leaves it empty.
            assert {path.name for path in folder.parent.glob("*.unfinished/*")} <= {"new"}
    assert states >= {(False,), (False, EXPORTING), (True, EXPORTING), (True, MOVED)}


def test_mark_that_is_removed_during_the_export_leaves_no_archive(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without it the server could start before the archive is there."""

    def remove(*_: object) -> None:
        (bare / EXPORTING).unlink()

    monkeypatch.setattr(archive, "unpack", remove)
    before = files(tmp_path)
    assert refused(lambda: leave(bare, tmp_path / "archive.tar")) == "E_MOVE_WRITE"
    assert files(tmp_path) == before


def break_roster(folder: Path) -> None:
    (folder / "sites.sqlite").write_bytes(b"this is no database " * 100)


def break_authority(folder: Path) -> None:
    (folder / "certificates" / "ca.key").write_text("")


def add_link(folder: Path) -> None:
    (folder / "runs" / "link").symlink_to("/etc/passwd")


def add_long_name(folder: Path) -> None:
    (folder / "runs" / ("n" * 120)).write_text("x")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (break_roster, "E_SERVER_DATABASE"),
        (break_authority, "E_AUTHORITY"),
        (add_link, "E_MOVE_LINK"),
        (add_long_name, "E_ARCHIVE_NAME"),
        (lambda folder: (folder / "server.toml").unlink(), "E_NO_SERVER"),
        (lambda folder: (folder.parent / "archive.tar").write_text("mine"), "E_ARCHIVE_EXISTS"),
    ],
)
def test_refused_export_changes_nothing(bare: Path, tmp_path: Path, spoil: Callable, code: str):
    spoil(bare)
    before = files(tmp_path)
    assert refused(lambda: leave(bare, tmp_path / "archive.tar")) == code
    assert files(tmp_path) == before


def test_full_disk_leaves_no_archive_and_no_moved_marker(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "pack", full)
    before = files(tmp_path)
    assert refused(lambda: leave(bare, tmp_path / "archive.tar")) == "E_MOVE_WRITE"
    assert files(tmp_path) == before
    assert [path for path in tmp_path.iterdir() if path != bare] == []


def test_full_disk_is_not_called_a_damaged_roster(bare: Path, tmp_path: Path):
    """SQLite itself reports that it cannot write: here files may not grow beyond two of its pages."""
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 4096, limits[1]))
    try:
        code = refused(lambda: leave(bare, tmp_path / "archive.tar"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == "E_MOVE_WRITE"
    assert files(tmp_path) == before


def test_file_that_looks_like_a_checkpoint_is_carried_and_not_counted(old: Path, tmp_path: Path):
    (old / "runs" / "trial-1" / "checkpoints" / "round-xx.safetensors").write_bytes(b"")
    assert leave(old, tmp_path / "archive.tar").contents.runs == {"trial-1": 2}


def test_running_server_is_not_exported(bare: Path, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", read_server_config(bare).control_port))
        taken.listen()
        assert refused(lambda: leave(bare, tmp_path / "archive.tar")) == "E_SERVER_RUNS"
    assert not (bare / MOVED).exists()


def test_queued_metrics_are_uploaded_before_export(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_mlflow: Callable[[], None]
):
    """Metrics queued during an outage are uploaded first. If the upload fails, the export is refused."""
    run = old / "runs" / "trial-1"
    line = {"what": "figures", "values": {"late": 1.0}, "step": 2, "at_ms": 5, "tags": {}}
    (run / SPOOL).write_text(json.dumps(line) + "\n")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the connection was refused")

    with monkeypatch.context() as silent:
        silent.setattr(MlflowClient, "log_batch", refuse)  # only writing fails: later reads would succeed
        assert refused(lambda: leave(old, tmp_path / "archive.tar")) == "E_MLFLOW_SILENT"
    assert not (old / MOVED).exists()
    leave(old, tmp_path / "archive.tar")
    other_mlflow()
    assert not (run / SPOOL).exists()
    arrive(tmp_path / "archive.tar", tmp_path / "new")
    client = MlflowClient(tracking_uri(tmp_path / "new"), tracking_uri(tmp_path / "new"))
    (found,) = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    assert found.data.metrics["late"] == 1.0


# --- refused imports ----------------------------------------------------------------------------------------


@pytest.fixture
def carried(bare: Path, tmp_path: Path) -> Path:
    """The archive of the server `bare`."""
    leave(bare, tmp_path / "archive.tar")
    return tmp_path / "archive.tar"


def test_import_into_a_used_folder_is_refused(carried: Path, bare: Path, tmp_path: Path):
    before = files(bare)
    assert refused(lambda: arrive(carried, bare)) == "E_IMPORT_FOLDER"
    assert refused(lambda: arrive(carried, carried)) == "E_IMPORT_FOLDER"
    assert files(bare) == before


def test_refused_import_keeps_an_existing_empty_folder_empty(carried: Path, tmp_path: Path):
    new = tmp_path / "volume"
    new.mkdir()
    assert refused(lambda: arrive(carried, new, hosts=["no host name"])) == "E_HOST_NAME"
    assert refused(lambda: arrive(spoilt(carried, "certificates/ca.key", b"no key"), new)) == "E_AUTHORITY"
    assert list(new.iterdir()) == []
    arrive(carried, new)
    assert enrolled_patients(new) == {"north": 80}


def test_folder_of_a_killed_import_is_refused(carried: Path, tmp_path: Path):
    new = tmp_path / "new"
    arrive(carried, new)
    (new / IMPORTING).mkdir()
    assert refused(lambda: start_server(new)) == "E_IMPORT_UNFINISHED"
    assert refused(lambda: arrive(carried, new)) == "E_IMPORT_UNFINISHED"


def spoilt(carried: Path, name: str, content: bytes) -> Path:
    """A consistent archive in which one file has content that no export writes."""
    work = carried.parent / "spoilt"
    shutil.rmtree(work, ignore_errors=True)
    with carried.open("rb") as stream:
        told = archive.unpack(stream, work, lambda done, total: None)
    write_durably(work / name, content)
    sources = {entry.path: work / entry.path for entry in told.files}
    again = told.model_copy(update={"files": archive.entries(sources, lambda done, total: None)})
    with (carried.parent / "spoilt.tar").open("wb") as out:
        archive.pack(out, again, sources, lambda done, total: None)
    return carried.parent / "spoilt.tar"


def another_roster(carried: Path) -> Path:
    path = carried.parent / "roster"
    with open_registry(path):
        pass
    return spoilt(carried, "sites.sqlite", path.read_bytes())


def another_database(carried: Path) -> Path:
    path = carried.parent / "roster"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE sites (name TEXT)")
    db.close()
    return spoilt(carried, "sites.sqlite", path.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda file: write_durably(file, file.read_bytes()[:-600]), "E_ARCHIVE_DAMAGED"),
        (lambda file: write_durably(file, b"x" * 5000), "E_ARCHIVE_FORMAT"),
        (lambda file: spoilt(file, "certificates/ca.crt", b""), "E_AUTHORITY"),
        (lambda file: spoilt(file, "sites.sqlite", b"no database" * 100), "E_SERVER_DATABASE"),
        (another_database, "E_SERVER_DATABASE"),
        (another_roster, "E_MOVE_LOST"),
    ],
)
def test_refused_import_leaves_no_files(carried: Path, tmp_path: Path, spoil: Callable, code: str):
    file = spoil(carried) or carried
    before = set(tmp_path.iterdir())
    assert refused(lambda: arrive(file, tmp_path / "new")) == code
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "step", ["open_authority", "init_server", "publish_revocations", "contents_of", "load_settings"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_import_leaves_no_files_and_can_be_repeated(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
):
    real = getattr(import_archive, step)

    def after(*arguments: object, **how: object) -> None:
        real(*arguments, **how)
        raise error

    before = set(tmp_path.iterdir())
    monkeypatch.setattr(import_archive, step, after)
    with pytest.raises((Refusal, KeyboardInterrupt)) as end:
        arrive(carried, tmp_path / "new")
    assert isinstance(end.value, KeyboardInterrupt) or end.value.code == "E_MOVE_WRITE"
    assert set(tmp_path.iterdir()) == before
    monkeypatch.undo()
    arrive(carried, tmp_path / "new")
    assert enrolled_patients(tmp_path / "new") == {"north": 80}


def test_experiment_name_in_use_in_mlflow_stops_the_import(old: Path, tmp_path: Path, other_mlflow: Callable[[], None]):
    leave(old, tmp_path / "archive.tar")
    other_mlflow()
    client = MlflowClient(tracking_uri(tmp_path), tracking_uri(tmp_path))
    client.create_experiment("trial")
    assert refused(lambda: arrive(tmp_path / "archive.tar", tmp_path / "new")) == "E_MLFLOW_TAKEN"
    assert not (tmp_path / "new").exists()
    assert client.search_runs([client.get_experiment_by_name("trial").experiment_id]) == []
