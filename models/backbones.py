"""Builds the backbones by name: MONAI's networks without their classifiers, with batch or group norm.

A backbone turns scans (batch, 2, slices, rows, columns) into features (batch, features). The 3D ones end with a pooling
over the places of their last maps: a mean, or attention. In pretraining on hidden blocks they keep the features of each
place.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet, get_inplanes
from monai.networks.nets.senet import SENet
from torch import Tensor, nn

from models import own_code
from models.blocks import OutOfPlaceBlock, replace_batch_norm
from models.convnext import convnext_stages
from models.efficientnet import efficientnet_b0
from models.network_layers import OwnBackbone, initialise
from models.network_settings import CHANNELS, NetworkSettings
from models.pooling import PlaceAttention, Places
from models.reasons import NETWORK_PLAN
from models.refusal import Refusal
from models.slicewise import SlicesBackbone

_RESNETS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2], "resnet18_slices": [2, 2, 2, 2]}
_POOLINGS = {
    "densenet121": "class_layers.pool",
    "seresnet50": "adaptive_avg_pool",
    "convnext": "pool",
}  # else "avgpool"
_SQUEEZE = 16  # channels per hidden unit of squeeze-and-excitation, as published


def build_backbone(settings: NetworkSettings) -> tuple[nn.Module, int]:
    """Return the backbone of these settings, and its number of features. Draws from torch's generator."""
    if settings.encoder:
        from models.encoders import FrozenEncoder, TunedEncoder

        if settings.tuned_stages:
            return TunedEncoder(settings), settings.encoder_features
        return FrozenEncoder(settings.encoder, settings.encoder_features), settings.encoder_features
    if settings.is_own:
        return _own(settings)
    builder: Callable[[NetworkSettings], tuple[nn.Module, int]] = {
        "densenet121": _densenet121,
        "seresnet50": _seresnet50,
        "efficientnet_b0_slices": _efficientnet_b0_slices,
        "convnext": _convnext,
    }.get(settings.architecture, _resnet)
    backbone, features = builder(settings)
    if settings.hides_blocks:
        backbone.set_submodule(_POOLINGS.get(settings.architecture, "avgpool"), Places())
    return backbone, features


def _own(settings: NetworkSettings) -> tuple[nn.Module, int]:
    """Return the layers of a package with our pooling. Raises Refusal as `own_code.build` does."""
    layers, plan = own_code.build(settings.architecture, settings.code)
    if settings.norm == "group" and plan.has_batch_norm:
        raise Refusal(NETWORK_PLAN, problem='it has batch norm, and the study says norm = "group"')
    initialise(layers, plan)
    return OwnBackbone(layers, plan.features, settings.pooling), plan.features


def _resnet(settings: NetworkSettings) -> tuple[nn.Module, int]:
    grouped = settings.norm == "group"
    resnet = ResNet(
        block=OutOfPlaceBlock if grouped else "basic",
        layers=_RESNETS[settings.architecture],
        block_inplanes=get_inplanes(),
        spatial_dims=2 if settings.is_slicewise else 3,
        n_input_channels=CHANNELS,
        conv1_t_size=5,
        conv1_t_stride=2,  # MONAI's default of 1 takes about ten times as long
        shortcut_type="B",
        widen_factor=settings.widen_factor,
        feed_forward=False,
        act=("relu", {"inplace": not grouped}),
    )
    if grouped:
        replace_batch_norm(resnet)
    features = int(get_inplanes()[-1] * settings.widen_factor)
    if settings.is_slicewise:
        return SlicesBackbone(resnet, features, is_gated=settings.pooling != "attention"), features
    if settings.has_attention:
        resnet.add_module("avgpool", PlaceAttention(features, is_gated=settings.pooling == "gated"))
    return resnet, features


class _Halve(nn.Module):
    """Averages pairs of places along each axis; the last place of an odd number stays alone."""

    def forward(self, maps: Tensor) -> Tensor:
        """Halve the maps (batch, features, slices, rows, columns)."""
        pairs = [min(2, length) for length in maps.shape[2:]]
        return F.avg_pool3d(maps, pairs, pairs, ceil_mode=True)


def _densenet121(settings: NetworkSettings) -> tuple[nn.Module, int]:
    """DenseNet-121 (Huang et al., CVPR 2017)."""
    grouped, width = settings.norm == "group", settings.widen_factor
    dense = DenseNet(
        spatial_dims=3,
        in_channels=CHANNELS,
        out_channels=1,
        init_features=int(64 * width),
        growth_rate=int(32 * width),
        block_config=(6, 12, 24, 16),
        act=("relu", {"inplace": not grouped}),
    )
    if grouped:
        replace_batch_norm(dense)
    for name, module in dense.features.named_children():
        if name.startswith("transition"):
            module.pool = _Halve()  # MONAI's would shrink the default grid to one place, and smaller ones to none
    classifier = dense.class_layers.out
    assert isinstance(classifier, nn.Linear)
    del dense.class_layers.out
    if settings.has_attention:
        dense.class_layers.pool = PlaceAttention(classifier.in_features, is_gated=settings.pooling == "gated")
    return dense, classifier.in_features


class _NarrowSENet(SENet):
    """MONAI's SE network with a share of the usual channels in each stage."""

    def __init__(self, width: float, **settings: Any) -> None:
        self._width = width
        super().__init__(**settings)

    def _make_layer(self, block: Any, planes: int, *args: Any, **settings: Any) -> nn.Sequential:
        stage: nn.Sequential = super()._make_layer(block, int(planes * self._width), *args, **settings)
        return stage


def _seresnet50(settings: NetworkSettings) -> tuple[nn.Module, int]:
    """SE-ResNet-50 (Hu, Shen & Sun, CVPR 2018)."""
    network = _NarrowSENet(
        settings.widen_factor,
        spatial_dims=3,
        in_channels=CHANNELS,
        block="se_resnet_bottleneck",
        layers=(3, 4, 6, 3),
        groups=1,
        reduction=_SQUEEZE,
        dropout_prob=None,
        inplanes=int(64 * settings.widen_factor),
        downsample_kernel_size=1,
        input_3x3=False,
        num_classes=1,
    )
    if settings.norm == "group":
        replace_batch_norm(network)
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
    features = network.inplanes
    network.add_module("last_linear", nn.Identity())
    if settings.has_attention:
        network.add_module("adaptive_avg_pool", PlaceAttention(features, is_gated=settings.pooling == "gated"))
    return network, features


def _efficientnet_b0_slices(settings: NetworkSettings) -> tuple[nn.Module, int]:
    images, features = efficientnet_b0(CHANNELS, settings.widen_factor)
    if settings.norm == "group":
        replace_batch_norm(images)
    return SlicesBackbone(images, features, is_gated=settings.pooling != "attention"), features


def _convnext(settings: NetworkSettings) -> tuple[nn.Module, int]:
    layers, features = convnext_stages(CHANNELS, settings.widen_factor, is_grouped=settings.norm == "group")
    if settings.has_attention:
        layers["pool"] = PlaceAttention(features, is_gated=settings.pooling == "gated")
    else:
        layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return nn.Sequential(layers), features
