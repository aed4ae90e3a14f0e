"""Whole runs with a frozen encoder, in one process: the head alone is trained, sent and released."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from federation.approval.encoders import EncoderApprovals
from federation.cli.node_encoders import encode
from federation.client.site_tasks import load_examples
from federation.comparison.signed_release import release_run
from federation.coordinator.rehearsal import rehearse
from federation.protocol.study_config import Study
from federation.runs.results import read_results
from models.encoders import Encoder
from models.refusal import Refusal
from models.release import load_release
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from pipeline.training.train import predict
from tests.federation.coordinator.conftest import SMALL
from tests.helpers.encoders import FEATURES, head_on, small_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    folder = tmp_path_factory.mktemp("encoder")
    return folder, small_encoder(folder, SMALL)


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
