"""The command line, with typical use and typical user errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import configs
from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from models.release import save_release
from tests.e2e.conftest import run_command
from tests.helpers.descriptions import description

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with random weights: its scores have no meaning."""
    folder = tmp_path_factory.mktemp("model")
    save_release(folder, build_network(NetworkSettings(), seed=1), description(study="random-weights"))
    return folder


@pytest.fixture(scope="module")
def north(small_hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of the small hospital. Do not modify it."""
    site = tmp_path_factory.mktemp("north") / "site"
    assert run_command("node", "init", site, "--from", small_hospital).returncode == 0
    return site


def refused(*arguments: str | Path) -> str:
    """Return the code of a refused command. The output must contain a remedy and no stack trace."""
    done = run_command(*arguments, "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    content = json.loads(done.stdout)["refused"]
    assert content["remedy"]
    return str(content["code"])


def test_real_thorax_ct_gets_a_score_and_a_page(real_data: Path, model: Path, tmp_path: Path) -> None:
    scan = real_data / "real-thorax-64" / "ct-64Dicom"
    done = run_command("score", scan, "--model", model, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer["probability"]) == set(LABELS)
    assert all(0 < p < 1 for p in answer["probability"].values())
    assert answer["notice"] == "Research use only. Not a medical device."
    page = (tmp_path / "score.html").read_text()
    assert "Not a medical device" in page
    assert str(scan) not in page + done.stdout


@pytest.mark.parametrize(
    ("place", "codes"),
    [
        ("abdomen-ct/example_ct_dicom", {"E_NO_LUNGS", "E_NOT_A_WHOLE_CHEST"}),
        ("awkward-dicom/dcm_qa_ct/GE_gantry_tilt_variable_spacing", {"E_TOO_FEW"}),
        ("awkward-dicom/lungmask", {"E_TOO_FEW"}),
        ("README.md", {"E_NO_IMAGES", "E_NOT_DICOM"}),
        ("nowhere", {"E_NO_IMAGES"}),
    ],
)
def test_input_that_is_not_a_chest_ct_is_refused(real_data: Path, model: Path, place: str, codes: set[str]) -> None:
    assert refused("score", real_data / place, "--model", model) in codes


def test_scoring_without_a_model_is_refused_with_a_remedy(real_data: Path, tmp_path: Path) -> None:
    scan = real_data / "real-thorax-64" / "ct-64Dicom"
    assert refused("score", scan, "--model", tmp_path) == "E_NO_MODEL"


def test_check_finds_exactly_the_planted_defects(north: Path, small_hospital: Path) -> None:
    done = run_command("node", "check", north, "--truth", small_hospital / "truth.json", "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)["verdict"]
    planted = json.loads((small_hospital / "truth.json").read_text())["defects"]
    assert verdict["planted"] == verdict["found"] == len(planted) > 16
    assert verdict["missed"] == verdict["unexpected"] == []
    assert verdict["precision"] == verdict["recall"] == 1.0


def test_second_init_of_a_site_is_refused_and_keeps_its_keys(north: Path, small_hospital: Path) -> None:
    key = (north / "keys" / "pseudonym.key").read_bytes()
    again = run_command("node", "init", north, "--from", small_hospital)
    assert again.returncode == 1
    assert "E_SITE_EXISTS" in again.stderr
    assert (north / "keys" / "pseudonym.key").read_bytes() == key


def spoil(site: Path, old: str, new: str) -> None:
    settings = site / "site.toml"
    text = settings.read_text()
    assert old in text
    settings.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda site: (site / "site.toml").unlink(), "E_NO_SITE"),
        (lambda site: spoil(site, "[ct]", "[ctt]"), "E_SETTINGS_KEY"),
        (lambda site: spoil(site, 'folder = "ct"', 'folder = "typo"'), "E_CT_FOLDER"),
        (lambda site: spoil(site, "laboratory.csv", "no-such.csv"), "E_TABLE_FILE"),
        (lambda site: spoil(site, "%Y-%m-%dT%H:%M", "%d/%m/%Y %H:%M"), "E_DATES"),
        (lambda site: spoil(site, 'name = "north"', "name = north"), "E_SETTINGS_SYNTAX"),
    ],
)
def test_mistake_in_site_toml_is_refused_with_its_code(
    north: Path, tmp_path: Path, change: Callable[[Path], None], code: str
) -> None:
    site = tmp_path / "site"
    shutil.copytree(north, site)
    change(site)
    assert refused("node", "ingest", site) == code


def test_wrong_usage_exits_with_2() -> None:
    assert run_command("node", "ingest").returncode == 2
    assert run_command("phantom", "out", "--patients", "-3").returncode == 2


def test_study_commands_without_a_server_are_refused(tmp_path: Path) -> None:
    assert refused("server", "sites", tmp_path) == "E_NO_SERVER"
    assert refused("study", "resume", "no-such-run", "--server", tmp_path) == "E_NO_SERVER"
    study = Path(configs.__file__).with_name("study.toml")
    assert refused("study", "run", study, "--server", tmp_path / "nowhere") == "E_NO_SERVER"
    assert not (tmp_path / "nowhere").exists()


def test_init_with_a_missing_certificate_creates_no_site(tmp_path: Path) -> None:
    done = run_command("node", "init", tmp_path / "site", "--ca", tmp_path / "missing.crt")
    assert done.returncode == 2
    assert not (tmp_path / "site").exists()
