"""A complete federation with real processes: server, three nodes, a study that survives kill -9, and its outputs.

Small synthetic hospitals, fast training: the results say nothing about the quality of a model.
"""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from federation.ledger.chain import read_lines
from federation.system.process import free_port
from models.release import load_release
from tests.e2e.conftest import Command, allow, enter, ok, run_command, wait_online

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
NAMES = ("north", "south", "west")
STUDY = """
[study]
name = "end-to-end"
rounds = 4
local_epochs = 1
sites = 3
quorum = 2
wait_s = 90
round_timeout_s = 120
synthetic = true

[network]
architecture = "resnet10"
widen_factor = 0.125
"""
BY_PATIENT = """
[training]
loss = "cross_entropy_by_patient"
"""


@dataclass
class Federation:
    """A running server with three enrolled hospitals."""

    folder: Path
    server: Command
    nodes: dict[str, Command]
    start: Callable[..., Command]

    @property
    def server_folder(self) -> Path:
        return self.folder / "server"

    def start_server(self) -> None:
        self.server = self.start("server", "start", self.server_folder)
        self.server.wait_for("The server is up", seconds=300)

    def start_node(self, name: str) -> None:
        self.nodes[name] = self.start("node", "start", self.folder / "sites" / name)
        self.nodes[name].wait_for("is online", seconds=300)

    def wait_online(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            answer = run_command("server", "sites", self.server_folder, "--json")
            if answer.returncode == 0 and sum(s["online"] for s in json.loads(answer.stdout)) >= count:
                return
            time.sleep(1)
        raise AssertionError(f"fewer than {count} sites came online")

    def run_study(self) -> Command:
        return self.start("study", "run", self.folder / "study.toml", "--server", self.server_folder)


@pytest.fixture(scope="module")
def federation(
    three_sites: Path, tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    shutil.copytree(three_sites, folder / "sites")
    ok("server", "init", folder / "server", "--port", str(free_port()))
    (folder / "study.toml").write_text(STUDY + BY_PATIENT)
    federation = Federation(folder, start("--help"), {}, start)
    federation.start_server()
    for name in NAMES:
        site = folder / "sites" / name
        enter(site, folder / "server", name)
        allow(site, folder / "study.toml")
        federation.nodes[name] = start("node", "start", site)
    wait_online(federation.nodes.values())
    yield federation


@pytest.fixture(scope="module")
def broken(federation: Federation) -> Command:
    """A run in which a node is killed during round 2, and the server after round 3."""
    run = federation.run_study()
    run.wait_for("round 1 of 4", seconds=300)
    time.sleep(2)  # into round 2
    federation.nodes["west"].kill()
    run.wait_for("round 3 of 4", seconds=400)
    federation.server.kill()
    assert run.wait(seconds=300) == 1
    return run


@pytest.fixture(scope="module")
def resumed(federation: Federation, broken: Command) -> Command:
    """The same run, resumed and completed after a restart of server and node."""
    federation.start_server()
    federation.start_node("west")
    federation.wait_online(3)
    again = federation.start("study", "resume", run_name(broken), "--server", federation.server_folder)
    assert again.wait(seconds=400) == 0, again.text()
    return again


def run_name(run: Command) -> str:
    return run.wait_for(r"end-to-end-[0-9a-f]{8}", seconds=300)


def test_run_continues_without_a_killed_node(broken: Command) -> None:
    text = broken.text()
    assert "round 3 of 4" in text
    assert "west: E_" in text
    assert "2 of 3 sites" in text
    assert "LOST" not in text


def test_killed_server_costs_at_most_one_round(broken: Command, resumed: Command) -> None:
    assert "Traceback" not in broken.text()
    assert "E_" in broken.text().rpartition("round 3 of 4")[2].partition("\n")[2], "the run must report why it ended"
    text = resumed.text()
    assert "going on after round 3 of 4" in text or "going on after round 2 of 4" in text
    assert "round 4 of 4 · 3 of 3 sites" in text, f"the killed node takes part again:\n{text}"
    assert "round 1 of 4" not in text
    assert "is complete" in text


def test_candidate_is_registered_with_its_hash(federation: Federation, resumed: Command) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{federation.server_folder / 'mlflow.db'}")
    version = client.get_model_version_by_alias("end-to-end", "candidate")
    release = load_release(federation.server_folder / "runs" / run_name(resumed) / "release")
    assert version.tags["sha256"] == release.sha256
    assert release.description.sites == 3
    assert release.description.trained_on_synthetic_data
    run = client.get_run(version.run_id)
    assert run.data.params["study.rounds"] == "4"
    assert run.info.status == "FINISHED"
    rounds = [metric.step for metric in client.get_metric_history(version.run_id, "mean_train_loss")]
    assert sorted(set(rounds)) == [1, 2, 3, 4]
    assert "north/train_loss" in run.data.metrics
    assert run.data.tags["mlflow.user"] == "fedthorax"


def planted_strings(hospitals: Path) -> set[str]:
    """Return strings that must not leave a hospital: names, identifiers, UIDs, paths of its files."""
    planted = {"SYNTHETIC^"}
    for hospital in hospitals.iterdir():
        planted.add(str(hospital))
        for patient in (hospital / "ct").iterdir():
            header = pydicom.dcmread(next(patient.iterdir()), stop_before_pixels=True)
            planted |= {patient.name, str(header.PatientName), header.StudyInstanceUID, header.SeriesInstanceUID}
    return planted


def test_server_files_contain_no_patient_data(
    federation: Federation, resumed: Command, three_hospitals: Path, three_sites: Path
) -> None:
    planted = {text.encode() for text in planted_strings(three_hospitals)}
    planted |= {str(sites / name).encode() for name in NAMES for sites in (federation.folder / "sites", three_sites)}
    assert len(planted) > 100
    files = [path for path in federation.server_folder.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert any(path.suffix == ".log" for path in files)
    for path in files:
        content = path.read_bytes()
        found = {text for text in planted if text in content}
        assert not found, f"{path.relative_to(federation.server_folder)} holds {len(found)} planted strings"


def test_search_for_planted_strings_finds_them_in_the_source(three_hospitals: Path) -> None:
    """The source files contain the planted strings, so the search would find a leak."""
    planted = planted_strings(three_hospitals)
    patient = next((three_hospitals / "north" / "ct").iterdir())
    content = next(patient.iterdir()).read_bytes()
    assert sum(text.encode() in content for text in planted) >= 4


def test_site_stores_patients_under_pseudonyms(three_hospitals: Path, three_sites: Path) -> None:
    database = sqlite3.connect(three_sites / "north" / "cohort" / "cohort.sqlite")
    pseudonyms = [row[0] for row in database.execute("SELECT pseudonym FROM patients")]
    database.close()
    identifiers = {p.name for p in (three_hospitals / "north" / "ct").iterdir()}
    assert len(pseudonyms) == 14
    assert not identifiers & set(pseudonyms)


def test_study_starts_from_a_release_only_at_sites_that_approved_it(federation: Federation, resumed: Command) -> None:
    """Two of three hospitals approve the release; the third one takes no part."""
    server = federation.server_folder
    flags = ("--despite-flags", "a test")
    released = json.loads(ok("study", "release", run_name(resumed), "--server", server, *flags, "--json"))
    study = federation.folder / "begun.toml"
    begin = f'begin_from = "{released["sha256"]}"\n'
    without_audit = "\n[evaluation]\nshortcut_audit = false\n"  # the first study has one
    one_round = STUDY.replace("rounds = 4", "rounds = 1").replace("[study]\n", f"[study]\n{begin}")
    study.write_text(one_round + without_audit)
    for name in NAMES:
        site = federation.folder / "sites" / name
        allow(site, study)
        if name != "west":
            ok("node", "approve-release", site, released["release"], "--trust", released["public_key"], "--yes")
    done = run_command("study", "run", study, "--server", server, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without west: E_BEGIN_REFUSED" in done.stderr
    assert "round 1 of 1 · 2 of 3 sites" in done.stderr
    about = load_release(Path(json.loads(done.stdout)["release"])).description
    assert about.sites == 3, "sites counts all three hospitals: the starting release was trained on the third too"


def test_default_study_knows_figures_and_answers_as_sums_alone(federation: Federation, resumed: Command) -> None:
    """What `study init` writes, with a small network and two rounds: each hospital approves the list of hospitals."""
    study = federation.folder / "default.toml"
    ok("study", "init", study, "--sites", "3")
    text = study.read_text()
    for before, after in {
        "rounds = 20 ": "rounds = 2 ",
        "local_epochs = 2 ": "local_epochs = 1 ",
        "synthetic = false": "synthetic = true",
        '"resnet18"': '"resnet10"',
        "widen_factor = 0.25 ": "widen_factor = 0.125 ",
    }.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    study.write_text(text)
    for name in NAMES:
        site = federation.folder / "sites" / name
        allow(site, study)
        ok("node", "peers", site)  # presents the key
    for name in NAMES:
        site = federation.folder / "sites" / name
        ok("node", "approve-peers", site, json.loads(ok("node", "peers", site, "--json"))["code"])
    done = run_command("study", "run", study, "--server", federation.server_folder, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "figures and answers are masked: the server learns their sum over 3 hospitals" in done.stderr
    assert "round 2 of 2 · 3 of 3 sites" in done.stderr and "LOST" not in done.stderr
    name = json.loads(done.stdout)["run"]
    results = json.loads((federation.server_folder / "runs" / name / "results.json").read_text())
    (model,) = results["models"]
    assert model["figures"] == {} and model["summed"]["sites"] == 3
    for site in NAMES:
        lines = read_lines(federation.folder / "sites" / site / "ledger" / "ledger.jsonl")
        kinds = [line.kind for line in lines if line.run == name]
        assert kinds.count("masked: sum may be revealed") == 5, "of two rounds and three questions"
        assert not [kind for kind in kinds if "left out" in kind]


def test_ctrl_c_also_stops_the_run_at_the_server(federation: Federation, resumed: Command) -> None:
    run = federation.run_study()
    run.wait_for("sites are there", seconds=300)
    run.interrupt()
    assert "stopping end-to-end-" in run.text()
    assert "Traceback" not in run.text()
    # If the server still ran the first run, the nodes would not be free for the next one.
    assert run.process.returncode not in (0, None)
