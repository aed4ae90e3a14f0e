"""Frozen encoders: files that hold no code, weights from elsewhere, and a network that trains only its head."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from models.encoder_layers import ResNetLayers, features_of
from models.encoder_sources import of_release, of_weights
from models.encoders import (
    CARD,
    WEIGHTS,
    Encoder,
    EncoderCard,
    allow,
    build_layers,
    load_encoder,
)
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import load_release, save_release
from models.saliency import saliency
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.descriptions import description, provenance
from tests.helpers.encoders import FEATURES, head_on, small_encoder

PREPROCESSING = Preprocessing(method=1, shape=(16, 16, 16))
SCANS = torch.rand(3, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
KNOWN = torch.zeros(3, 4)
THIN = ResNetLayers(depth=10, widen_factor=1 / 16)


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return small_encoder(tmp_path / "encoder", PREPROCESSING)


def foreign(layers: ResNetLayers | dict[str, object] = THIN, **changes: object) -> EncoderCard:
    content = {
        "name": "foreign",
        "layers": layers,
        "features": features_of(layers) if isinstance(layers, ResNetLayers) else 32,
        "channels": 1,
        "preprocessing": PREPROCESSING.model_dump(mode="json"),
        "source": "another project",
        "licence": "MIT",
        "weights_sha256": "0" * 64,
    }
    return EncoderCard.model_validate(content | changes)


def test_encoder_is_read_as_it_was_written(encoder: Encoder, tmp_path: Path) -> None:
    read = load_encoder(tmp_path / "encoder")
    assert read.card == encoder.card and read.card.sha256 == encoder.card.sha256
    torch.testing.assert_close(read.encode(SCANS), encoder.encode(SCANS), rtol=0, atol=0)
    assert read.encode(SCANS).shape == (3, FEATURES)
    assert not any(weight.requires_grad for weight in read.layers.parameters())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "E_ENCODER_FILES"),
        (lambda folder: (folder / CARD).write_text("{}"), "E_ENCODER_FILES"),
        (lambda folder: (folder / CARD).write_bytes((folder / CARD).read_bytes() + b" "), "E_ENCODER_FILES"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0"), "E_ENCODER_ALTERED"),
        (lambda folder: with_layers(folder, widen_factor=0.125, features=64), "E_ENCODER_WEIGHTS"),
        (lambda folder: with_layers(folder, features=31), "E_ENCODER_WEIGHTS"),
    ],
)
def test_damaged_encoder_is_refused(encoder: Encoder, tmp_path: Path, change: object, code: str) -> None:
    change(tmp_path / "encoder")  # type: ignore[operator]
    with pytest.raises(Refusal, match=code):
        load_encoder(tmp_path / "encoder")


def with_layers(folder: Path, *, features: int, widen_factor: float = 1 / 16) -> None:
    """Change what a card says of its layers, in the usual form."""
    content = json.loads((folder / CARD).read_text())
    content["features"], content["layers"]["widen_factor"] = features, widen_factor
    (folder / CARD).write_bytes(EncoderCard.model_validate(content).content)


@pytest.mark.parametrize(
    "layers",
    [{"architecture": "my-nets:tiny", "code": "0" * 64}, {"encoder": "0" * 64, "encoder_features": 32}],
)
def test_layers_are_those_of_the_release(layers: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="network of this release"):
        foreign(layers, channels=2)


# --- the network ---


def test_only_the_head_is_trained_and_sent(encoder: Encoder) -> None:
    network = build_network(NetworkSettings(**head_on(encoder)), seed=1)  # type: ignore[arg-type]
    assert set(network.state_dict()) == {"tabular.0.weight", "tabular.0.bias", "head.weight", "head.bias"}
    assert network.head.weight.shape == (2, FEATURES + 8)


def test_features_computed_before_give_the_same_answer_as_scans(encoder: Encoder) -> None:
    allow(encoder)
    network = build_network(NetworkSettings(**head_on(encoder)), seed=1).eval()  # type: ignore[arg-type]
    torch.testing.assert_close(network(encoder.encode(SCANS), KNOWN), network(SCANS, KNOWN), rtol=0, atol=0)
    features = network.of_scans(SCANS)
    np.testing.assert_allclose(features.mean(dim=1), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(dim=1, unbiased=False), 1, atol=1e-2)


def test_scan_needs_an_encoder_that_this_process_may_use() -> None:
    network = build_network(NetworkSettings(encoder="a" * 64, encoder_features=5), seed=1)
    assert network(torch.rand(3, 5), KNOWN).shape == (3, 2)
    with pytest.raises(Refusal, match="E_ENCODER_CLOSED"):
        network(SCANS, KNOWN)


def test_map_shows_what_the_encoder_saw(encoder: Encoder) -> None:
    allow(encoder)
    network = build_network(NetworkSettings(**head_on(encoder)), seed=1).eval()  # type: ignore[arg-type]
    scan = SCANS[0].clone()
    scan[1] = 1.0
    heat = [saliency(network, scan, KNOWN[0], label) for label in (0, 1)]
    assert all(each.shape == (16, 16, 16) for each in heat) and any(each.max() == 1 for each in heat)


@pytest.mark.parametrize(
    "changes",
    [{"encoder_features": 0}, {"encoder": ""}, {"architecture": "resnet10"}, {"pooling": "gated"}, {"widen_factor": 1}],
)
def test_encoder_takes_the_place_of_the_architecture(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NetworkSettings.model_validate({"encoder": "a" * 64, "encoder_features": 5} | changes)


def test_networks_without_encoder_are_written_as_before() -> None:
    assert not {"encoder", "encoder_features"} & NetworkSettings().model_dump().keys()


# --- weights from elsewhere ---


def test_backbone_of_a_release_becomes_an_encoder(tmp_path: Path) -> None:
    settings = NetworkSettings(architecture="resnet10", widen_factor=1 / 16)
    network = build_network(settings, seed=5).eval()
    save_release(tmp_path / "release", network, description(network=settings))
    made = of_release(tmp_path / "release", tmp_path / "made", name="ours", licence="Apache-2.0")
    assert load_release(tmp_path / "release").sha256 in made.card.source
    assert made.card.learnt_at == () and b"learnt_at" not in made.card.content
    torch.testing.assert_close(load_encoder(tmp_path / "made").encode(SCANS), network.backbone(SCANS))


def test_encoder_names_the_hospitals_whose_patients_trained_the_release(tmp_path: Path) -> None:
    settings = NetworkSettings(architecture="resnet10", widen_factor=1 / 16)
    save_release(
        tmp_path / "release",
        build_network(settings, seed=5),
        description(network=settings, provenance=provenance(south=True, north=True, coast=False)),
    )
    of_release(tmp_path / "release", tmp_path / "made", name="ours", licence="Apache-2.0")
    assert load_encoder(tmp_path / "made").card.learnt_at == ("north", "south")


@pytest.mark.parametrize("form", ["safetensors", "state dict", "wrapped", "bundle"])
def test_weights_of_another_project_become_an_encoder(tmp_path: Path, form: str) -> None:
    card = foreign(scale=0.5, offset=0.5)
    layers = build_layers(card)
    tensors = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    source = tmp_path / "weights.pt"
    match form:
        case "safetensors":
            source = tmp_path / "weights.safetensors"
            save_file(tensors, source)
        case "state dict":
            torch.save(tensors | {"fc.weight": torch.zeros(3, 3)}, source)
        case "wrapped":
            torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, source)
        case "bundle":
            source = tmp_path / "bundle"
            (source / "models").mkdir(parents=True)
            torch.save(tensors, source / "models" / "model.pt")
    of_weights(source, tmp_path / "made", card)
    torch.testing.assert_close(load_encoder(tmp_path / "made").encode(SCANS), layers.eval()(SCANS[:, :1] * 0.5 + 0.5))


def test_network_that_saw_a_scan_in_three_colours_reads_it_once(tmp_path: Path) -> None:
    card, of_colours = foreign(), ResNet("basic", [1] * 4, [4, 8, 16, 32], n_input_channels=3, feed_forward=False)
    torch.save(of_colours.state_dict(), tmp_path / "weights.pt")
    of_weights(tmp_path / "weights.pt", tmp_path / "made", card)
    expected = of_colours.eval()(SCANS[:, :1].repeat(1, 3, 1, 1, 1))
    torch.testing.assert_close(load_encoder(tmp_path / "made").encode(SCANS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", ["SPL", "RAS", "SRA", "LPS", "IAR"])
def test_scan_is_turned_to_the_axes_of_the_network(axes: str) -> None:
    """A bright mark at the head, the back and the left is at the end of each axis that points there."""
    scan = torch.zeros(1, 2, 6, 7, 8)
    scan[0, 0, 5, 6, 7] = 1.0
    seen = []
    layers = nn.Module()
    layers.forward = lambda given: seen.append(given) or given  # type: ignore[method-assign]
    Encoder(foreign(axes=axes), layers).encode(scan)
    lengths = {"S": 6, "I": 6, "P": 7, "A": 7, "L": 8, "R": 8}
    assert list(seen[0].shape[2:]) == [lengths[letter] for letter in axes]
    assert seen[0].nonzero()[0].tolist()[2:] == [lengths[a] - 1 if a in "SPL" else 0 for a in axes]


def test_encoders_with_the_usual_axes_keep_their_names() -> None:
    assert "axes" not in json.loads(foreign().content)
    assert EncoderCard.model_validate_json(foreign(axes="RAS").content).axes == "RAS"


class Opens:
    """Creates a folder if it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_file_with_code_is_never_run(tmp_path: Path, form: str) -> None:
    source, opened = tmp_path / "weights.pt", tmp_path / "opened"
    content = {"conv1.weight": torch.zeros(1), "more": Opens(opened)}
    if form == "torch":
        torch.save(content, source)
    else:
        source.write_bytes(pickle.dumps(content))
    with pytest.raises(Refusal, match="E_ENCODER_WEIGHTS"):
        of_weights(source, tmp_path / "made", foreign())
    assert not opened.exists() and not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [{}, {"conv1.weight": torch.zeros(1)}, [1, 2], {"state_dict": "no"}])
def test_other_weights_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(Refusal, match="E_ENCODER_WEIGHTS"):
        of_weights(tmp_path / "weights.pt", tmp_path / "made", foreign())
    with pytest.raises(Refusal, match="there is no file"):
        of_weights(tmp_path / "absent.pt", tmp_path / "made", foreign())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conv1.weight", float("nan")),
        ("layer4.0.conv2.weight", float("inf")),
        ("bn1.bias", -float("inf")),
        ("bn1.running_var", -1.0),
    ],
)
def test_weights_that_are_no_usable_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    card = foreign()
    tensors = build_layers(card).state_dict()
    tensors[name].view(-1)[-1] = value
    torch.save(tensors, tmp_path / "weights.pt")
    with pytest.raises(Refusal, match=f"E_ENCODER_WEIGHTS: .*1 tensors hold no usable numbers, such as {name}"):
        of_weights(tmp_path / "weights.pt", tmp_path / "made", card)
    assert not (tmp_path / "made").exists()


def test_encoder_whose_weights_are_no_numbers_is_not_read(encoder: Encoder, tmp_path: Path) -> None:
    """As one that an earlier version wrote, with its right hash."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in encoder.layers.state_dict().items()}
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, tmp_path / "encoder" / WEIGHTS)
    sha256 = hashlib.sha256((tmp_path / "encoder" / WEIGHTS).read_bytes()).hexdigest()
    card = EncoderCard.model_validate(encoder.card.model_dump() | {"weights_sha256": sha256})
    (tmp_path / "encoder" / CARD).write_bytes(card.content)
    with pytest.raises(Refusal, match=r"E_ENCODER_WEIGHTS: .*no usable numbers"):
        load_encoder(tmp_path / "encoder")


@pytest.mark.parametrize("scale", [0, -0.0, float("nan")])
def test_scale_keeps_the_scan(scale: float) -> None:
    with pytest.raises(ValidationError, match="scale"):
        foreign(scale=scale)


def test_encoder_replaces_nothing(encoder: Encoder, tmp_path: Path) -> None:
    """A study and hospitals name an encoder by its hash: another one in its folder would be a damaged one to them."""
    other = build_layers(foreign())
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "file").write_bytes(b"notes")
    for taken in ("encoder", "file"):
        with pytest.raises(Refusal, match="E_ENCODER_FOLDER"):
            of_weights(tmp_path / "weights.pt", tmp_path / taken, foreign())
    assert load_encoder(tmp_path / "encoder").card == encoder.card
    assert (tmp_path / "file").read_bytes() == b"notes"
    (tmp_path / "empty").mkdir()
    of_weights(tmp_path / "weights.pt", tmp_path / "empty", foreign())


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_encoder_that_was_not_finished_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], is_new: bool
) -> None:
    torch.save(build_layers(foreign()).state_dict(), tmp_path / "weights.pt")
    folder, write = tmp_path / "encoder", Path.write_bytes
    if not is_new:
        folder.mkdir()

    def stopped(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        if path.suffix == ".json":
            raise stop
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(stop):
        patch.setattr(Path, "write_bytes", stopped)
        of_weights(tmp_path / "weights.pt", folder, foreign())
    assert folder.exists() is not is_new
    made = of_weights(tmp_path / "weights.pt", folder, foreign())
    assert load_encoder(folder).card == made.card


def test_name_of_a_changed_card_is_not_that_of_the_first() -> None:
    card = foreign()
    before = card.sha256
    assert card.model_copy(update={"licence": "other terms"}).sha256 != before


@pytest.mark.parametrize("depth", [18, 50])
def test_number_of_features_is_known_without_the_layers(depth: int) -> None:
    layers = ResNetLayers(depth=depth, widen_factor=1 / 16)  # type: ignore[arg-type]
    assert build_layers(foreign(layers))(SCANS[:, :1]).shape == (3, features_of(layers))
