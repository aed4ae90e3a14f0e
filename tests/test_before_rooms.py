"""Folders written by an earlier version still open, although module names that they contain have changed since.

`fixtures/before_rooms.tar.xz` contains a site, a server and a clinic with synthetic patients. They were written
before the code was split into packages.
"""

import json
import tarfile
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch

from federation.runs.listing import list_lines, summaries
from federation.runs.results import read_results
from federation.strategy.checkpoint import load_latest
from models.network import SeverityNetwork
from models.release import load_release
from models.signature import fingerprint
from pipeline.bundle import INFERENCE
from pipeline.clinic.settings import Clinic
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.cohort.torch_dataset import CohortDataset
from pipeline.phantom.stoic2021_layout import synthetic_stoic2021
from pipeline.scoring.score import score
from pipeline.site.folder import Site

ARCHIVE = Path(__file__).with_name("fixtures") / "before_rooms.tar.xz"
RUN = "old-71d08c14"
SHAPE = (2, 16, 16, 16)  # of a tensor: channels (window, lungs), slices, rows, columns


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before-rooms")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def release(old: Path) -> Path:
    return old / "server" / "releases" / RUN


def test_old_site_and_cohort_open(old: Path) -> None:
    site = Site.open(old / "site")
    assert (site.name, site.settings.site.min_patients) == ("north", 2)
    with Cohort.read(site) as cohort:
        patients, examples = cohort.patients(), cohort.examples("train", "validation", "test")
    assert len(patients) == len(examples) == 10
    assert all(site.split(patient.pseudonym) == patient.split for patient in patients)  # computed with the archived key
    assert all(example.measures is not None for example in examples)
    scans, tabular, targets = Examples(examples).batch(np.arange(10), None)
    assert scans.shape == (10, *SHAPE) and tabular.shape == (10, 4) and targets.shape == (10, 2)
    assert torch.isfinite(scans).all()
    assert len(CohortDataset(site, "train", "validation", "test")) == 10


def test_old_cohort_keeps_its_content_when_opened_for_writing(old: Path) -> None:
    with Cohort(Site.open(old / "site")) as cohort:
        assert len(cohort.patients()) == 10 and len(cohort.scans(cohort.settings().pop())) >= 10


def test_old_run_is_listed_with_its_results(old: Path) -> None:
    (summary,) = summaries(old / "server")
    assert (summary["run"], summary["state"], summary["round"], summary["rounds"]) == (RUN, "completed", 1, 1)
    assert list_lines([summary])[0][:3] == [RUN, "completed", "1 of 1"]
    results = read_results(old / "server" / "runs" / RUN)
    assert results.model("federated") is not None
    assert results.release == load_release(old / "server" / "runs" / RUN / "release").sha256


def test_old_checkpoint_loads(old: Path) -> None:
    loaded = load_latest(old / "server" / "runs" / RUN / "checkpoints")
    assert (loaded.state.round, loaded.damaged_rounds) == (1, ())
    assert loaded.state.arrays and loaded.state.history


def test_signature_of_old_release_is_verified(release: Path) -> None:
    key = release.with_name(f"{RUN}.pub")
    assert load_release(release, [key]).signed_by == fingerprint(key)


def test_old_bundle_run_by_monai_gives_the_same_probabilities_as_score(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle's configuration refers to `pipeline.bundle` and `models.network`."""
    synthetic_stoic2021(tmp_path / "scans", patients=1)
    scan = tmp_path / "scans" / "data" / "mha" / "0.mha"
    network = monai.bundle.load(
        release.name, bundle_dir=release.parent, workflow_type="inference", source="github", device="cpu"
    )
    assert isinstance(network, SeverityNetwork)
    ours = load_release(release)
    assert all(torch.equal(ours.network.state_dict()[name], each) for name, each in network.state_dict().items())
    monai.bundle.run(
        config_file=str(release / INFERENCE), workflow_type="inference", bundle_root=str(release), dataset_dir=str(scan)
    )
    answer = json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))
    # Its own code answers both labels; today's code gives no number for a label that was not calibrated and judged.
    scored = score(scan, ours)
    assert set(answer) == {*scored.probabilities, *scored.no_number} and scored.probabilities
    assert {label: answer[label] for label in scored.probabilities} == pytest.approx(scored.probabilities, abs=1e-9)


def test_old_clinic_opens_with_its_answer_and_model(old: Path) -> None:
    clinic = Clinic.open(old / "clinic")
    with clinic.store() as store:
        (answer,), (model,) = store.answers.newest(), store.models.all()
        live = store.models.with_role("live")
    assert answer.model_sha256 == model.sha256 and live == model
    assert set(answer.score["probability"]) == {"pcr_positive", "severe"}
    assert answer.score["withheld"] and set(answer.score["level"].values()) == {None}  # model of phantoms
    assert json.loads((answer.folder / "score.json").read_text())["model"]["sha256"] == model.sha256
    assert {"sr.dcm", "source.dcm", "saliency.nii.gz"} <= {path.name for path in answer.folder.iterdir()}
    assert load_release(clinic.models / model.sha256).sha256 == model.sha256
