"""Frozen encoders: pretrained networks that turn a scan into features and are never trained further.

A study with an encoder trains only a head of some thousand weights on these features. Each hospital computes them once
for each scan (`pipeline.cohort.encoding`), and keeps them. An encoder is a folder:

    encoder.json          its layers, how scans are prepared for it, where it comes from, the hash of its weights
    encoder.safetensors   its weights

The SHA-256 of encoder.json is the encoder's name; it covers the weights through their hash. Neither file holds code.

Only a process that called `allow` computes with an encoder. Others, such as the gateway and a study's app, know the
number of its features, and take features that were computed before.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from models.import_lean import import_lean
from models.network import CHANNELS, NetworkSettings
from models.reasons import ENCODER_ALTERED, ENCODER_CLOSED, ENCODER_FILES, ENCODER_WEIGHTS
from models.refusal import Refusal

CARD, WEIGHTS = "encoder.json", "encoder.safetensors"
MAX_FEATURES = 4096
_MAX_CARD_BYTES = 2**16
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


class ResNetLayers(BaseModel):
    """MONAI's 3D ResNet (`monai.networks.nets.ResNet`) with its published options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: Literal[10, 18, 34, 50, 101, 152, 200]
    shortcut_type: Literal["A", "B"] = "B"
    bias_downsample: bool = True
    conv1_t_size: int = Field(default=7, ge=1, le=15)
    conv1_t_stride: Literal[1, 2] = 1
    no_max_pool: bool = False
    widen_factor: float = Field(default=1.0, ge=1 / 16, le=2)


class EncoderCard(BaseModel):
    """The content of encoder.json.

    `layers`: those of MONAI's ResNet, or the backbone of one of our own networks. `channels`: 1 for the scan alone, 2
    for the scan and its lung mask. `scale`, `offset`: the scan's values, -1 to 1, are multiplied and shifted before the
    first layer. `preprocessing`: that of the studies that may use it (`pipeline.preprocessing.preprocess`). `source`,
    `licence`: where the weights come from, and the terms under which they may be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$")
    layers: ResNetLayers | NetworkSettings
    features: int = Field(ge=1, le=MAX_FEATURES)
    channels: Literal[1, 2] = 2
    scale: float = Field(default=1.0, ge=-1e4, le=1e4)
    offset: float = Field(default=0.0, ge=-1e4, le=1e4)
    preprocessing: dict[str, Any]
    source: str = Field(min_length=1, max_length=500)
    licence: str = Field(min_length=1, max_length=100)
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def layers_are_the_releases_and_read_both_channels(self) -> Self:
        if isinstance(self.layers, NetworkSettings):
            if self.layers.is_own or self.layers.encoder:
                raise ValueError("its layers must be those of a network of this release")
            if self.channels != CHANNELS:
                raise ValueError(f"a backbone of this release reads {CHANNELS} channels")
        return self

    @cached_property
    def content(self) -> bytes:
        """The document in its only form."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode()

    @property
    def sha256(self) -> str:
        """The encoder's name."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Encoder:
    """An encoder in memory, in evaluation mode, without gradients for its weights."""

    card: EncoderCard
    layers: nn.Module

    def encode(self, scans: Tensor) -> Tensor:
        """Turn scans (batch, 2, slices, rows, columns) into features (batch, features), float32."""
        layers = self.layers.to(scans.device)
        image = scans[:, :1].float() * self.card.scale + self.card.offset
        given = torch.cat([image, scans[:, 1:].float()], dim=1)[:, : self.card.channels]
        found: Tensor = layers(given.contiguous(memory_format=torch.channels_last_3d))
        return found.float()


class FrozenEncoder(nn.Module):
    """The backbone of a network with an encoder. It holds no weights, so none are trained or sent.

    Features are standardised for each scan (layer norm without weights: Ba, Kiros & Hinton 2016), so that the head's
    rate fits any encoder.
    """

    def __init__(self, sha256: str, features: int) -> None:
        super().__init__()
        self.sha256, self.features = sha256, features

    def forward(self, given: Tensor) -> Tensor:
        """Return the features of scans (batch, 2, slices, rows, columns), or of features computed before (batch, n).

        Raises Refusal E_ENCODER_CLOSED for scans, if this process may not use the encoder.
        """
        found = given if given.ndim == 2 else allowed(self.sha256).encode(given)
        return F.layer_norm(found, (self.features,))


_allowed: dict[str, Encoder] = {}


def allow(encoder: Encoder) -> None:
    """Let this process compute with an encoder."""
    _allowed[encoder.card.sha256] = encoder


def allowed(sha256: str) -> Encoder:
    """Return an encoder that this process may use. Raises Refusal E_ENCODER_CLOSED."""
    if sha256 not in _allowed:
        raise Refusal(ENCODER_CLOSED)
    return _allowed[sha256]


# --- files ------------------------------------------------------------------------------------------------


def save_encoder(folder: Path, card: EncoderCard, layers: nn.Module) -> Encoder:
    """Write an encoder's folder and return the encoder; `card.weights_sha256` is filled in. Raises OSError."""
    weights = save_tensors({name: tensor.contiguous().clone() for name, tensor in layers.state_dict().items()})
    described = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CARD).write_bytes(described.content)
    return Encoder(described, _frozen(layers))


def read_card(folder: Path) -> EncoderCard:
    """Read what an encoder is, without its weights. Raises Refusal E_ENCODER_FILES."""
    try:
        content = (folder / CARD).read_bytes()
        card = EncoderCard.model_validate_json(content)
    except (OSError, ValidationError) as error:
        raise Refusal(ENCODER_FILES, private=f"{folder}: {type(error).__name__}") from error
    if len(content) > _MAX_CARD_BYTES or card.content != content:
        raise Refusal(ENCODER_FILES, private=f"{folder}: not in the usual form")
    return card


def load_encoder(folder: Path) -> Encoder:
    """Read and verify an encoder.

    Raises Refusal: E_ENCODER_FILES if they are missing or no encoder, E_ENCODER_ALTERED if the weights do not match
    their hash, E_ENCODER_WEIGHTS if they are not those of the layers.
    """
    card = read_card(folder)
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise Refusal(ENCODER_FILES, private=str(folder)) from error
    if hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise Refusal(ENCODER_ALTERED)
    layers = build_layers(card)
    try:
        layers.load_state_dict(load_tensors(content), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise Refusal(ENCODER_WEIGHTS, problem="they do not fit its layers") from error
    return Encoder(card, _frozen(layers))


def build_layers(card: EncoderCard) -> nn.Module:
    """Build an encoder's layers with random weights.

    Raises Refusal E_ENCODER_WEIGHTS if they have another number of features than the card says.
    """
    import_lean("monai")
    from models.backbones import build_backbone

    with torch.random.fork_rng(devices=[]):
        if isinstance(card.layers, NetworkSettings):
            layers, features = build_backbone(card.layers)
        else:
            layers, features = _resnet(card.layers, card.channels)
    if features != card.features:
        raise Refusal(ENCODER_WEIGHTS, problem=f"its layers have {features} features, not {card.features}")
    return layers


def _resnet(asked: ResNetLayers, channels: int) -> tuple[nn.Module, int]:
    from monai.networks.nets.resnet import ResNet, get_inplanes

    is_deep = asked.depth >= _BOTTLENECK_FROM
    layers = ResNet(
        block="bottleneck" if is_deep else "basic",
        layers=list(_BLOCKS[asked.depth]),
        block_inplanes=get_inplanes(),
        spatial_dims=3,
        n_input_channels=channels,
        conv1_t_size=asked.conv1_t_size,
        conv1_t_stride=asked.conv1_t_stride,
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


def _frozen(layers: nn.Module) -> nn.Module:
    layers.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # a fifth faster on CPUs
    return layers.eval().requires_grad_(False)
