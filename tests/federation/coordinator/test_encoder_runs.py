"""Whole runs with a frozen encoder, in one process: the head alone is trained, sent and released."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from federation.approval.encoders import EncoderApprovals
from federation.approval.studies import StudyApprovals
from federation.cli.node_encoders import encode
from federation.client.site_tasks import load_examples
from federation.comparison.signed_release import release_run
from federation.coordinator.inprocess import sites_here
from federation.coordinator.rehearsal import rehearse
from federation.coordinator.rounds import Training
from federation.protocol.study_config import Study
from federation.runs.results import read_results
from models.encoders import Encoder, allow
from models.refusal import Refusal
from models.release import load_release
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from pipeline.training.train import predict
from tests.federation.coordinator.conftest import SMALL
from tests.helpers.encoders import FEATURES, head_on, small_encoder, tuned_on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    folder = tmp_path_factory.mktemp("encoder")
    return folder, small_encoder(folder, SMALL, learnt_at=("elsewhere", "north"))


@pytest.fixture(scope="module")
def folders(
    two_hospitals: list[Path], tmp_path_factory: pytest.TempPathFactory, encoder: tuple[Path, Encoder]
) -> list[Path]:
    """Two hospitals that have approved the encoder and computed its features."""
    place = tmp_path_factory.mktemp("hospitals")
    made = [shutil.copytree(folder, place / folder.name) for folder in two_hospitals]
    for folder in made:
        EncoderApprovals(Site.open(folder)).approve(encoder[0], by="the hospital")
        encode(folder)
    return made


def study(encoder: Encoder, **tables: object) -> Study:
    return Study.model_validate(
        {
            "study": {"name": "heads", "rounds": 6, "local_epochs": 2, "sites": 2, "quorum": 2, "synthetic": True},
            "network": head_on(encoder),
            "training": {"augment": False},
            "preprocessing": SMALL.model_dump(),
            "evaluation": {"fine_tune": True, "pooled": True},
            **tables,
        }
    )


def test_run_trains_a_head_and_its_release_brings_the_encoder(
    folders: list[Path], encoder: tuple[Path, Encoder], tmp_path: Path
) -> None:
    folder, made = encoder
    asked = study(made)
    run = rehearse(asked, tmp_path / "server", folders)
    results = read_results(run)
    assert {"federated", "pooled", "north fine-tuned"} <= {model.name for model in results.models}
    with pytest.raises(Refusal, match="E_ENCODER_CLOSED"):
        release_run(run.name, tmp_path / "server", lambda text: None, reason="a test")
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test", encoder=folder)
    release = load_release(released.folder, [released.public_key])
    assert sum(weight.numel() for weight in release.network.parameters()) < 500
    card = (released.folder / "card.md").read_text()
    for part in (made.card.sha256, "random weights", "Apache-2.0", f"{FEATURES} features"):
        assert part in card
    assert "learnt before from patients of elsewhere, north." in card
    assert any("learnt before" in limit for limit in release.description.limits)
    described = json.loads((released.folder / "model.json").read_text())
    assert described["encoder"] == {"name": "small", "source": "random weights", "licence": "Apache-2.0"}
    answers = []
    for site in map(Site.open, folders):  # from scans, as at a clinic, and from features, as in the study
        with Cohort.read(site) as cohort:
            scans = Examples(cohort.examples("test"))
        answers.append((predict(release.network, scans), predict(release.network, load_examples(site, asked, "test"))))
    for of_scans, of_features in answers:
        np.testing.assert_allclose(of_scans, of_features, atol=1e-5)


def test_altered_encoder_in_a_release_is_refused(
    folders: list[Path], encoder: tuple[Path, Encoder], tmp_path: Path
) -> None:
    folder, made = encoder
    run = rehearse(study(made, evaluation={}), tmp_path / "server", folders)
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test", encoder=folder)
    other = small_encoder(tmp_path / "other", SMALL, name="other")
    assert other.card.sha256 != made.card.sha256
    for name in ("encoder.json", "encoder.safetensors"):
        (released.folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(Refusal, match="E_MODEL_ALTERED"):
        load_release(released.folder)
    with pytest.raises(Refusal, match="E_SIGNATURE"):
        load_release(released.folder, [released.public_key])


def test_site_without_features_does_not_take_part(two_hospitals: list[Path], encoder: tuple[Path, Encoder]) -> None:
    with pytest.raises(Refusal, match="E_NOT_ENCODED"):
        load_examples(Site.open(two_hospitals[1]), study(encoder[1]), "train")


def test_private_head(folders: list[Path], encoder: tuple[Path, Encoder], tmp_path: Path) -> None:
    """Differential privacy works on the head alone."""
    asked = study(
        encoder[1],
        study={"name": "heads", "rounds": 2, "sites": 2, "quorum": 2, "synthetic": True},
        network={**head_on(encoder[1]), "norm": "group"},
        privacy={"noise_multiplier": 1.0, "sample_rate": 0.2},
        evaluation={},
    )
    results = read_results(rehearse(asked, tmp_path / "server", folders))
    assert any(model.name == "federated" for model in results.models)


def tuned_study(encoder: Encoder, **tables: object) -> Study:
    return study(encoder, **{"network": tuned_on(encoder, 1), **tables})


def encoded_for(folders: list[Path], asked: Study, place: Path) -> list[Path]:
    """Return copies of hospitals that have approved a study that tunes an encoder, with what it needs."""
    made = [shutil.copytree(folder, place / f"{number}-{folder.name}") for number, folder in enumerate(folders)]
    for folder in made:
        StudyApprovals(Site.open(folder)).approve(asked.model_dump_json(), by="the hospital")
        encode(folder)
    return made


def test_run_tunes_a_stage_and_its_release_is_the_whole_network(
    folders: list[Path], encoder: tuple[Path, Encoder], tmp_path: Path
) -> None:
    folder, made = encoder
    asked = tuned_study(made)
    sites = encoded_for(folders, asked, tmp_path)
    with pytest.raises(Refusal, match="E_ENCODER_CLOSED"):
        rehearse(asked, tmp_path / "server", sites)
    shutil.copytree(folder, tmp_path / "server" / "encoders" / "small")
    run = rehearse(asked, tmp_path / "server", sites)
    results = read_results(run)
    assert {"federated", "pooled", "north fine-tuned"} <= {model.name for model in results.models}
    released = release_run(run.name, tmp_path / "server", lambda text: None, reason="a test")
    release = load_release(released.folder, [released.public_key])
    held = release.network.backbone.state_dict()
    assert set(held) == {f"layer4.{name}" for name in made.layers.layer4.state_dict()}
    assert not torch.equal(held["layer4.0.conv1.weight"], made.layers.layer4[0].conv1.weight)
    assert "last 1 of 4 stages were trained further" in (released.folder / "card.md").read_text()
    for site in map(Site.open, sites):  # from scans, as at a clinic, and from maps, as in the study
        with Cohort.read(site) as cohort:
            scans = Examples(cohort.examples("test"))
        of_scans, of_maps = (predict(release.network, each) for each in (scans, load_examples(site, asked, "test")))
        np.testing.assert_allclose(of_scans, of_maps, atol=1e-4)


def test_tuned_stage_in_masked_rounds(folders: list[Path], encoder: tuple[Path, Encoder], tmp_path: Path) -> None:
    """The sums of masked updates of stages and head, and of their batch-norm statistics, make the model."""
    asked = tuned_study(
        encoder[1],
        study={"name": "stages", "rounds": 3, "local_epochs": 1, "sites": 3, "quorum": 3, "synthetic": True},
        strategy={"name": "FedAvg"},
        aggregation={"secure": True},
        evaluation={},
    )
    allow(encoder[1])
    sites = encoded_for([*folders, folders[0]], asked, tmp_path)
    third = sites[2] / "site.toml"
    third.write_text(third.read_text().replace('name = "north"', 'name = "west"'))
    training = Training(asked, tmp_path / "run", "run")
    begun = dict(training.model.arrays)
    training.execute(sites_here(asked, sites))
    assert [entry["lost"] for entry in training.history] == [False] * 3
    assert not np.array_equal(training.model.arrays["weights"], begun["weights"])
