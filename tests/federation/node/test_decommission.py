"""A node ends for good: nothing of a patient and no key is left, and what is kept proves what was done."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.approval import fab
from federation.approval.approvals import Approvals
from federation.approval.encoders import EncoderApprovals
from federation.cli.main import app
from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file, read_lines, verify
from federation.node.decommission import decommission
from federation.secure_aggregation.store import Store, witness_folder
from models.refusal import Refusal
from pipeline.cohort.store import Cohort
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from tests.canary.scanner import Planted, Scanner
from tests.federation.gateway.messages import site_of_thirty
from tests.helpers.encoders import small_encoder

NAME, IDENTIFIER = "Bergqvist^Sylvi", "4401728395566"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with a cohort, keys, a ledger, decisions, a patient's name in a log, and an export beside site.toml."""
    site = site_of_thirty(tmp_path)
    Ledger(ledger_file(site)).append(Entry("run", 1, "out", "train", 1, "a" * 64, "", "", PASSED))
    Approvals(site).approve(fab.build(fab.APP), by="A.", note="seen")
    small_encoder(tmp_path / "encoder", Preprocessing())
    EncoderApprovals(site).approve(tmp_path / "encoder", by="A.")
    site.logs.mkdir(exist_ok=True)
    (site.logs / "failures.log").write_text(f"/export/{NAME}/{IDENTIFIER}.dcm\n")
    for name in ("results/ab/ab1-2.hl7", "fhir/resources.sqlite", "omop/events.ndjson"):
        (site.folder / name).parent.mkdir(parents=True)
        (site.folder / name).write_text(f"{NAME} {IDENTIFIER}")
    Store(site.folder / "gateway" / "secagg", witness_folder(site.folder)).close()
    return site


def everything(folder: Path) -> bytes:
    return b"\n".join(
        str(path.relative_to(folder)).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file()
    )


def test_nothing_of_a_patient_is_left_or_kept(site: Site, tmp_path: Path) -> None:
    with Cohort(site) as cohort:
        pseudonyms = tuple(patient.pseudonym for patient in cohort.patients() if len(patient.pseudonym) > 12)
    key = (site.folder / "keys" / "pseudonym.key").read_bytes()
    planted = Scanner([Planted("it", (NAME, IDENTIFIER, key.hex(), *pseudonyms))])
    assert {hit.planted for hit in planted.scan(everything(site.folder))} == {"it"}  # control
    decommission(site, tmp_path / "keep")
    assert not site.folder.exists() and not witness_folder(site.folder).exists()
    assert planted.scan(everything(tmp_path / "keep")) == []


def test_what_is_kept_proves_the_deletion(site: Site, tmp_path: Path) -> None:
    before = {path.name for path in site.folder.iterdir() if path.is_dir()}
    parts, others = decommission(site, keep := tmp_path / "keep")
    lines = list(read_lines(keep / "ledger" / "ledger.jsonl"))
    assert [line.kind for line in lines] == ["train", "approval", "encoder approval", "node decommissioned"]
    proof = json.loads((keep / "deletion.json").read_text())
    assert proof["nothing_left"] is True and others == proof["other_files_left"] == 0
    assert {part["name"].split("/")[0] for part in proof["deleted"]} >= before
    assert (
        lines[-1].digest == proof["deleted_sha256"] == hashlib.sha256(json.dumps(proof["deleted"]).encode()).hexdigest()
    )
    head = verify(keep / "ledger" / "ledger.jsonl")
    assert proof["ledger"] == {"lines": head.lines, "sha256": head.sha256}
    assert sum(part.files for part in parts) == sum(part["files"] for part in proof["deleted"]) > 0
    for kind in ("apps", "encoders"):
        assert json.loads((keep / "approvals" / f"{kind}.json").read_text())["decisions"][0]["by"] == "A."


def test_files_of_the_hospital_are_left(site: Site, tmp_path: Path) -> None:
    """Also those that a link in the site's folder leads to."""
    (elsewhere := tmp_path / "exports").mkdir()
    (elsewhere / "scan.dcm").write_text("a scan")
    (site.folder / "pacs").symlink_to(elsewhere)
    (site.folder / "ct").mkdir()
    (site.folder / "ct" / "scan.dcm").write_text("a scan")
    (site.folder / "laboratory.csv").write_text("rows")
    (site.folder / "results" / "export.hl7").write_text("MSH")
    parts, others = decommission(site, tmp_path / "keep")
    assert others == 3 and "pacs" in {part.name for part in parts}
    assert sorted(path.name for path in site.folder.iterdir()) == ["ct", "laboratory.csv", "results"]
    assert [path.name for path in (site.folder / "results").iterdir()] == ["export.hl7"]
    assert (site.folder / "ct" / "scan.dcm").exists() and (elsewhere / "scan.dcm").exists()


def test_running_node_is_not_deleted(site: Site, tmp_path: Path) -> None:
    with (site.logs / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refusal, match="E_NODE_RUNNING"):
            decommission(site, tmp_path / "keep")
    assert site.node_key.exists() and not (tmp_path / "keep").exists()


def exists(site: Site) -> Path:
    (folder := site.folder.parent / "there").mkdir()
    return folder


@pytest.mark.parametrize("place", [exists, lambda site: site.folder / "keep", lambda site: site.folder.parent])
def test_unsuitable_folder_for_what_is_kept_deletes_nothing(site: Site, place: Callable[[Site], Path]) -> None:
    with pytest.raises(Refusal, match="E_KEEP_FOLDER"):
        decommission(site, place(site))
    assert site.node_key.exists()


def test_changed_ledger_stops_the_deletion(site: Site, tmp_path: Path) -> None:
    text = ledger_file(site).read_text()
    ledger_file(site).write_text(text.replace('"bytes":1,', '"bytes":2,'))
    with pytest.raises(Refusal, match="E_LEDGER_BROKEN"):
        decommission(site, tmp_path / "keep")
    assert (site.folder / "cohort").exists()


def test_command_asks_for_the_sites_name(site: Site, tmp_path: Path) -> None:
    arguments = ["node", "decommission", str(site.folder), "--keep", str(tmp_path / "keep")]
    assert CliRunner().invoke(app, arguments, input="another\n").exit_code == 2
    assert site.folder.exists()
    assert CliRunner().invoke(app, arguments, input=f"{site.name}\n").exit_code == 0
    assert not site.folder.exists()
    shutil.rmtree(tmp_path / "keep")
