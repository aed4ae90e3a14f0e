"""Stages trained on the maps of frozen layers become those of the whole network with its first layers held fixed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder_layers import divide
from models.encoders import Encoder, allow
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from pipeline.cohort.dataset import Examples
from pipeline.cohort.encoding import encode_cohort
from pipeline.cohort.store import Cohort
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import PrivacySettings
from pipeline.training.private_training import train_privately
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule, TrainSettings
from tests.helpers.encoders import small_encoder, tuned_on

SMALL = Preprocessing(method=1, shape=(24, 24, 24))
SETTINGS = TrainSettings(batch_size=4, learning_rate=0.02, augment=False)
SCHEDULE = Schedule(0, 2, 4)
GROUPED = NetworkSettings(architecture="resnet10", widen_factor=1 / 16, norm="group")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = synthetic_site(tmp_path_factory.mktemp("made") / "north", "north", seed=1, min_patients=3)
    write_cohort(made, HOSPITALS[0], patients=14, seed=1, settings=SMALL, anatomy="template")
    return made


class Whole(nn.Module):
    """The whole encoder as the backbone: its first layers have no gradients and stay in evaluation mode."""

    def __init__(self, layers: nn.Module, stages: int, features: int) -> None:
        super().__init__()
        self.layers, self.features = layers, features
        self._frozen, tuned = divide(layers, stages)
        for layer in tuned.values():
            layer.requires_grad_(True)

    def train(self, mode: bool = True) -> "Whole":
        super().train(mode)
        for layer in self._frozen.values():
            layer.eval()
        return self

    def forward(self, scans: Tensor) -> Tensor:
        return F.layer_norm(self.layers(scans), (self.features,))


def examples(site: Site, encoded: str) -> Examples:
    with Cohort.read(site) as cohort:
        return Examples(cohort.examples("train", "validation", "test", encoder=encoded))


def whole(encoder: Encoder, network: SeverityNetwork, folder: Path) -> SeverityNetwork:
    """Return the network with the whole encoder instead of its last stages, and the same head."""
    from models.encoders import load_encoder

    stages = network.backbone.tuned_stages
    made = build_network(NetworkSettings.model_validate(tuned_on(encoder, stages)), seed=1)
    made.load_state_dict(network.state_dict())
    made.backbone = Whole(load_encoder(folder).layers, stages, encoder.card.features)
    return made


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("change", [{}, {"layers": GROUPED}])
def test_training_on_maps_equals_training_the_whole_network_with_frozen_layers(
    site: Site, tmp_path: Path, stages: int, change: dict[str, Any]
) -> None:
    encoder = small_encoder(tmp_path, SMALL, name=f"of {stages}", **change)
    allow(encoder)
    network = build_network(NetworkSettings.model_validate(tuned_on(encoder, stages)), seed=1)
    reference = whole(encoder, network, tmp_path)
    encode_cohort(site, encoder, lambda *_: None, tuned_stages=stages)
    on_maps, on_scans = examples(site, f"{encoder.card.sha256}-{stages}"), examples(site, "")
    begun = {name: tensor.clone() for name, tensor in reference.backbone.layers.state_dict().items()}
    loss = train(network, on_maps, SETTINGS, SCHEDULE, seed=3)
    assert loss == pytest.approx(train(reference, on_scans, SETTINGS, SCHEDULE, seed=3), rel=1e-4)
    found, expected = network.backbone.state_dict(), reference.backbone.layers.state_dict()
    for name, tensor in expected.items():
        if name in found:
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(tensor, begun[name]), f"{name} is frozen"
    assert not torch.allclose(found["layer4.0.conv1.weight"], begun["layer4.0.conv1.weight"], atol=1e-4)
    torch.testing.assert_close(network.head.weight, reference.head.weight, rtol=1e-4, atol=1e-5)
    for answered in (predict(network, on_maps), predict(network, on_scans)):
        assert answered == pytest.approx(predict(reference, on_scans), rel=1e-3, abs=1e-4)


def test_private_training_of_stages_with_group_norm(site: Site, tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path, SMALL, name="private", layers=GROUPED)
    allow(encoder)
    settings = {**tuned_on(encoder, 1), "norm": "group", "tabular": "fixed"}
    network = build_network(NetworkSettings.model_validate(settings), seed=1)
    encode_cohort(site, encoder, lambda *_: None, tuned_stages=1)
    before = network.backbone.layer4[0].conv1.weight.clone()
    privacy = PrivacySettings(noise_multiplier=1.0, sample_rate=0.5)
    on_maps = examples(site, f"{encoder.card.sha256}-1")
    train_privately(network, on_maps, SETTINGS, privacy, Schedule(0, 1, 2), seed=1)
    assert not torch.equal(before, network.backbone.layer4[0].conv1.weight)


@pytest.fixture
def copied(site: Site, tmp_path: Path) -> Iterator[Site]:
    yield Site.open(shutil.copytree(site.folder, tmp_path / "copied"))


def test_maps_are_computed_once_and_unwanted_ones_are_deleted(copied: Site, tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path / "encoder", SMALL)
    seen: list[tuple[int, int]] = []
    assert [encode_cohort(copied, encoder, lambda *at: seen.append(at), tuned_stages=2) for _ in range(2)] == [14, 0]
    assert seen[0] == (0, 14) and seen[-1] == (14, 14)
    assert encode_cohort(copied, encoder, lambda *_: None, tuned_stages=1) == 14
    assert encode_cohort(copied, encoder, lambda *_: None) == 14
    name = encoder.card.sha256
    with Cohort(copied) as cohort:
        cohort.forget_maps({f"{name}-1"})
    assert {name, f"{name}-1"} <= {folder.name for folder in (copied.cohort_folder / "encoded").iterdir()}
    assert not (copied.cohort_folder / "encoded" / f"{name}-2").exists()
