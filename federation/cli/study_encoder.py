"""`fedthorax study make-encoder | encoder`: make a frozen encoder of pretrained weights, and name it in a study."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.refusal import Refusal

if TYPE_CHECKING:
    from models.encoders import EncoderCard

# The options of `make-encoder` that have another name than the field.
_OPTIONS = {
    "depth": "resnet",
    "shortcut_type": "shortcut",
    "conv1_t_size": "stem",
    "conv1_t_stride": "stem-stride",
    "source": "origin",
}


def make_encoder(
    source: Annotated[
        Path,
        typer.Argument(help="A release's folder, a MONAI bundle's folder, or a file: .safetensors or a state dict."),
    ],
    encoder_dir: Annotated[Path, typer.Argument(help="The folder to write.")],
    name: Annotated[str, typer.Option(help="A short name, for people.")],
    licence: Annotated[str, typer.Option(help="The terms under which the weights may be used, such as Apache-2.0.")],
    origin: Annotated[str, typer.Option(help="Where the weights come from. Not for a release.")] = "",
    resnet: Annotated[int, typer.Option(help="Depth of MONAI's ResNet. Not for a release.")] = 0,
    channels: Annotated[int, typer.Option(help="1: the network reads the scan alone; 2: also the mask.")] = 1,
    shortcut: Annotated[str, typer.Option(help="shortcut_type of MONAI's ResNet, A or B.")] = "B",
    bias: Annotated[bool, typer.Option(help="bias_downsample of MONAI's ResNet.")] = True,
    stem: Annotated[str, typer.Option(help="Size of the first convolution: 7, or one for each axis: 3,7,7.")] = "7",
    stem_stride: Annotated[str, typer.Option(help="Its stride: 1, or 1,2,2.")] = "1",
    pool: Annotated[bool, typer.Option(help="Whether a max pool follows the first convolution.")] = True,
    scale: Annotated[float, typer.Option(help="Factor of the scan's values, which are -1 to 1.")] = 1.0,
    offset: Annotated[float, typer.Option(help="Added to the scan's values after the factor.")] = 0.0,
    axes: Annotated[
        str, typer.Option(help="Where the axes of its input point to, such as RAS, the usual order in MONAI.")
    ] = "SPL",
    study: Annotated[
        Path | None,
        typer.Option(help="Study file with the preprocessing that the encoder is for. Default: the usual one."),
    ] = None,
) -> None:
    """Make an encoder: a folder with weights that are never trained further, and where they come from.

    Files that hold code are never opened: weights are read as tensors alone.
    """
    from federation.protocol.study_config import preprocessing_of
    from models.encoder_layers import ResNetLayers, features_of
    from models.encoder_sources import of_release, of_weights
    from models.encoders import EncoderCard
    from models.release import DESCRIPTION

    if (source / DESCRIPTION).is_file():
        made = of_release(source, encoder_dir, name=name, licence=licence)
    else:
        if not (resnet and origin):
            raise typer.BadParameter("weights from elsewhere need --resnet and --origin")
        with _naming_options():
            layers = ResNetLayers.model_validate(
                {
                    "depth": resnet,
                    "shortcut_type": shortcut,
                    "bias_downsample": bias,
                    "conv1_t_size": _numbers(stem),
                    "conv1_t_stride": _numbers(stem_stride),
                    "no_max_pool": not pool,
                }
            )
            card = EncoderCard(
                name=name,
                layers=layers,
                features=features_of(layers),
                channels=2 if channels == 2 else 1,
                scale=scale,
                offset=offset,
                axes=axes,
                preprocessing=preprocessing_of(study).model_dump(mode="json"),
                source=origin,
                licence=licence,
                weights_sha256="0" * 64,
            )
        made = of_weights(source, encoder_dir, card)
    _print_lines(made.card)


def encoder(
    encoder_dir: Annotated[Path, typer.Argument(help="The encoder's folder.")],
    tuned_stages: Annotated[
        int, typer.Option(min=0, max=4, help="So many of its last stages are trained and sent too.")
    ] = 0,
) -> None:
    """Print the lines of a study that use an encoder, after a check of its files."""
    from models.encoder_layers import has_stages
    from models.encoders import load_encoder
    from models.reasons import ENCODER_WEIGHTS

    card = load_encoder(encoder_dir).card
    if tuned_stages and not has_stages(card.layers):
        raise Refusal(ENCODER_WEIGHTS, problem="its layers cannot be divided into stages, so none can be tuned")
    _print_lines(card, tuned_stages)


def _numbers(text: str) -> object:
    """Read "7" or "3,7,7"; what is no number stays text."""
    found = [int(part) if part.isdecimal() else part for part in text.split(",")]
    return found[0] if len(found) == 1 else found


@contextmanager
def _naming_options() -> Iterator[None]:
    """Say which option of `make-encoder` is wrong."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        says = error.errors()[0]["msg"]
        raise typer.BadParameter(says, param_hint=f"--{_OPTIONS.get(field, field)}") from error


def _print_lines(card: "EncoderCard", tuned_stages: int = 0) -> None:
    """Print the tables of study.toml in which an encoder differs from the usual study."""
    typer.echo(f'[network]\nencoder = "{card.sha256}"\nencoder_features = {card.features}')
    if tuned_stages:
        typer.echo(f"tuned_stages = {tuned_stages}\n\n[network.encoder_layers]")
        _print_table(card.layers.model_dump(mode="json"))
    typer.echo("\n[training]\naugment = false\n\n[preprocessing]")
    _print_table(card.preprocessing)


def _print_table(content: Mapping[str, object]) -> None:
    for key, value in content.items():
        typer.echo(f"{key} = {_toml(value)}")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
