"""The import commands, on a synthetic data set with the published layout."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.importing import app
from models.refusal import Refusal
from tests.helpers.volume_images import image, save


@pytest.fixture
def stoic(tmp_path: Path) -> Path:
    folder = tmp_path / "stoic"
    (folder / "metadata").mkdir(parents=True)
    rows = [f"{number},1,{number % 2}" for number in range(1, 8)]
    (folder / "metadata" / "reference.csv").write_text("\n".join(["PatientID,probCOVID,probSevere", *rows]))
    for number in range(1, 7):
        save(image([[[0]]]), folder / "data" / "mha" / f"{number}.mha")
    return folder


def test_sites_are_created_with_both_keys_and_reported(stoic: Path, tmp_path: Path) -> None:
    out = tmp_path / "sites"
    result = CliRunner().invoke(app, ["stoic2021", str(stoic), str(out), "--sites", "2", "--split", "skewed", "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["sites"] == {"stoic2021-1": 3, "stoic2021-2": 3}
    assert [(row["code"], row["count"]) for row in told["left_out"]] == [("E_NO_SCAN", 1)]
    for name in told["sites"]:
        assert {path.name for path in (out / name / "keys").iterdir()} >= {"pseudonym.key", "node", "node.pub"}


def test_text_output_contains_tables(stoic: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["stoic2021", str(stoic), str(tmp_path / "sites")])
    assert result.exit_code == 0
    for text in ("stoic2021-3", "E_NO_SCAN"):
        assert text in result.stdout


@pytest.mark.parametrize("command", ["nccid", "mosmed"])
def test_data_set_with_another_layout_is_refused(command: str, stoic: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, str(stoic), str(tmp_path / "sites")])
    assert isinstance(result.exception, Refusal)
    assert result.exception.code == "E_LAYOUT"
