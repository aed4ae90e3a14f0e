"""Masked rounds and questions with real processes: a server, four nodes with gateways, a killed node, a killed server.

Four hospitals, because the threshold of three is all of them, and a study of three loses a round with each dropout.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.protocol.metric_allowlist import LABELS
from federation.protocol.patient_counts import count_patients
from federation.system.process import free_port
from models.release import load_release
from pipeline.site.folder import Site
from tests.e2e.conftest import Command, allow, enter, for_few_patients, ingest, ok, run_command
from tests.e2e.test_federation import Federation, run_name

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]  # some six minutes
QUESTIONS = ("features of training patients", "calibration", "test")
NAMES = ("east", "north", "south", "west")
STUDY = """
[study]
name = "end-to-end"
rounds = 4
local_epochs = 1
sites = 4
quorum = 3
wait_s = 90
round_timeout_s = 180
synthetic = true

[strategy]
name = "FedAvg"

[aggregation]
secure = true

[network]
architecture = "resnet10"
widen_factor = 0.125
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    ok("phantom", folder / "hospitals", "--sites", "4", "--patients", "16", "--no-defects", "--anatomy", "template")
    ok("server", "init", folder / "server", "--port", str(free_port()))
    (folder / "study.toml").write_text(STUDY)
    federation = Federation(folder, start("--help"), {}, start)
    federation.start_server()
    for source, name in zip(sorted((folder / "hospitals").iterdir()), NAMES, strict=True):
        site = folder / "sites" / name
        ok("node", "init", site, "--from", source)
        for_few_patients(site)
        settings = site / "site.toml"
        text = settings.read_text()
        settings.write_text(text.replace("[gateway]\n", "[gateway]\nrequire_secure_aggregation = true\n", 1))
        ingest(site)
        enter(site, folder / "server", name)
        allow(site, folder / "study.toml")
        ok("node", "peers", site)  # presents the key
    for name in NAMES:
        site = folder / "sites" / name
        listed = json.loads(ok("node", "peers", site, "--json"))
        assert [each["name"] for each in listed["hospitals"]] == list(NAMES)
        assert run_command("node", "approve-peers", site, "1" * 40).returncode == 1
        ok("node", "approve-peers", site, listed["code"])
        federation.start_node(name)
    federation.wait_online(4)
    yield federation


@pytest.fixture(scope="module")
def broken(federation: Federation) -> Command:
    """A run in which a node is killed in round 2, comes back, and the server is killed in round 4."""
    run = federation.run_study()
    run.wait_for("round 1 of 4", seconds=300)
    federation.nodes["west"].kill()
    run.wait_for("round 2 of 4", seconds=300)
    federation.start_node("west")
    run.wait_for("round 3 of 4", seconds=300)
    federation.server.kill()
    assert run.wait(seconds=300) == 1
    return run


@pytest.fixture(scope="module")
def run(broken: Command) -> str:
    return run_name(broken)


@pytest.fixture(scope="module")
def questioned(federation: Federation, broken: Command, run: str) -> Command:
    """The run, resumed. The server is killed after the sums of the calibration are known."""
    federation.start_server()
    federation.wait_online(4)
    again = federation.start("study", "resume", run, "--server", federation.server_folder)
    again.wait_for("calibration: sum over", seconds=400)
    federation.server.kill()
    assert again.wait(seconds=300) == 1
    return again


@pytest.fixture(scope="module")
def resumed(federation: Federation, questioned: Command, run: str) -> Command:
    federation.start_server()
    federation.wait_online(4)
    again = federation.start("study", "resume", run, "--server", federation.server_folder)
    assert again.wait(seconds=400) == 0, again.text()
    return again


def test_rounds_are_masked_and_survive_a_killed_node(broken: Command) -> None:
    text = broken.text()
    assert "updates are masked: the server learns their sum over 4 hospitals" in text
    assert "round 1 of 4 · 4 of 4 sites" in text
    assert "round 2 of 4 · 3 of 4 sites" in text
    assert "LOST" not in text


def test_killed_server_goes_on(questioned: Command, resumed: Command) -> None:
    assert "round 4 of 4 · 4 of 4 sites" in questioned.text()
    assert "test: sum over 4 hospitals" in resumed.text()
    assert "calibration: sum over" not in resumed.text(), "its sums were kept"
    assert "is complete" in resumed.text()


def test_questions_after_the_rounds_are_known_as_sums_alone(federation: Federation, resumed: Command, run: str) -> None:
    results = json.loads((federation.server_folder / "runs" / run / "results.json").read_text())
    (model,) = results["models"]
    assert model["figures"] == {} and model["summed"]["sites"] == 4
    steps = [entry for entry in results["history"] if entry.get("step") in QUESTIONS]
    assert [entry["step"] for entry in steps] == list(QUESTIONS)
    assert all(entry["sites"] == list(NAMES) and entry["refused"] == {} for entry in steps)


def test_server_has_the_mean_figures_and_no_single_ones(federation: Federation, resumed: Command, run: str) -> None:
    folder = federation.server_folder / "runs" / run
    history = json.loads((folder / "history.json").read_text())
    rounds = [entry for entry in history if "round" in entry and not entry["lost"]]
    assert len(rounds) == 4
    having = {name for name in NAMES if _has_loss(federation.folder / "sites" / name)}
    for entry in rounds:  # the loss is in no sum of fewer than three hospitals, nor of others than in round 1
        assert ("train_loss" in entry["means"]) == (len(having) >= 3 and entry["sites"] == rounds[0]["sites"])
    assert all(sum(entry["votes"].values()) == len(entry["sites"]) for entry in rounds)
    assert load_release(folder / "release").description.rounds == 3  # the last round only judges the model


def test_each_ledger_has_a_line_for_each_sum(federation: Federation, resumed: Command, run: str) -> None:
    history = json.loads((federation.server_folder / "runs" / run / "history.json").read_text())
    for name in NAMES:
        sums = [entry for entry in history if "round" in entry or entry["step"] in QUESTIONS]
        summed = sum(name in entry["sites"] for entry in sums)
        ledger = federation.folder / "sites" / name / "ledger" / "ledger.jsonl"
        kinds = [json.loads(line)["kind"] for line in ledger.read_text().splitlines()]
        assert "peers approval" in kinds
        assert kinds.count("masked: sum may be revealed") == summed >= 5


def test_study_without_masks_is_refused_by_a_site_that_requires_them(federation: Federation, resumed: Command) -> None:
    plain = federation.folder / "plain.toml"
    plain.write_text(STUDY.replace("secure = true", "secure = false").replace("rounds = 4", "rounds = 1"))
    for name in NAMES:
        allow(federation.folder / "sites" / name, plain)
    run = federation.start("study", "run", plain, "--server", federation.server_folder)
    assert run.wait(seconds=300) == 1
    assert "E_SECAGG_REQUIRED" in run.text()


def _has_loss(folder: Path) -> bool:
    """Whether a site may report the loss of its training: no label has a class of too few patients."""
    site = Site.open(folder)
    patients, least = count_patients(site), site.settings.site.min_patients
    classes = [[patients.with_value.get(("train", label, value), 0) for value in (False, True)] for label in LABELS]
    return all(min(each) >= least for each in classes if any(each))
