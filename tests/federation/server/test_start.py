"""Tests of a server's folder and of the command lines of its processes, without a running server."""

import logging
import socket
import sqlite3
import stat
import tomllib
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from federation.enrolment.certificates import valid_until
from federation.enrolment.invitations import invite
from federation.server import start as server
from federation.server.start import init_server, renew_server, start_server
from federation.superlink.control import ca_certificate, read_server_config
from federation.superlink.nodes import sites
from federation.system.process import free_port
from federation.system.process_group import Together
from federation.system.reasons import NOT_STARTED
from models.refusal import Refusal


class RecordedProcess:
    """A stand-in for a process: records its arguments and starts nothing."""

    started: list["RecordedProcess"]

    def __init__(self, name: str, command: list[str], *, log: Path, environment: dict[str, str]) -> None:
        self.name, self.command, self.log, self.environment = name, command, log, environment
        self.running = True
        self.started.append(self)

    def wait_until(self, ready: object, *, seconds: float) -> bool:
        return True

    def let_go(self) -> None:
        self.running = False

    stop = let_go

    def wait(self) -> int:
        return 3

    def __enter__(self) -> "RecordedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_server(tmp_path / "server", port=free_port())
    return tmp_path / "server"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RecordedProcess]:
    monkeypatch.setattr(server, "Process", RecordedProcess)
    RecordedProcess.started = []
    return RecordedProcess.started


def test_new_server_listens_only_on_loopback(tmp_path: Path) -> None:
    init_server(tmp_path / "server", port=9000)
    config = read_server_config(tmp_path / "server")
    assert (config.address, config.host, config.port) == ("localhost:9000", "127.0.0.1", 9000)
    assert (config.socket, config.simulated_sites) == (None, 0)
    assert config.control_port == config.superlink_port != 9000


@pytest.mark.parametrize("address", ['a"\nsocket = "/tmp/s', "a\\", "a\x7f\x00", "a\u00e9\U0001f600"])
def test_address_cannot_add_lines_to_the_settings(tmp_path: Path, address: str) -> None:
    init_server(tmp_path / "server", address=address)
    written = tomllib.loads((tmp_path / "server" / "server.toml").read_text(encoding="utf-8"))
    assert written.pop("address") == address
    assert set(written) == {"host", "port", "superlink_port", "monitoring_port"}


@pytest.mark.parametrize(
    ("hosts", "address"),
    [(["study.example", "192.0.2.7"], "study.example:8443"), (["2001:db8::1"], "[2001:db8::1]:8443")],
)
def test_server_with_a_host_name_listens_on_all_interfaces(tmp_path: Path, hosts: list[str], address: str) -> None:
    init_server(tmp_path / "server", hosts=hosts)
    config = read_server_config(tmp_path / "server")
    assert (config.address, config.host) == (address, "0.0.0.0")


def test_server_folder_is_private_to_its_owner(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secret = folder / "superexec.secret"
    assert (stat.S_IMODE(secret.stat().st_mode), len(secret.read_bytes())) == (0o600, 64)


def test_a_second_init_changes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(Refusal, match="E_EXISTS"):
        init_server(folder, hosts=["study.example.org"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("port = 0", "E_SETTINGS_KEY: server.toml .*port"),
        ("port = 8443\nhots = 'x'", "E_SETTINGS_KEY: server.toml .*hots"),
        ("", "E_SETTINGS_KEY: server.toml .*port"),
        ("port = ", "E_SETTINGS_SYNTAX: server.toml"),
        ("port = 'a'", "E_SETTINGS_KEY: server.toml .*port"),
        ("port = 8443\naddress = 'https://study.example'", "E_SETTINGS_KEY: server.toml .*address"),
    ],
)
def test_invalid_setting_is_refused_by_name(folder: Path, text: str, code: str) -> None:
    (folder / "server.toml").write_text(text)
    with pytest.raises(Refusal, match=code) as refused:
        start_server(folder)
    assert str(folder) not in str(refused.value)


def test_a_folder_without_a_server_is_refused(tmp_path: Path) -> None:
    for act in (start_server, sites, renew_server):
        with pytest.raises(Refusal, match="E_NO_SERVER"):
            act(tmp_path)


@pytest.mark.parametrize("taken", ["port", "superlink_port"])
def test_port_in_use_is_refused_before_any_process_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    monkeypatch.setattr(server, "Process", None)
    port = getattr(read_server_config(folder), taken)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(Refusal, match=f"E_PORT_IN_USE: .* {port}"):
            start_server(folder)


@pytest.mark.parametrize("database", ["sites.sqlite", "state.db"])
def test_damaged_database_is_refused_before_any_process_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setattr(server, "Process", None)
    with closing(sqlite3.connect(folder / database)) as db:
        db.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(20000));")
    content = bytearray((folder / database).read_bytes())
    content[5000:9000] = b"x" * 4000
    (folder / database).write_bytes(content)
    with pytest.raises(Refusal, match=f"E_SERVER_DATABASE: .*{database}"):
        start_server(folder)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda content: content[: len(content) // 2],
    "not text": lambda content: bytes(range(256)),
    "another file": lambda content: b"{}",
    "one character changed": lambda content: content[:150] + bytes([content[150] ^ 1]) + content[151:],
}


@pytest.mark.parametrize("damage", ["gone", "a folder", *DAMAGED])
@pytest.mark.parametrize("file", ["ca.crt", "server.crt", "server.key", "loopback.crt", "loopback.key"])
def test_damaged_certificate_is_refused_before_any_process_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, damage: str
) -> None:
    monkeypatch.setattr(server, "Process", None)
    path = folder / "certificates" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage in DAMAGED:
        path.write_bytes(DAMAGED[damage](content))
    with pytest.raises(Refusal, match=f"E_CERTIFICATE_FILE: .*{Path(file).stem}"):
        start_server(folder)
    commands: dict[str, Callable[[], object]] = {
        "ca.crt": lambda: invite(folder, "north"),
        "server.crt": lambda: renew_server(folder),
        "server.key": lambda: renew_server(folder),
        "loopback.crt": lambda: sites(folder),
    }
    if file in commands:
        with pytest.raises(Refusal, match=f"E_CERTIFICATE_FILE: .*{Path(file).stem}"):
            commands[file]()


def test_key_of_another_certificate_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "Process", None)
    certificates = folder / "certificates"
    (certificates / "server.key").write_bytes((certificates / "loopback.key").read_bytes())
    with pytest.raises(Refusal, match=r"E_CERTIFICATE_FILE: .*server\.key"):
        start_server(folder)


def test_an_expired_certificate_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "Process", None)
    for file, holder in (("ca.crt", "the study's authority"), ("server.crt", "the server")):
        monkeypatch.setattr(
            server,
            "valid_until",
            lambda path, file=file: datetime(2020 if path.name == file else 2099, 1, 2, tzinfo=UTC),
        )
        with pytest.raises(Refusal, match=f"E_CERTIFICATE_EXPIRED: .*{holder} .* until 2020-01-02"):
            start_server(folder)


def test_certificate_that_expires_soon_is_logged(
    folder: Path, recorded: list[RecordedProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        start_server(folder)
    assert not caplog.text
    monkeypatch.setattr(server, "valid_until", lambda path: datetime.now(UTC) + timedelta(days=20))
    with caplog.at_level(logging.WARNING):
        start_server(folder)
    assert "W_CERTIFICATE_ENDS" in caplog.text


def test_renewal_replaces_the_server_certificate(folder: Path) -> None:
    before = (folder / "certificates" / "server.crt").read_bytes()
    until = renew_server(folder)
    assert until == valid_until(ca_certificate(folder).with_name("server.crt"))
    assert (folder / "certificates" / "server.crt").read_bytes() != before


def test_only_the_ingress_listens_on_a_public_address(folder: Path, recorded: list[RecordedProcess]) -> None:
    settings = folder / "server.toml"
    settings.write_text(settings.read_text().replace('host = "127.0.0.1"', 'host = "0.0.0.0"'))
    config = read_server_config(folder)
    start_server(folder)
    superlink, superexec, door = recorded
    assert {
        "--host=127.0.0.1",
        f"--port={config.superlink_port}",
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--isolation=process",
        f"--superexec-auth-secret-file={folder}/superexec.secret",
        f"--database={folder}/state.db",
        f"--ssl-certfile={folder}/certificates/loopback.crt",
    } <= set(superlink.command)
    assert "--insecure" not in {*superlink.command, *superexec.command}
    assert f"--superexec-auth-secret-file={folder}/superexec.secret" in superexec.command
    assert f"--runtime-api-address=127.0.0.1:{config.superlink_port}" in superexec.command
    assert "--allow-runtime-dependency-installation" not in superexec.command
    for process in (superlink, superexec):
        assert process.environment["FEDTHORAX_SERVER_DIR"] == str(folder)
        assert process.environment["FLWR_HOME"] == f"{folder}/flower_home"
    assert door.command[-2:] == ["federation.ingress", str(folder)]


def test_no_secret_is_on_a_command_line(folder: Path, recorded: list[RecordedProcess]) -> None:
    start_server(folder)
    secret = (folder / "superexec.secret").read_text()
    for process in recorded:
        assert not any(secret in argument for argument in process.command)
        assert secret not in process.environment.values()


def test_all_processes_end_when_one_ends(folder: Path, recorded: list[RecordedProcess]) -> None:
    running = start_server(folder)
    assert running.running
    recorded[1].running = False
    assert not running.running
    assert running.wait() == 3
    assert not any(process.running for process in recorded)


def test_process_that_does_not_start_stops_the_others(
    folder: Path, recorded: list[RecordedProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_until(process: RecordedProcess, ready: object, *, seconds: float) -> None:
        if "federation.ingress" in process.command:
            raise Refusal(NOT_STARTED, process=process.name, log="x")

    monkeypatch.setattr(RecordedProcess, "wait_until", wait_until)
    with pytest.raises(Refusal, match="E_NOT_STARTED"):
        start_server(folder)
    assert len(recorded) == 3
    assert not any(process.running for process in recorded[:2])


def test_leaving_the_context_stops_all_processes(folder: Path, recorded: list[RecordedProcess]) -> None:
    with start_server(folder) as running:
        assert isinstance(running, Together)
    assert not any(process.running for process in recorded)
