"""Networks that tune the last stages of an encoder: what they hold, compute, and begin with."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from federation.protocol.flat_weights import pack
from models.encoder_layers import STAGES, ResNetLayers, features_of
from models.encoders import Encoder, EncoderCard, allow, build_layers, load_encoder, save_encoder
from models.model_card import card as model_card
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import load_release, save_release
from models.saliency import saliency
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.descriptions import description
from tests.helpers.encoders import LAYERS, small_encoder, tuned_on

PREPROCESSING = Preprocessing(method=1, shape=(16, 16, 16))
SCANS = torch.rand(3, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
KNOWN = torch.zeros(3, 4)
THIN = 1 / 16
ALL = {
    "resnet10": (LAYERS, 32, 2),
    "gated pooling": (NetworkSettings(architecture="resnet18", widen_factor=THIN, pooling="gated"), 32, 2),
    "group norm": (NetworkSettings(architecture="resnet10", widen_factor=THIN, norm="group"), 32, 2),
    "SE network": (NetworkSettings(architecture="seresnet50", widen_factor=THIN), 128, 2),
    "ConvNeXt": (NetworkSettings(architecture="convnext", widen_factor=THIN), 48, 2),
    "MONAI's": (ResNetLayers(depth=10, widen_factor=THIN, no_max_pool=True, conv1_t_stride=2), 32, 1),
    "bottlenecks": (ResNetLayers(depth=50, widen_factor=THIN, shortcut_type="A"), 128, 1),
}


def encoder_of(folder: Path, layers: ResNetLayers | NetworkSettings, features: int, channels: int) -> Encoder:
    """Write an encoder with random weights and the statistics of one batch, and allow it."""
    content = {"name": "small", "layers": layers, "features": features, "channels": channels}
    about = {"source": "random weights", "licence": "MIT", "weights_sha256": "0" * 64}
    card = EncoderCard.model_validate(
        {**content, **about, "preprocessing": PREPROCESSING.model_dump(mode="json"), "scale": 2.0, "offset": 0.5}
    )
    made = build_layers(card).train()
    with torch.no_grad():
        made(SCANS[:, :channels])
    encoder = save_encoder(folder, card, made)
    allow(encoder)
    return encoder


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stages", range(1, STAGES + 1))
def test_frozen_layers_then_tuned_stages_are_the_encoder(kind: str, stages: int, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, *ALL[kind])
    network = build_network(NetworkSettings.model_validate(tuned_on(encoder, stages)), seed=1).eval()
    maps = encoder.maps(SCANS, stages)
    whole = F.layer_norm(encoder.encode(SCANS), (encoder.card.features,))
    with torch.no_grad():
        torch.testing.assert_close(network.of_scans(SCANS), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.of_scans(maps), whole, rtol=1e-4, atol=1e-5)
    held = {name.removeprefix("backbone.") for name in network.state_dict() if name.startswith("backbone.")}
    known = encoder.layers.state_dict()
    assert held < set(known)
    assert {name for name in held if name.startswith("layer")} == {
        name for name in known if name.startswith("layer") and int(name[5]) > STAGES - stages
    }
    assert all(weight.requires_grad for weight in network.backbone.parameters())
    assert sum(array.size for array in pack(network)[0].values()) < sum(weight.numel() for weight in known.values())


def test_process_without_the_encoder_builds_the_stages_and_takes_maps_alone(tmp_path: Path) -> None:
    """As the study's app at a hospital, which receives the weights."""
    encoder = small_encoder(tmp_path, PREPROCESSING, name="never allowed")
    network = build_network(NetworkSettings.model_validate(tuned_on(encoder, 2)), seed=1).eval()
    assert network.of_scans(encoder.maps(SCANS, 2)).shape == (3, encoder.card.features)
    with pytest.raises(Refusal, match="E_ENCODER_CLOSED"):
        network.of_scans(SCANS)


def test_training_leaves_the_encoder_as_it_is(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, *ALL["resnet10"])
    before = {name: tensor.clone() for name, tensor in encoder.layers.state_dict().items()}
    network = build_network(NetworkSettings.model_validate(tuned_on(encoder, 2)), seed=1).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    network(SCANS, KNOWN).square().sum().backward()
    optimiser.step()
    moved = network.backbone.state_dict()
    assert not torch.equal(moved["layer4.0.conv1.weight"], before["layer4.0.conv1.weight"])
    assert not torch.equal(moved["layer4.0.bn1.running_mean"], before["layer4.0.bn1.running_mean"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.layers.state_dict().items())
    assert not encoder.layers.training


def test_release_brings_frozen_layers_and_tuned_stages(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path / "encoder", *ALL["MONAI's"])
    settings = NetworkSettings.model_validate(tuned_on(encoder, 1))
    network = build_network(settings, seed=1).eval()
    with torch.no_grad():
        for weight in network.backbone.parameters():
            weight.add_(0.01)
    usual = PREPROCESSING.model_dump(mode="json")
    save_release(tmp_path / "release", network, description(network=settings, preprocessing=usual))
    for name in ("encoder.json", "encoder.safetensors"):
        (tmp_path / "release" / name).write_bytes((tmp_path / "encoder" / name).read_bytes())
    read = load_release(tmp_path / "release")
    with torch.no_grad():
        torch.testing.assert_close(read.network(SCANS, KNOWN), network(SCANS, KNOWN), rtol=0, atol=0)
    said = model_card(read.description, read.sha256)
    assert "last 1 of 4 stages were trained further" in said and encoder.card.sha256 in said
    shown = saliency(read.network, SCANS[0], KNOWN[0], 1)
    assert shown.shape == (16, 16, 16) and np.isfinite(shown).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder_layers": None}, "belong together"),
        ({"tuned_stages": 0}, "belong together"),
        ({"tuned_stages": 5}, "less than or equal to 4"),
        ({"encoder": "", "encoder_features": 0}, "name one"),
        ({"norm": "group"}, "batch norm"),
        ({"encoder_layers": {"architecture": "densenet121"}}, "cannot be divided"),
        ({"encoder_layers": {"encoder": "0" * 64, "encoder_features": 32}}, "not another encoder"),
        ({"encoder_layers": {"architecture": "resnet18_slices"}}, "cannot be divided"),
        ({"encoder_layers": {"architecture": "package:network", "code": "0" * 64}}, "cannot be divided"),
    ],
)
def test_settings_that_name_no_known_stages_are_refused(change: dict[str, object], says: str, tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path, PREPROCESSING)
    with pytest.raises(ValidationError, match=says):
        NetworkSettings.model_validate({**tuned_on(encoder, 1), **change})


def test_other_layers_than_the_encoder_has_are_refused(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, *ALL["resnet10"])
    other = {**tuned_on(encoder, 1), "encoder_layers": ResNetLayers(depth=10, widen_factor=THIN)}
    with pytest.raises(Refusal, match="other layers"):
        build_network(NetworkSettings.model_validate(other), seed=1)
    with pytest.raises(Refusal, match="have 64 features"):
        wide = {**tuned_on(encoder, 1), "encoder_layers": ResNetLayers(depth=10, widen_factor=2 * THIN)}
        build_network(NetworkSettings.model_validate(wide), seed=1)


def test_settings_without_tuned_stages_are_written_as_before(tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path, PREPROCESSING)
    assert not {"tuned_stages", "encoder_layers"} & set(NetworkSettings().model_dump())
    assert not {"tuned_stages", "encoder_layers"} & set(load_encoder(tmp_path).card.model_dump()["layers"])
    tuned = NetworkSettings.model_validate(tuned_on(encoder, 2))
    assert NetworkSettings.model_validate_json(tuned.model_dump_json()) == tuned
    assert tuned.encoded == f"{encoder.card.sha256}-2"
    assert features_of(ResNetLayers(depth=50)) == 2048
