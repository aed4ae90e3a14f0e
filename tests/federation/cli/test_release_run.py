"""Tests of `fedthorax study release` and `score --signed-by`, and of the keys that `score` trusts."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from federation.cli.main import app
from federation.cli.trust import KEYS_VARIABLE, trusted_keys
from federation.comparison import signed_release as studies
from models.network import build_network
from models.refusal import Refusal
from models.release import save_release
from models.signature import fingerprint, new_private_key, public_key, sign
from tests.federation.comparison.test_signed_release import RUN, SMALL, make_run
from tests.helpers.descriptions import description


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two public keys. The private keys are in its parent folder."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("north", "south"):
        private = tmp_path / f"{name}.key"
        private.write_bytes(new_private_key())
        (folder / f"{name}.pub").write_bytes(public_key(private))
    (folder / "README").write_text("whose keys these are")
    return folder


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_keys_given_as_arguments_override_the_key_folder(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert trusted_keys([]) == []
    monkeypatch.setenv(KEYS_VARIABLE, str(keys))
    assert [key.name for key in trusted_keys([])] == ["north.pub", "south.pub"]
    assert trusted_keys([keys / "south.pub"]) == [keys / "south.pub"]


@pytest.mark.parametrize("place", ["empty", "nowhere"])
def test_key_folder_without_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path / place))
    with pytest.raises(Refusal, match="E_TRUSTED_KEY"):
        trusted_keys([])


@pytest.mark.slow
def test_score_reports_the_signer_and_refuses_untrusted_signatures(
    keys: Path, small_hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = json.loads((small_hospital / "truth.json").read_text())
    scan = small_hospital / "ct" / next(p["patient_id"] for p in truth["patients"] if p["defect"] is None)
    model = tmp_path / "model"
    points = {"severe": {"rule_out": 0.001, "rule_in": 0.999}}
    save_release(model, build_network(SMALL, seed=3), description(network=SMALL, operating_points=points))
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)

    def score(*more: str | Path) -> Any:
        return run("score", scan, "--model", model, "--json", *more)

    assert json.loads(score().stdout)["model"]["signature"] == "signature not checked"
    unsigned = score("--signed-by", keys / "south.pub").exception
    assert isinstance(unsigned, Refusal) and unsigned.code == "E_NOT_SIGNED"

    sign(model, tmp_path / "south.key")
    monkeypatch.setenv(KEYS_VARIABLE, str(keys))
    answer = json.loads(score().stdout)
    assert answer["model"]["signature"] == f"signed by {fingerprint(keys / 'south.pub')}"
    rule_in = answer["operating_points"]["severe"]["rule_in"]
    assert (rule_in["threshold"], rule_in["met"], rule_in["evidence"]) == (0.999, False, None)
    assert "patients behind this threshold is not recorded" in rule_in["says"]
    other = score("--signed-by", keys / "north.pub").exception
    assert isinstance(other, Refusal) and other.code == "E_SIGNATURE"

    table = run("score", scan, "--model", model)
    assert "0.1 %" in table.stdout and "99.9 %" in table.stdout
    assert "signed by" in table.stderr


def test_release_reports_folder_and_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    monkeypatch.setattr(studies, "mark_released", lambda *_: "7")  # MLflow is tested in tests/federation/comparison
    flagged = run("study", "release", RUN, "--server", tmp_path).exception
    assert isinstance(flagged, Refusal) and "W_SHORTCUT_TAGS" in str(flagged)
    done = run("study", "release", RUN, "--server", tmp_path, "--reason", "known", "--json")
    told = json.loads(done.stdout)
    assert told["key_sha256"] == fingerprint(Path(told["public_key"]))
    assert told["mlflow_version"] == "7"
    assert "because: known" in (Path(told["release"]) / "card.md").read_text()
