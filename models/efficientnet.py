"""EfficientNet-B0 (Tan & Le, ICML 2019) on slices: MONAI's layers, in four stages.

What differs from MONAI's:

- The features are those of the last block, as in MONAI's `EfficientNetEncoder`. The layer that would make four times as
  many from them is left out: more features reveal more, and the head moved nearly as far as the gateway's bounds allow.
- No drop connect and no dropout: a network draws no random numbers in training.
- Padding does not presume one size of image.
- Batch norm has PyTorch's momentum and epsilon, which the gateway's bounds assume.
- The first weights of all filters are about equally long. MONAI's are up to 80 times shorter in convolutions of single
  channels than in others. Behind a norm, short filters turn faster: in a round they turned further than the gateway's
  bounds allow.

No pretrained weights are used.
"""

from collections import OrderedDict

from monai.networks.nets.efficientnet import EfficientNet
from torch import nn

_BLOCKS = (  # of B0: repeats, kernel, strides, expansion, channels before and after, squeeze-and-excitation
    "r1_k3_s11_e1_i32_o16_se0.25",
    "r2_k3_s22_e6_i16_o24_se0.25",
    "r2_k5_s22_e6_i24_o40_se0.25",
    "r3_k3_s22_e6_i40_o80_se0.25",
    "r3_k5_s11_e6_i80_o112_se0.25",
    "r4_k5_s22_e6_i112_o192_se0.25",
    "r1_k3_s11_e6_i192_o320_se0.25",
)
# The groups of blocks whose maps have a quarter of the image's side, an eighth, and so on.
_STAGES = ((0, 1), (2,), (3, 4), (5, 6))


def efficientnet_b0(channels: int, width: float) -> tuple[nn.Sequential, int]:
    """Return the layers from images (batch, `channels`, rows, columns) to features (batch, n), and n.

    `width`: share of B0's channels.
    """
    built = EfficientNet(
        list(_BLOCKS),
        spatial_dims=2,
        in_channels=channels,
        num_classes=1,
        width_coefficient=width,
        dropout_rate=0.0,
        norm="batch",
        drop_connect_rate=0.0,
    )
    features: int = built._conv_head.in_channels
    _prepare(built)
    layers = OrderedDict[str, nn.Module](stem=nn.Sequential(built._conv_stem, built._bn0, nn.SiLU()))
    for number, groups in enumerate(_STAGES, start=1):
        layers[f"layer{number}"] = nn.Sequential(
            *(block for group in groups for block in built._blocks[group].children())
        )
    layers["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(layers), features


def _prepare(network: nn.Module) -> None:
    """Change padding and first weights as the module says, and MONAI's Swish, which private training cannot follow.

    MONAI pads outside of the convolutions, by the size of the images that it was told.
    """
    for module in network.modules():
        for name, child in module.named_children():
            if name.endswith("_padding"):
                setattr(module, name, nn.Identity())
            elif name == "_swish":
                setattr(module, name, nn.SiLU())
            elif isinstance(child, nn.Conv2d):
                child.padding = tuple(side // 2 for side in child.kernel_size)
                nn.init.kaiming_normal_(child.weight, nonlinearity="relu")
