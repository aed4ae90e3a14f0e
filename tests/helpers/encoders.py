"""A small frozen encoder with random weights, for tests."""

from collections.abc import Callable
from pathlib import Path

from models.encoders import Encoder, EncoderCard, build_layers, save_encoder
from models.network_settings import NetworkSettings
from pipeline.preprocessing.preprocess_settings import Preprocessing

LAYERS = NetworkSettings(architecture="resnet10", widen_factor=1 / 16)
FEATURES = 32


class Silent:
    """A progress bar that shows nothing."""

    def __call__(self, title: str) -> "Silent":
        return self

    def __enter__(self) -> Callable[[int, int], None]:
        return lambda done, total: None

    def __exit__(self, *_: object) -> None:
        pass


def small_encoder(
    folder: Path,
    preprocessing: Preprocessing,
    *,
    name: str = "small",
    layers: NetworkSettings = LAYERS,
    learnt_at: tuple[str, ...] = (),
) -> Encoder:
    """Write an encoder into a folder. Its weights are random. Without other layers it has FEATURES."""
    card = EncoderCard(
        name=name,
        layers=layers,
        features=round(512 * layers.widen_factor),
        preprocessing=preprocessing.model_dump(mode="json"),
        source="random weights",
        licence="Apache-2.0",
        learnt_at=learnt_at,
        weights_sha256="0" * 64,
    )
    return save_encoder(folder, card, build_layers(card))


def head_on(encoder: Encoder) -> dict[str, object]:
    """Return the table [network] of a study that uses an encoder."""
    return {"encoder": encoder.card.sha256, "encoder_features": encoder.card.features}


def tuned_on(encoder: Encoder, stages: int) -> dict[str, object]:
    """Return the table [network] of a study that tunes the last stages of an encoder."""
    return {**head_on(encoder), "tuned_stages": stages, "encoder_layers": encoder.card.layers.model_dump(mode="json")}
