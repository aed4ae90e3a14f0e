"""A hospital with chest CT only, from `node init` to `node studies`: each command says that it has no labels."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from federation.cli.main import app
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from tests.helpers.own import CLEAN

SAYS = "This site has chest CT only."


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(app, ["node", *arguments])
    assert done.exit_code in (0, 1), done.output
    return done


@pytest.fixture
def folder(small_hospital: Path, tmp_path: Path, in_this_process: None) -> Path:
    """The folder of a site that `node init` made, with the CT of three patients."""
    for patient in CLEAN[:3]:
        shutil.copytree(small_hospital / "ct" / patient, tmp_path / "scans" / "ct" / patient)
    site = tmp_path / "site"
    made = run("init", str(site), "--from", str(tmp_path / "scans"), "--name", "ct-ward", "--ct-only")
    assert made.exit_code == 0
    assert SAYS in made.output and "fedthorax adapt" in made.output
    return site


def test_hospital_with_chest_ct_only_is_checked_ingested_and_shown(folder: Path) -> None:
    site = Site.open(folder)
    assert (site.settings.has_labels, site.name) == (False, "ct-ward")
    checked = json.loads(run("check", str(folder), "--json").stdout)
    lines = {line["name"]: line for line in checked["lines"]}
    assert lines["labels"]["status"] == lines["size"]["status"] == "skip"
    assert "no labels: chest CT only" in lines["site.toml"]["says"]
    met = {rule["code"]: rule["severity"] for rule in checked["contract"] if rule["met"]}
    assert met.pop("W_CT_ONLY") == "informs"
    assert not {"W_LABEL_YIELD", "W_IDENTIFIERS_DIFFER", "W_FEW_IN_SPLIT", "W_OUTCOME_YIELD"} & set(met)
    page = (folder / "check.html").read_text()
    assert "W_CT_ONLY" in page and "&lt;10" in page
    assert not any(site.pseudonym(patient) in page for patient in CLEAN)

    ingested = json.loads(run("ingest", str(folder), "--json").stdout)
    assert (ingested["has_labels"], ingested["patients"], ingested["unlabelled"]) == (False, 0, 3)
    assert ingested["findings"] == [], "a patient without a label is not refused here"
    (patients,) = [part for part in ingested["waterfall"]["parts"][-1]["parts"] if part["key"] == "patients"]
    assert [(part["key"], part["count"]) for part in patients["parts"]] == [("unlabelled", 3)]
    with Cohort(site) as cohort:
        assert {row.pseudonym for row in cohort.unlabelled()} == {site.pseudonym(patient) for patient in CLEAN[:3]}
    assert SAYS in run("ingest", str(folder)).output

    status = json.loads(run("status", str(folder), "--json").stdout)
    assert (status["has_labels"], status["patients"], status["unlabelled"]) == (False, 0, 3)
    assert "chest CT only" in run("status", str(folder)).output
    listed = json.loads(run("studies", str(folder), "--json").stdout)
    assert {each["refused_with"] for each in listed} == {"E_SITE_UNLABELLED"}
    assert SAYS in run("studies", str(folder)).output
    assert SAYS in run("approve-study", str(folder), "demo", "--yes").output
    assert run("find", str(folder), site.pseudonym(CLEAN[0])).stdout.splitlines()[0].endswith(f"/ct/{CLEAN[0]}")


def test_site_that_gets_labels_later_becomes_a_usual_site(folder: Path, small_hospital: Path) -> None:
    """Its patients keep pseudonyms and scans, and move to the labelled ones."""
    run("ingest", str(folder))
    usual = (
        (small_hospital / "site.toml").read_text().replace("[site]\n", f'[site]\nsource = "{folder.parent}/scans"\n')
    )
    (folder / "site.toml").write_text(usual)
    for name in ("laboratory.csv", "outcomes.csv"):
        shutil.copy(small_hospital / name, folder.parent / "scans")
    ingested = json.loads(run("ingest", str(folder), "--json").stdout)
    assert (ingested["has_labels"], ingested["patients"], ingested["unlabelled"]) == (True, 3, 0)
    assert ingested["examined_now"] == 0
