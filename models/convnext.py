"""A 3D ConvNeXt: the stages of ConvNeXt-T (Liu et al., A ConvNet for the 2020s, CVPR 2022) from MONAI's blocks.

MONAI's ConvNeXt blocks in 3D are those of MedNeXt (Roy et al., MICCAI 2023). Where they differ here:

- The norm of a block has no scale and shift; the layer after it is linear and can learn both. Only this layer, before
  the activation, has a bias. So the mean over patients of what an activation receives is this bias alone, which the
  gateway bounds. Otherwise many bounded shifts could add up to one threshold that a single patient exceeds.
- The norm is batch norm, or group norm of the usual groups. MedNeXt's has a group for each channel, which leaves
  nothing of a map of one place.
"""

from collections import OrderedDict

from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock
from torch import nn

from models.blocks import norm_without_weights

_CHANNELS = (96, 192, 384, 768)  # at a width of 1
_BLOCKS = (3, 3, 9, 3)
_PATCH = 4  # voxels along each axis that the first layer turns into a place
_KERNEL, _EXPANSION = 5, 4


def convnext_stages(channels: int, width: float, *, is_grouped: bool) -> tuple[OrderedDict[str, nn.Module], int]:
    """Return the layers from scans (batch, `channels`, slices, rows, columns) to maps, by name, and their features."""
    widths = [int(each * width) for each in _CHANNELS]
    stem = nn.Conv3d(channels, widths[0], _PATCH, stride=_PATCH, bias=False)
    layers = OrderedDict[str, nn.Module](stem=nn.Sequential(stem, norm_without_weights(widths[0], is_grouped)))
    before = widths[0]
    for number, (after, blocks) in enumerate(zip(widths, _BLOCKS, strict=True), start=1):
        kinds = [MedNeXtBlock(after, after, _EXPANSION, _KERNEL) for _ in range(blocks)]
        if after != before:
            kinds.insert(0, MedNeXtDownBlock(before, after, _EXPANSION, _KERNEL, use_residual_connection=True))
        layers[f"layer{number}"] = nn.Sequential(*kinds)
        before = after
    layers["norm"] = norm_without_weights(before, is_grouped)
    for stage in layers.values():
        _prepare(stage, is_grouped=is_grouped)
    return layers, before


def _prepare(stage: nn.Module, *, is_grouped: bool) -> None:
    """Change norms and biases as the module says; draw weights so that a layer keeps the variance of its input."""
    for block in stage.modules():
        if isinstance(block, MedNeXtBlock):
            block.add_module("norm", norm_without_weights(block.norm.num_channels, is_grouped))
            for name, layer in block.named_children():
                if isinstance(layer, nn.Conv3d) and name != "conv2":
                    layer.bias = None
    for layer in stage.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
