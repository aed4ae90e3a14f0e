"""`node find` resolves a pseudonym on the hospital's own screen, also of a patient without a CT."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from federation.cli.main import app
from pipeline.site.folder import Site
from tests.helpers.own import CLEAN


@pytest.fixture
def site(small_hospital: Path, make_site: Callable[[Path, Path], Site], tmp_path: Path) -> Site:
    """A site with the records of all patients, and the CT of one."""
    folder = tmp_path / "hospital"
    shutil.copytree(small_hospital / "ct" / CLEAN[0], folder / "ct" / CLEAN[0])
    for name in ("laboratory.csv", "outcomes.csv", "site.toml"):
        shutil.copy(small_hospital / name, folder)
    return make_site(tmp_path / "site", folder)


def find(site: Site, pseudonym: str) -> list[str]:
    done = CliRunner().invoke(app, ["node", "find", str(site.folder), pseudonym])
    assert done.exit_code == 0
    return done.stdout.splitlines()


def test_patient_is_found_in_scans_and_records(site: Site) -> None:
    folder, *records = find(site, site.pseudonym(CLEAN[0]))[:3]
    assert folder.endswith(f"/ct/{CLEAN[0]}")
    assert records[0] == f"patient {CLEAN[0]}, in the file of laboratory"


def test_patient_without_a_ct_is_found_in_records(site: Site) -> None:
    assert f"patient {CLEAN[1]}, in the file of laboratory" in find(site, site.pseudonym(CLEAN[1]))


def test_unknown_pseudonym_is_a_failure(site: Site) -> None:
    done = CliRunner().invoke(app, ["node", "find", str(site.folder), "0" * 16])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "No patient was found" in done.stderr


def test_scans_are_found_although_a_record_cannot_be_read(site: Site, tmp_path: Path) -> None:
    (tmp_path / "hospital" / "laboratory.csv").unlink()
    assert find(site, site.pseudonym(CLEAN[0]))[0].endswith(f"/ct/{CLEAN[0]}")
