"""The layers of encoders: MONAI's 3D ResNets with their published options, or a backbone of our own.

Some of them can be divided into stages: the layers before the first, four stages, and the pooling after the last.
Importing this module does not import torch.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.import_lean import import_lean

if TYPE_CHECKING:
    from torch import nn

    from models.network_settings import NetworkSettings

STAGES = 4
# Our own networks whose layers are computed one after the other, in stages. Networks that read slice by slice and a
# DenseNet are not divided.
IN_STAGES = ("resnet10", "resnet18", "seresnet50", "convnext")
_BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_BOTTLENECK_FROM, _EXPANSION = 50, 4
_LAST_PLANES = 512  # of the last stage, before the expansion of a bottleneck


Size = Annotated[int, Field(ge=1, le=15)]
Step = Literal[1, 2]


class ResNetLayers(BaseModel):
    """MONAI's 3D ResNet (`monai.networks.nets.ResNet`) with its published options.

    `conv1_t_size`, `conv1_t_stride`: of the first convolution, for all axes or for each. A ResNet of images that was
    inflated to 3D (I3ResNet: Carreira & Zisserman, CVPR 2017) has (3, 7, 7) and (1, 2, 2).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: Literal[10, 18, 34, 50, 101, 152, 200]
    shortcut_type: Literal["A", "B"] = "B"
    bias_downsample: bool = True
    conv1_t_size: Size | tuple[Size, Size, Size] = 7
    conv1_t_stride: Step | tuple[Step, Step, Step] = 1
    no_max_pool: bool = False
    widen_factor: float = Field(default=1.0, ge=1 / 16, le=2)


def encoded_name(encoder: str, tuned_stages: int) -> str:
    """Return the name of what an encoder's frozen layers make of scans: features, or maps before the tuned stages."""
    return f"{encoder}-{tuned_stages}" if tuned_stages else encoder


def build(layers: "ResNetLayers | NetworkSettings", channels: int) -> "tuple[nn.Module, int]":
    """Build layers with random weights; return them and their number of features.

    `channels`: of a scan, for MONAI's ResNet. The global random state does not change.
    """
    import torch

    import_lean("monai")
    from models.backbones import build_backbone

    with torch.random.fork_rng(devices=[]):
        return _resnet(layers, channels) if isinstance(layers, ResNetLayers) else build_backbone(layers)


def _resnet(asked: ResNetLayers, channels: int) -> "tuple[nn.Module, int]":
    from monai.networks.nets.resnet import ResNet, get_inplanes

    is_deep = asked.depth >= _BOTTLENECK_FROM
    layers = ResNet(
        block="bottleneck" if is_deep else "basic",
        layers=list(_BLOCKS[asked.depth]),
        block_inplanes=get_inplanes(),
        spatial_dims=3,
        n_input_channels=channels,
        conv1_t_size=asked.conv1_t_size,  # type: ignore[arg-type]  # MONAI's hint means tuples of any length
        conv1_t_stride=asked.conv1_t_stride,  # type: ignore[arg-type]
        no_max_pool=asked.no_max_pool,
        shortcut_type=asked.shortcut_type,
        widen_factor=asked.widen_factor,
        feed_forward=False,
        bias_downsample=asked.bias_downsample,
    )
    return layers, features_of(asked)


def features_of(layers: ResNetLayers) -> int:
    """Return the number of features of MONAI's ResNet."""
    return int(_LAST_PLANES * layers.widen_factor) * (_EXPANSION if layers.depth >= _BOTTLENECK_FROM else 1)


def has_stages(layers: "ResNetLayers | NetworkSettings") -> bool:
    """Tell whether layers can be divided into stages (`divide`)."""
    return isinstance(layers, ResNetLayers) or layers.architecture in IN_STAGES


def has_batch_norm(layers: "ResNetLayers | NetworkSettings") -> bool:
    return isinstance(layers, ResNetLayers) or layers.norm == "batch"


def divide(layers: "nn.Module", tuned_stages: int) -> "tuple[dict[str, nn.Module], dict[str, nn.Module]]":
    """Return the layers before the last `tuned_stages` stages and those from there on, by name, as they are computed.

    The layers must have stages (`has_stages`).
    """
    skips = {"maxpool"} if getattr(layers, "no_max_pool", False) else set()
    ordered = [(name, layer) for name, layer in layers.named_children() if name not in skips]
    at = [name for name, _ in ordered].index(f"layer{STAGES + 1 - tuned_stages}")
    return dict(ordered[:at]), dict(ordered[at:])
