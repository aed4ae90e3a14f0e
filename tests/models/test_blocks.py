"""Group norm replaces every batch norm of MONAI, and no operation runs in place."""

import pytest
import torch
from monai.networks.nets.resnet import ResNetBlock
from torch import nn

from models.blocks import OutOfPlaceBlock
from models.network import SeverityNetwork, build_network
from models.network_settings import ARCHITECTURES, NetworkSettings


def made(norm: str, **settings: object) -> SeverityNetwork:
    return build_network(NetworkSettings.model_validate({"norm": norm, **settings}), seed=1)


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("widen_factor", [1 / 16, 0.25, 0.3])  # 0.3 gives 19 channels, which is not divisible by 8
def test_group_norm_replaces_every_batch_norm(architecture: str, widen_factor: float) -> None:
    batch, group = (made(norm, architecture=architecture, widen_factor=widen_factor) for norm in ("batch", "group"))
    batch_norms = nn.modules.batchnorm._BatchNorm
    assert count(batch, batch_norms) > 10
    assert count(group, batch_norms) == 0
    assert count(group, nn.GroupNorm) == count(batch, batch_norms)
    assert not list(group.buffers()), "running means would be patient statistics without noise"
    assert {name for name, _ in group.named_parameters()} == {name for name, _ in batch.named_parameters()}


def test_backbone_has_no_in_place_operations() -> None:
    network = made("group")
    assert not [name for name, module in network.backbone.named_modules() if getattr(module, "inplace", False)]
    assert count(network, ResNetBlock) == count(network, OutOfPlaceBlock) == 8


@pytest.mark.parametrize("stride", [1, 2])
def test_out_of_place_block_matches_monai_block(stride: int) -> None:
    channels = 8 * stride
    down = nn.Sequential(nn.Conv3d(8, channels, 1, stride=stride), nn.BatchNorm3d(channels)) if stride > 1 else None
    theirs = ResNetBlock(8, channels, stride=stride, downsample=down)
    ours = OutOfPlaceBlock(8, channels, stride=stride, downsample=down)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x.clone()), theirs(x.clone()))


def test_training_output_is_independent_of_the_batch_only_with_group_norm() -> None:
    """Per-patient gradients require that outputs do not depend on other patients. Batch norm violates this."""
    scans = torch.randn(3, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    known = torch.zeros(3, 4)
    for norm, alike in (("group", True), ("batch", False)):
        network = made(norm, architecture="resnet10", widen_factor=0.125).train()
        together = network(scans, known)[:2]
        assert torch.allclose(network(scans[:2], known[:2]), together, atol=1e-5) == alike
