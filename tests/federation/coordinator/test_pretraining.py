"""A pretraining from its rounds to a study that begins from its result, on synthetic hospitals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from typer.testing import CliRunner

from federation.cli.main import app
from federation.client.site_tasks import load_scans
from federation.comparison.signed_release import release_run
from federation.coordinator.inprocess import InProcessGrid, sites_here
from federation.coordinator.rehearsal import rehearse
from federation.coordinator.rounds import Training
from federation.protocol.first_weights import begin_network
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import LOSS
from federation.protocol.release_files import BEGINS_FROM
from federation.protocol.reply_validation import encode
from federation.protocol.study_config import Study
from models.network import build_network
from models.network_settings import BLOCKS, LABELS
from models.refusal import Refusal
from models.release import load_release
from pipeline.cohort.store import Cohort, UnlabelledRow
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site

SMALL = Preprocessing(method=1, shape=(16, 16, 16), working_spacing_mm=8.0)
UNLABELLED = 6


def study(outputs: str = "auxiliary", **tables: dict[str, object]) -> Study:
    table = {"name": "pretrain", "rounds": 2, "local_epochs": 1, "sites": 2, "quorum": 2, "synthetic": True}
    return Study.model_validate(
        {
            "strategy": {"name": "FedAvg"},
            "preprocessing": SMALL.model_dump(),
            "training": {"learning_rate": 0.02},
            **tables,
            "study": {**table, **tables.get("study", {})},
            "network": {"architecture": "resnet10", "widen_factor": 0.0625, "outputs": outputs},
        }
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three hospitals, which also keep patients without labels: their labels were taken away."""
    root, made = tmp_path_factory.mktemp("sites"), []
    for at in HOSPITALS[:3]:
        site = synthetic_site(root / at.name, at.name, seed=1, min_patients=3, tables="[training]\nthreads = 1")
        settings = site.folder / "site.toml"
        settings.write_text(settings.read_text().replace("[site]", "[site]\nunlabelled_patients = true"))
        coarse = replace(at, scanner=replace(at.scanner, grid=Grid((30, 48, 48), (9.6, 7.8, 7.8))))
        write_cohort(site, coarse, patients=24, seed=1, settings=SMALL, anatomy="template")
        with Cohort(site) as cohort:
            rows = cohort.patients()
            without = [UnlabelledRow(row.pseudonym, row.tensor) for row in rows[:UNLABELLED]]
            cohort.replace(rows[UNLABELLED:], [], cohort.fingerprints(without=()), without)
        made.append(site.folder)
    return made


@pytest.fixture(scope="module")
def server(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server with one pretraining, and its signed start under SERVER/releases."""
    server = tmp_path_factory.mktemp("server")
    run = rehearse(study(), server, folders[:2])
    release_run(run.name, server, lambda _: None)
    return server


def run_of(server: Path) -> Path:
    return next(path for path in (server / "runs").iterdir() if path.name.startswith("pretrain-"))


def signed(server: Path) -> Path:
    return server / "releases" / run_of(server).name


@pytest.mark.slow
def test_pretraining_trains_on_all_scans_and_reports_its_loss_alone(server: Path, folders: list[Path]) -> None:
    history = json.loads((run_of(server) / "history.json").read_text())
    rounds = [entry for entry in history if "round" in entry]
    assert [entry["sites"] for entry in rounds] == [["north", "south"]] * 2
    assert all(set(entry["means"]) == {LOSS} for entry in rounds)
    assert [entry.get("step") for entry in history if "round" not in entry] == ["handshake"], "nothing is evaluated"
    assert not (run_of(server) / "results.json").exists()
    site = Site.open(folders[0])
    with Cohort.read(site) as cohort:
        labelled = sum(patient.split == "train" for patient in cohort.patients())
    assert len(load_scans(site, study())) == labelled + UNLABELLED


@pytest.mark.slow
def test_study_begins_from_the_start_that_hospitals_can_approve(server: Path, folders: list[Path]) -> None:
    start = load_release(signed(server), [signed(server).with_name(f"{signed(server).name}.pub")], pretrained=True)
    assert start.sha256 == load_release(run_of(server) / "release", pretrained=True).sha256, "signing keeps the name"
    assert set(start.description.provenance.sites) == {"north", "south"} if start.description.provenance else False
    later = study("labels", study={"name": "later", "rounds": 1, "begin_from": start.sha256})
    run = rehearse(later, server, folders[:2])
    release = load_release(run / "release")
    assert release.network.head.out_features == len(LABELS)
    begun = begin_network(later, run / BEGINS_FROM)
    first, pretrained, trained = (
        network.get_parameter("backbone.conv1.weight") for network in (begun, start.network, release.network)
    )
    assert torch.equal(first, pretrained)
    assert not torch.equal(trained, pretrained)


@pytest.mark.slow
def test_masked_pretraining_learns_to_estimate_hidden_blocks_and_a_study_begins_from_it(
    folders: list[Path], tmp_path: Path
) -> None:
    run = rehearse(study("hidden_blocks", study={"local_epochs": 2}), tmp_path, folders[:2])
    release_run(run.name, tmp_path, lambda _: None)
    history = json.loads((run / "history.json").read_text())
    losses = [entry["means"] for entry in history if "round" in entry]
    assert all(set(means) == {LOSS} for means in losses)
    assert losses[1][LOSS] < losses[0][LOSS]
    start = load_release(run / "release", pretrained=True)
    assert start.network.head.out_features == len(BLOCKS)
    later = study("labels", study={"name": "later", "rounds": 1, "begin_from": start.sha256})
    begun = begin_network(later, rehearse(later, tmp_path, folders[:2]) / BEGINS_FROM)
    assert torch.equal(
        begun.get_parameter("backbone.conv1.weight"), start.network.get_parameter("backbone.conv1.weight")
    )
    assert begun.head.out_features == len(LABELS)


@pytest.fixture
def ct_only(folders: list[Path], tmp_path: Path) -> Path:
    """A hospital with chest CT only: its cohort has no labelled patient."""
    folder = shutil.copytree(folders[2], tmp_path / "ward")
    settings = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(settings.replace('[labels]\nfile = "labels.csv"\n', ""))
    with Cohort(site := Site.open(folder)) as cohort:
        scans = [UnlabelledRow(row.pseudonym, row.tensor) for row in cohort.patients()]
        cohort.replace([], [], cohort.fingerprints(without=()), [*scans, *cohort.unlabelled()])
    assert not site.settings.has_labels
    return folder


@pytest.mark.slow
def test_hospital_with_chest_ct_only_takes_part_and_in_no_study_of_labels(
    ct_only: Path, folders: list[Path], tmp_path: Path
) -> None:
    sites = [*folders[:1], ct_only]
    training = Training(study(), tmp_path / "pretraining", "run")
    training.execute(sites_here(study(), sites))
    rounds = [entry for entry in training.history if "round" in entry]
    assert [len(entry["sites"]) for entry in rounds] == [2, 2]
    assert len(load_scans(Site.open(ct_only), study())) == 24
    of_labels = study("labels", study={"quorum": 1})
    training = Training(of_labels, tmp_path / "study", "run")
    training.execute(sites_here(of_labels, sites))
    handshake, *rounds = training.history
    assert list(handshake["refused"].values()) == ["E_SITE_UNLABELLED"]
    assert all(entry["sites"] == ["north"] for entry in rounds if "round" in entry)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["release", "report"])
def test_start_has_no_report_and_one_release(server: Path, command: str) -> None:
    done = CliRunner().invoke(app, ["study", command, run_of(server).name, "--server", str(server)])
    assert done.exit_code == 1
    assert isinstance(done.exception, Refusal)
    assert done.exception.code == {"release": "E_RELEASE_EXISTS", "report": "E_RESULTS"}[command]


@pytest.mark.slow
def test_start_cannot_score(server: Path, tmp_path: Path) -> None:
    key = signed(server).with_name(f"{signed(server).name}.pub")
    arguments = ["score", str(tmp_path), "--model", str(signed(server)), "--signed-by", str(key)]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, Refusal)
    assert done.exception.code == "E_NO_MODEL"


@pytest.mark.slow
def test_loss_leaves_in_a_sum_through_the_simulated_gateways(folders: list[Path], tmp_path: Path) -> None:
    """The updates are not masked, so the weights are those of a pretraining without sums, to the bit."""
    found = {}
    for summed in (False, True):
        what = study(study={"sites": 3, "quorum": 3}, aggregation={"summed_answers": summed})
        training = Training(what, tmp_path / str(summed), "run")
        found[summed] = training.execute(sites_here(what, folders)).arrays["weights"]
        rounds = [entry for entry in training.history if "round" in entry]
        assert [(set(entry["means"]), entry["lost_for"], entry["refused"]) for entry in rounds] == [
            ({LOSS}, None, {})
        ] * 2
    np.testing.assert_array_equal(found[True], found[False])


@pytest.mark.slow
def test_site_answers_no_question_in_a_pretraining_even_without_a_gateway(folders: list[Path]) -> None:
    arrays, buffers = pack(build_network(study().network, seed=1))
    content = RecordDict(
        {"arrays": encode(arrays), "buffers": encode(buffers), "config": ConfigRecord({"server-round": 1})}
    )
    grid = InProcessGrid(study(), folders[:1], "run")
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=1, message_type="evaluate.test")])
    assert reply.has_error()
