"""The 2.5D network: attention over slices, and support in all code that handles the 3D network."""

from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch
from torch import Tensor

from federation.protocol.flat_weights import pack, unpack
from models.inversion import seen_update
from models.network import SeverityNetwork, build_network
from models.network_settings import LABELS, TABULAR, NetworkSettings
from models.release import load_release, save_release
from models.saliency import saliency
from models.slicewise import SlicesBackbone
from pipeline.bundle import write_bundle
from pipeline.training.private_training import hook, patient_losses
from tests.helpers.descriptions import description
from tests.models.planted import learnt, plant

SMALL = NetworkSettings(architecture="resnet18_slices", widen_factor=0.125)
EFFICIENT = NetworkSettings(architecture="efficientnet_b0_slices", widen_factor=1 / 16)
EACH = pytest.mark.parametrize("settings", [SMALL, EFFICIENT], ids=lambda settings: settings.architecture)


def scans(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 6, 32, 28, generator=torch.Generator().manual_seed(0))


def backbone(network: SeverityNetwork) -> SlicesBackbone:
    assert isinstance(network.backbone, SlicesBackbone)
    return network.backbone


def moved(settings: NetworkSettings = SMALL) -> SeverityNetwork:
    """Return a network whose buffers differ from their initial values."""
    network = build_network(settings, seed=3).train()
    with torch.no_grad():
        network(scans(), torch.zeros(3, TABULAR))
    return network.eval()


@EACH
def test_network_returns_one_logit_per_label_for_any_number_of_slices(settings: NetworkSettings) -> None:
    network = build_network(settings, seed=1).eval()
    for slices in (1, 5):
        logits = network(torch.zeros(3, 2, slices, 32, 28), torch.zeros(3, TABULAR))
        assert logits.shape == (3, len(LABELS))
        assert torch.isfinite(logits).all()


def test_attention_sums_to_one_and_follows_slice_order() -> None:
    reader = backbone(moved())
    with torch.inference_mode():
        here = reader.attention(reader.encode(scans()))
        there = reader.attention(reader.encode(scans().flip(2)))
    assert here.shape == (3, 6)
    torch.testing.assert_close(here.sum(dim=1), torch.ones(3))
    assert (here.std(dim=1) > 1e-4).all(), "attention is equal for all slices"
    torch.testing.assert_close(there, here.flip(1))


@EACH
def test_scan_features_are_attention_weighted_mean_of_slices(settings: NetworkSettings) -> None:
    """Encode each slice alone, then take the weighted mean. Slices and patients do not affect each other."""
    reader = backbone(moved(settings))
    with torch.inference_mode():
        together = reader(scans())
        for scan, features in zip(scans(), together, strict=True):
            alone = torch.cat([reader.encoder(scan[None, :, number]) for number in range(scan.shape[1])])
            weights = reader.attention(alone[None])[0]
            torch.testing.assert_close(weights @ alone, features, atol=1e-5, rtol=1e-5)


def test_slice_without_attention_has_no_effect() -> None:
    network = moved()
    reader = backbone(network)
    with torch.no_grad():
        reader.importance.mul_(1e4)  # all of the attention goes to one slice
        chosen = int(reader.attention(reader.encode(scans(1))).argmax())
        before = network(scans(1), torch.zeros(1, TABULAR))
        changed = scans(1)
        changed[:, :, [number for number in range(6) if number != chosen]] *= 0.9
        torch.testing.assert_close(network(changed, torch.zeros(1, TABULAR)), before, atol=1e-4, rtol=1e-4)
        changed[:, :, chosen] *= 0.5
        assert not torch.allclose(network(changed, torch.zeros(1, TABULAR)), before, atol=1e-2)


@EACH
def test_network_is_unchanged_by_pack_and_unpack(settings: NetworkSettings) -> None:
    sent, received = moved(settings), build_network(settings, seed=2)
    arrays, buffers = pack(sent)
    assert {name.rpartition(".")[2] for name in buffers} == {"running_mean", "running_var", "num_batches_tracked"}
    unpack(received, arrays, buffers)
    assert all(torch.equal(tensor, received.state_dict()[name]) for name, tensor in sent.state_dict().items())


@EACH
def test_release_gives_equal_output_and_card_names_architecture(tmp_path: Path, settings: NetworkSettings) -> None:
    network = moved(settings)
    save_release(tmp_path, network, description(network=settings))
    with torch.inference_mode():
        before, after = (n(scans(), torch.ones(3, TABULAR)) for n in (network, load_release(tmp_path).network))
    assert torch.equal(before, after)
    assert f"2.5D {settings.architecture}" in (tmp_path / "card.md").read_text()


@EACH
def test_per_patient_gradients_are_correct_for_differential_privacy(settings: NetworkSettings) -> None:
    """In double precision, because group norm over few values enlarges the rounding of float32."""
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    private, given = settings.model_copy(update={"norm": "group"}), scans().double()
    network = build_network(private, seed=1).train().double()
    patient_losses(hook(network)(given, torch.zeros(3, TABULAR).double()).double(), targets).sum().backward()
    found = torch.cat([parameter.grad_sample.flatten(1) for parameter in network.parameters()], dim=1)
    for number in range(3):
        alone, own = build_network(private, seed=1).train().double(), slice(number, number + 1)
        patient_losses(alone(given[own], torch.zeros(1, TABULAR).double()).double(), targets[own]).sum().backward()
        expected = torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None])
        torch.testing.assert_close(found[number], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_inversion_attack_reads_moments_of_2d_batch_norms() -> None:
    before = build_network(SMALL, seed=1).train()
    after = build_network(SMALL, seed=1).train()
    after(scans(), torch.zeros(3, TABULAR))
    seen = seen_update(before, after)
    assert len(seen.moments) == sum(isinstance(m, torch.nn.BatchNorm2d) for m in after.modules()) > 10
    images = scans().transpose(1, 2).flatten(0, 1)
    stem = backbone(before).encoder.conv1(images)
    mean, variance = seen.moments["backbone.encoder.bn1"]
    torch.testing.assert_close(mean, stem.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(variance.detach(), stem.var(dim=(0, 2, 3)).detach(), rtol=1e-2)


@pytest.mark.slow
@EACH
def test_monai_loads_the_bundle(tmp_path: Path, settings: NetworkSettings) -> None:
    folder = tmp_path / "model"
    release = save_release(folder, moved(settings), description(network=settings))
    write_bundle(folder, release)
    loaded = monai.bundle.load(
        folder.name, bundle_dir=tmp_path, workflow_type="inference", source="github", device="cpu"
    )
    assert isinstance(backbone(loaded), SlicesBackbone)
    ours = release.network.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in loaded.state_dict().items())


@pytest.mark.slow
def test_short_training_moves_attention_to_the_lesion() -> None:
    network = learnt(SMALL, steps=60)
    reader = backbone(network)
    rng = np.random.default_rng(99)
    ill = [plant(rng, with_lesion=True) for _ in range(20)]
    with torch.inference_mode():
        attention = reader.attention(reader.encode(torch.stack([case.scan for case in ill]))).numpy()
    held = [case.lesion.any(axis=(1, 2)) for case in ill]
    on_lesion = np.mean([paid[there].sum() for paid, there in zip(attention, held, strict=True)])
    assert on_lesion > 2 * np.mean([there.mean() for there in held])
    found = [saliency(network, case.scan, torch.zeros(TABULAR), 1) for case in ill]
    assert np.mean([case.lesion.flat[each.argmax()] for each, case in zip(found, ill, strict=True)]) >= 0.9
