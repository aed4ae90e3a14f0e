"""Frozen encoders: pretrained networks that turn a scan into features.

A study with an encoder trains only a head of some thousand weights on these features. Each hospital computes them once
for each scan (`pipeline.cohort.encoding`), and keeps them. With `tuned_stages`, a study also trains the last stages of
the encoder; the hospitals then keep the maps before these stages. An encoder is a folder:

    encoder.json          its layers, how scans are prepared for it, where it comes from, the hash of its weights
    encoder.safetensors   its weights

The SHA-256 of encoder.json is the encoder's name; it covers the weights through their hash. Neither file holds code.

Only a process that called `allow` computes with an encoder, or starts to tune it from its weights. Others, such as a
study's app, know its layers or the number of its features, and take what was computed before.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from models.encoder_layers import ResNetLayers, build, divide
from models.network_settings import CHANNELS, NetworkSettings
from models.reasons import ENCODER_ALTERED, ENCODER_CLOSED, ENCODER_FILES, ENCODER_FOLDER, ENCODER_WEIGHTS
from models.refusal import Refusal

CARD, WEIGHTS = "encoder.json", "encoder.safetensors"
MAX_FEATURES = 4096
AXES = "SPL"  # slices to the head, rows to the back, columns to the left: the axes of a cohort's tensors
_OPPOSITE = {"I": "S", "A": "P", "R": "L"}
_MAX_CARD_BYTES = 2**16


class EncoderCard(BaseModel):
    """The content of encoder.json.

    `layers`: those of MONAI's ResNet, or the backbone of one of our own networks. `channels`: 1 for the scan alone, 2
    for the scan and its lung mask. `scale`, `offset`: the scan's values, -1 to 1, are multiplied and shifted before the
    first layer. `axes`: where each axis of the network's input points to (superior, inferior, anterior, posterior,
    left, right): "SPL" is as the cohort has them, "RAS" is MONAI's usual order. `preprocessing`: that of the studies
    that may use it (`pipeline.preprocessing.preprocess`). `source`, `licence`: where the weights come from, and the
    terms under which they may be used. `learnt_at`: the hospitals whose patients trained them, as far as known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$")
    layers: ResNetLayers | NetworkSettings
    features: int = Field(ge=1, le=MAX_FEATURES)
    channels: Literal[1, 2] = 2
    scale: float = Field(default=1.0, ge=-1e4, le=1e4)
    offset: float = Field(default=0.0, ge=-1e4, le=1e4)
    axes: str = Field(default=AXES, pattern=r"^[SIAPLR]{3}$")
    preprocessing: dict[str, Any]
    source: str = Field(min_length=1, max_length=500)
    licence: str = Field(min_length=1, max_length=100)
    learnt_at: tuple[Annotated[str, Field(pattern=r"^[^\x00-\x1f|]{1,100}$")], ...] = ()
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def layers_are_the_releases_and_read_both_channels(self) -> Self:
        if isinstance(self.layers, NetworkSettings):
            if self.layers.is_own or self.layers.encoder:
                raise ValueError("its layers must be those of a network of this release")
            if self.channels != CHANNELS:
                raise ValueError(f"a backbone of this release reads {CHANNELS} channels")
        return self

    @field_validator("scale")
    @classmethod
    def scale_keeps_the_scan(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("must not be 0: all scans would look the same")
        return scale

    @field_validator("axes")
    @classmethod
    def axes_are_three(cls, axes: str) -> str:
        if {_OPPOSITE.get(letter, letter) for letter in axes} != set(AXES):
            raise ValueError("must name each axis once, such as RAS")
        return axes

    @model_serializer(mode="wrap")
    def usual_values_are_left_out(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the usual `axes` and an empty `learnt_at`, so that encoders made before keep their names."""
        content: dict[str, Any] = write(self)
        if self.axes == AXES:
            del content["axes"]
        if not self.learnt_at:
            del content["learnt_at"]
        return content

    @property
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
        found: Tensor = layers(self._given(scans))
        return found.float()

    def maps(self, scans: Tensor, tuned_stages: int) -> Tensor:
        """Turn scans into the maps before the last stages (batch, channels, slices, rows, columns), float32."""
        found = self._given(scans)
        for layer in divide(self.layers.to(scans.device), tuned_stages)[0].values():
            found = layer(found)
        return found.float()

    def _given(self, scans: Tensor) -> Tensor:
        image = scans[:, :1].float() * self.card.scale + self.card.offset
        given = _turned(torch.cat([image, scans[:, 1:].float()], dim=1)[:, : self.card.channels], self.card.axes)
        return given.contiguous(memory_format=torch.channels_last_3d)


def _turned(scans: Tensor, axes: str) -> Tensor:
    """Return scans (batch, channels, slices, rows, columns) with other axes, see `EncoderCard`."""
    if axes == AXES:
        return scans
    order = [2 + AXES.index(_OPPOSITE.get(letter, letter)) for letter in axes]
    opposite = [2 + place for place, letter in enumerate(axes) if letter in _OPPOSITE]
    return scans.permute(0, 1, *order).flip(opposite)


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


class TunedEncoder(nn.Module):
    """The backbone of a network that tunes the last stages of an encoder. It holds these stages, and no frozen layer.

    So only they are trained and sent. Their batch norms are trained as those of any network. Of the frozen layers, in
    evaluation mode, it takes the maps that were computed before. Features are standardised as in `FrozenEncoder`.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        """Build the stages, from the encoder's weights if this process may use it, else with random ones.

        Raises Refusal E_ENCODER_WEIGHTS if the encoder has other layers or features than the settings say.
        """
        super().__init__()
        assert settings.encoder_layers is not None  # NetworkSettings ensures it
        self.sha256, self.features = settings.encoder, settings.encoder_features
        self.tuned_stages = settings.tuned_stages
        layers, features = build(settings.encoder_layers, CHANNELS)
        if features != self.features:
            raise Refusal(ENCODER_WEIGHTS, problem=f"its layers have {features} features, not {self.features}")
        for name, layer in divide(layers, self.tuned_stages)[1].items():
            self.add_module(name, layer)
        if known := _allowed.get(self.sha256):
            if known.card.layers != settings.encoder_layers:
                raise Refusal(ENCODER_WEIGHTS, problem="the study says that it has other layers")
            for name, layer in divide(known.layers, self.tuned_stages)[1].items():
                self.get_submodule(name).load_state_dict(layer.state_dict())

    def forward(self, given: Tensor) -> Tensor:
        """Return the features of scans (batch, 2, slices, rows, columns), or of their maps (`Encoder.maps`).

        Maps have 4 channels or more. Raises Refusal E_ENCODER_CLOSED for scans, if this process may not use the
        encoder.
        """
        found = allowed(self.sha256).maps(given, self.tuned_stages) if given.shape[1] == CHANNELS else given
        for layer in self.children():
            found = layer(found)
        return F.layer_norm(found.flatten(1), (self.features,))


_allowed: dict[str, Encoder] = {}


def allow(encoder: Encoder) -> None:
    """Let this process compute with an encoder."""
    _allowed[encoder.card.sha256] = encoder


def is_allowed(sha256: str) -> bool:
    return sha256 in _allowed


def allowed(sha256: str) -> Encoder:
    """Return an encoder that this process may use. Raises Refusal E_ENCODER_CLOSED."""
    if sha256 not in _allowed:
        raise Refusal(ENCODER_CLOSED)
    return _allowed[sha256]


# --- files ------------------------------------------------------------------------------------------------


def save_encoder(folder: Path, card: EncoderCard, layers: nn.Module) -> Encoder:
    """Write an encoder's folder and return the encoder; `card.weights_sha256` is filled in.

    An encoder is never replaced: a study names it by its hash. Raises Refusal: E_ENCODER_FOLDER if the folder holds
    anything, E_ENCODER_WEIGHTS if a weight is not finite or a variance is below 0; OSError.
    """
    _check_folder(folder)
    _check_numbers(layers)
    weights = save_tensors({name: tensor.contiguous().clone() for name, tensor in layers.state_dict().items()})
    described = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / WEIGHTS).write_bytes(weights)
        (folder / CARD).write_bytes(described.content)
    except BaseException:  # also Ctrl-C: half an encoder would be in the way of the next attempt
        for name in (WEIGHTS, CARD):
            (folder / name).unlink(missing_ok=True)
        if is_new:
            folder.rmdir()
        raise
    return Encoder(described, _frozen(layers))


def _check_folder(folder: Path) -> None:
    """Raise Refusal E_ENCODER_FOLDER unless an encoder can be written there without replacing anything; OSError."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Refusal(ENCODER_FOLDER, private=str(folder))


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
    their hash, E_ENCODER_WEIGHTS if they are not those of the layers or hold NaN or infinity.
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
    _check_numbers(layers)
    return Encoder(card, _frozen(layers))


def build_layers(card: EncoderCard) -> nn.Module:
    """Build an encoder's layers with random weights.

    Raises Refusal E_ENCODER_WEIGHTS if they have another number of features than the card says.
    """
    layers, features = build(card.layers, card.channels)
    if features != card.features:
        raise Refusal(ENCODER_WEIGHTS, problem=f"its layers have {features} features, not {card.features}")
    return layers


def _check_numbers(layers: nn.Module) -> None:
    """Raise Refusal E_ENCODER_WEIGHTS if a weight is not finite or a variance is below 0.

    A file of a training that diverged has such weights, and the features would be no numbers.
    """
    wrong = [
        name
        for name, tensor in layers.state_dict().items()
        if not torch.isfinite(tensor).all() or (name.endswith("running_var") and (tensor < 0).any())
    ]
    if wrong:
        raise Refusal(ENCODER_WEIGHTS, problem=f"{len(wrong)} tensors hold no usable numbers, such as {wrong[0]}")


def _frozen(layers: nn.Module) -> nn.Module:
    layers.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # a fifth faster on CPUs
    return layers.eval().requires_grad_(False)
