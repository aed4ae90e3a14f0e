"""Tests of the commands `fedthorax clinic ...`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from federation.cli.clinic import app as clinic_commands
from federation.cli.serve import serve
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import save_release
from pipeline.clinic.audit import write_record
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web.auth import Tokens
from tests.helpers.descriptions import description

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert run("init", tmp_path / "clinic").exit_code == 0
    return tmp_path / "clinic"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(clinic_commands, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, Refusal), result.output
    return result.exception.code


def release(tmp_path: Path, study: str) -> Path:
    save_release(tmp_path / study, build_network(SMALL, seed=1), description(study=study, network=SMALL))
    return tmp_path / study


def test_init_creates_a_clinic_once_with_default_settings(folder: Path) -> None:
    assert Clinic.open(folder).settings.server.port == 8765
    assert refused("init", folder) == "E_CLINIC_EXISTS"
    assert refused("tokens", folder / "nowhere") == "E_NO_CLINIC"


def test_token_is_shown_once_and_revoked_by_name(folder: Path) -> None:
    secret = done("token", folder, "ward", "--role", "read", "--days", "30").strip()
    assert Tokens(folder).caller(secret).role == "read"
    (listed,) = json.loads(done("tokens", folder, "--json"))
    assert (listed["name"], listed["role"], listed["revoked_at"]) == ("ward", "read", None)
    assert secret not in done("tokens", folder) + done("tokens", folder, "--json") + done("audit", folder, "--json")
    assert refused("token", folder, "ward") == "E_TOKEN_NAME"
    done("revoke", folder, "ward")
    assert json.loads(done("tokens", folder, "--json"))[0]["revoked_at"]
    with pytest.raises(Refusal, match="E_TOKEN"):
        Tokens(folder).caller(secret)
    assert run("token", folder, "desk", "--role", "boss").exit_code == 2


def test_models_are_added_shadowed_and_promoted(folder: Path, tmp_path: Path) -> None:
    first = json.loads(done("add-model", folder, release(tmp_path, "first"), "--live", "--json"))
    second = json.loads(done("add-model", folder, release(tmp_path, "second"), "--json"))
    assert (first["role"], second["role"]) == ("live", None)
    assert refused("add-model", folder, tmp_path / "nowhere") == "E_NO_MODEL"
    done("shadow", folder, second["sha256"][:8])
    assert "shadow" in done("models", folder)
    assert refused("promote", folder, second["sha256"]) == "E_NOT_SHADOWED"
    done("shadow", folder)
    done("promote", folder, second["sha256"], "--force")
    roles = {model["study"]: model["role"] for model in json.loads(done("models", folder, "--json"))}
    assert roles == {"first": None, "second": "live"}
    records = json.loads(done("audit", folder, "--json"))
    assert {record["who"] for record in records} == {"command line"}
    assert records[-1]["action"] == "promote"
    assert "promote" in done("audit", folder, "--limit", "1")
    assert json.loads(done("audit", folder, "--since", "2999-01-01", "--json")) == []


def test_export_of_the_audit_log_has_every_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.clinic.audit.AT_ONCE", 400)  # read in parts, which must meet
    with Clinic.open(folder).store() as store, store.database.transaction() as db:
        for number in range(1500):
            write_record(db, "test", "look", output={"Zoë": [number]})
    for chosen in (["--since", "2020-01-01", "--json"], ["--json"]):
        exported = run("audit", folder, *chosen)
        records = json.loads(exported.stdout)
        assert [record["number"] for record in records] == list(range(1, 1501))
        assert records[-1]["output"] == {"Zoë": [1499]} and "Zoë" in exported.stdout
        assert exported.stderr == ""
    whole = run("audit", folder, "--since", "2020-01-01")
    assert (whole.stdout.count("look"), whole.stderr) == (1500, "")


def test_limited_audit_log_shows_the_newest_and_says_what_is_left_out(folder: Path) -> None:
    with Clinic.open(folder).store() as store, store.database.transaction() as db:
        for number in range(1003):
            write_record(db, f"reader {number}", "look")
    table = run("audit", folder)
    assert (table.stdout.count("look"), "reader 1002" in table.stdout) == (1000, True)
    assert "Older records that are not shown: 3." in table.stderr and "--since" in table.stderr
    for chosen in (["--json"], ["--since", "2020-01-01", "--json"]):
        limited = run("audit", folder, "--limit", "2", *chosen)
        assert [record["who"] for record in json.loads(limited.stdout)] == ["reader 1001", "reader 1002"]
        assert "Older records that are not shown: 1001. Leave --limit out" in limited.stderr
    for limit in ("1003", "2000"):
        assert run("audit", folder, "--limit", limit, "--json").stderr == ""


def test_first_start_prints_a_sign_in_address_only_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_service(folder: Path, *, host: str | None, port: int | None, on_start: Callable[[Clinic], None]) -> None:
        on_start(Clinic.open(folder, host=host, port=port))

    monkeypatch.setattr("pipeline.clinic.service.run_service", run_service)
    with monkeypatch.context() as patch:
        patch.setattr("federation.cli.serve.goes_to_the_journal", lambda: True)
        serve(folder)
    assert "http://127.0.0.1:8765/" in (told := capsys.readouterr().err)
    assert "token=" not in told  # the journal stores its input, so it must not contain a token
    assert Tokens(folder).all() == []
    serve(folder)
    secret = capsys.readouterr().err.partition("http://127.0.0.1:8765/#token=")[2].split()[0]
    assert Tokens(folder).sign_in(secret, hours=1)[1].role == "admin"
    serve(folder)
    assert "token=" not in capsys.readouterr().err
