"""Tests of the commands `fedthorax node studies | approve-study | revoke-study`."""

import itertools
import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from federation.approval.studies import StudyApprovals, study_digest
from federation.cli.node import app as node
from federation.protocol.study_config import Study
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings

OWN = '[study]\nname = "own"\nrounds = 9\nsites = 3\nquorum = 2\n[evaluation]\nfine_tune = true\n'


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="hospital-a"))


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "study.toml"
    file.write_text(OWN)
    return file


def run(command: str, site: Site, *arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(node, [command, str(site.folder), *arguments], input=answer)


def verdicts(site: Site) -> dict[str, str]:
    found = json.loads(run("studies", site, "--json").stdout)
    return {each["presets"][0] if each["presets"] else each["study"]: each["verdict"] for each in found}


def test_studies_lists_the_presets(site: Site) -> None:
    assert verdicts(site)["fedprox"] == verdicts(site)["fedavg"] == "preset"
    assert verdicts(site)["baselines"] == "unknown"
    assert "fedprox" in run("studies", site).stdout


def test_study_file_is_shown_approved_and_revoked(site: Site, study_file: Path) -> None:
    shown = run("studies", site, "--show", str(study_file)).stdout
    assert "Fine tuning" in shown
    assert "unknown" in shown
    assert run("approve-study", site, str(study_file), answer="n\n").exit_code == 1
    assert run("approve-study", site, str(study_file), answer="y\n").exit_code == 0
    (digest,) = [name for name, verdict in verdicts(site).items() if verdict == "approved"]
    assert run("revoke-study", site, digest[:10]).exit_code == 0
    assert verdicts(site)[digest] == "revoked"


def test_presets_that_differ_only_in_name_and_seed_are_one_study(site: Site) -> None:
    found = json.loads(run("studies", site, "--json").stdout)
    assert ["fedavg", "masked"] in [each["presets"] for each in found]


def test_study_that_shows_single_models_is_approved_on_request(site: Site) -> None:
    shown = run("approve-study", site, "baselines", "--yes").stdout
    assert "Local models" in shown and "Leave one out" in shown
    assert verdicts(site)["baselines"] == "approved"
    assert verdicts(site)["fedavg"] == "preset", "the masked study is another one"


def test_preset_is_approved_by_name(site: Site) -> None:
    assert run("approve-study", site, "demo", "--yes").exit_code == 0
    assert verdicts(site)["demo"] == "approved"


def test_sizes_are_listed_and_a_study_at_a_size_is_shown_by_both_names(site: Site) -> None:
    assert verdicts(site)["standard-gpu"] == verdicts(site)["large-gpu"] == "preset"
    shown = json.loads(run("studies", site, "--show", "masked+standard-gpu", "--json").stdout)
    assert shown["verdict"] == "preset" and "masked+standard-gpu" in shown["presets"]
    assert not any("not measured" in line for line in shown["weakens"])
    assert "+" not in "".join(verdicts(site)), "the list has no row for each combination"


def test_study_at_a_size_is_approved_and_revoked_by_both_names(site: Site) -> None:
    assert run("approve-study", site, "quick+large-gpu", "--yes").exit_code == 0
    assert verdicts(site)["quick+large-gpu"] == "approved"
    assert run("revoke-study", site, "masked+large-gpu").exit_code == 0
    assert json.loads(run("studies", site, "--show", "fedavg+large-gpu", "--json").stdout)["verdict"] == "revoked"


def test_requested_study_is_listed_and_approved_by_digest(site: Site) -> None:
    asked = Study.model_validate({"study": {"name": "asked", "rounds": 7, "sites": 2, "quorum": 2}}).model_dump_json()
    digest = StudyApprovals(site).keep(asked)
    assert verdicts(site)[digest] == "unknown"
    assert run("approve-study", site, digest[:8], answer="y\n").exit_code == 0
    assert StudyApprovals(site).verdict(study_digest(asked), ()) == "approved"


def test_without_a_question_a_digest_must_be_whole(site: Site) -> None:
    """A server that chooses both studies needs few seconds to find two whose digests begin with the same digits."""
    asked = Study.model_validate({"study": {"name": "asked", "rounds": 7, "sites": 2, "quorum": 2}}).model_dump_json()
    digest = StudyApprovals(site).keep(asked)
    for digits in (8, 12, 63):
        result = run("approve-study", site, digest[:digits], "--yes")
        assert isinstance(result.exception, Refusal) and result.exception.code == "E_STUDY_DIGITS"
    assert run("approve-study", site, digest, "--yes").exit_code == 0
    assert StudyApprovals(site).verdict(digest, ()) == "approved"


def test_study_that_takes_the_place_of_the_shown_one_is_not_approved(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody reads, the server may send many studies: the shown one is then no longer kept for review."""
    approvals, names = StudyApprovals(site), itertools.count()
    shown, other = (
        Study.model_validate({"study": {"name": "asked", "rounds": rounds, "sites": 2, "quorum": 2}})
        for rounds in (7, 8)
    )
    file = tmp_path / "study.toml"
    digest = approvals.keep(shown.model_dump_json())

    def reading(*_: object, **__: object) -> bool:
        for _ in range(25):
            table = {"name": "more", "rounds": 100 + next(names), "sites": 2, "quorum": 2}
            approvals.keep(Study.model_validate({"study": table}).model_dump_json())
        file.write_text(file.read_text().replace("rounds = 7", "rounds = 8"))
        return True

    monkeypatch.setattr("typer.confirm", reading)
    for name in (digest[:8], str(file)):
        file.write_text("[study]\nname = 'asked'\nrounds = 7\nsites = 2\nquorum = 2\n")
        assert run("approve-study", site, name).exit_code == 0
        assert approvals.verdict(digest, ()) == "approved"
        assert approvals.verdict(study_digest(other.model_dump_json()), ()) == "unknown"


def test_control_characters_from_the_server_are_escaped(site: Site) -> None:
    content = json.loads(
        Study.model_validate({"study": {"name": "a", "rounds": 7, "sites": 2, "quorum": 2}}).model_dump_json()
    )
    content["strategy"]["options"] = {"\u001b[2J": 1.0}
    digest = StudyApprovals(site).keep(json.dumps(content))
    assert "\u001b[2J" not in run("studies", site, "--show", digest).stdout


@pytest.mark.parametrize(("name", "code"), [("nothing", "E_STUDY_UNKNOWN"), ("0" * 64, "E_STUDY_UNKNOWN")])
def test_unknown_study_is_refused(site: Site, name: str, code: str) -> None:
    result = run("approve-study", site, name, "--yes")
    assert isinstance(result.exception, Refusal)
    assert result.exception.code == code
