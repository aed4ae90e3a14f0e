"""`fedthorax adapt`, from the site's folder to a derived release, and its refusal without a trusted key."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.main import app
from models.adaptation import LEAST_SCANS
from models.refusal import Refusal
from models.release import load_release
from tests.attacks.cohort import make_hospital
from tests.helpers.adapting import add_unlabelled, make_keys, make_parent, tensors


@pytest.mark.slow
def test_release_is_adapted_on_the_command_line(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path / "site", patients={"train": 2, "validation": 2, "test": 2})
    add_unlabelled(hospital, tensors(LEAST_SCANS))
    keys = make_keys(tmp_path, "study")
    parent = make_parent(tmp_path / "parent", keys)
    asked = ["adapt", str(tmp_path / "site"), str(tmp_path / "parent"), "--out", str(tmp_path / "adapted")]
    assert isinstance(refused := CliRunner().invoke(app, asked).exception, Refusal)
    assert refused.code == "E_ADAPT_UNSIGNED" and "--signed-by" in refused.remedy
    done = CliRunner().invoke(app, [*asked, "--signed-by", str(keys[1]), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["adaptation"]["parent"] == parent.sha256
    assert told["operating_points"] == {}
    derived = load_release(tmp_path / "adapted", [tmp_path / "adapted.pub"])
    assert (derived.sha256, derived.signed_by) == (told["sha256"], told["key_sha256"])
