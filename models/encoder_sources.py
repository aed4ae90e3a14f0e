"""Reads pretrained weights from elsewhere and makes an encoder of them: never by unpickling code.

A source is a release of ours (its backbone becomes the encoder), a MONAI bundle's folder (models/model.pt), a
safetensors file, or a state dict of torch, which is read with `weights_only`.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.encoders import Encoder, EncoderCard, build_layers, save_encoder
from models.reasons import ENCODER_WEIGHTS
from models.refusal import Refusal
from models.release import load_release

BUNDLE_WEIGHTS = Path("models") / "model.pt"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network")
_PREFIXES = ("module.", "backbone.", "encoder.", "network.")
_COLOURS = 3
_UNKNOWN = "0" * 64  # until the weights are written


def of_release(release: Path, folder: Path, *, name: str, licence: str) -> Encoder:
    """Make an encoder of a release's backbone, and write it to `folder`.

    Raises Refusal as `load_release` does, E_ENCODER_WEIGHTS if the release itself has an encoder or a network of a
    package, or its weights are no usable numbers, E_ENCODER_FOLDER if `folder` holds anything; OSError.
    """
    found = load_release(release)
    network = found.description.network
    if network.is_own or network.encoder:
        raise Refusal(ENCODER_WEIGHTS, problem="the release's network is not one of this version")
    provenance = found.description.provenance
    sites = provenance.sites if provenance else {}
    card = EncoderCard(
        name=name,
        layers=network,
        features=found.network.features,
        preprocessing=found.description.preprocessing,
        source=f"the backbone of the release {found.sha256}",
        licence=licence,
        learnt_at=tuple(sorted(site for site, record in sites.items() if record.trained)),
        weights_sha256=_UNKNOWN,
    )
    return save_encoder(folder, card, found.network.backbone)


def of_weights(source: Path, folder: Path, card: EncoderCard) -> Encoder:
    """Make an encoder of foreign weights, and write it to `folder`. `card`: its hash of the weights is filled in.

    Tensors of a classifier after the backbone are left out. A network of colour images that was trained with the scan
    in all three colours becomes one that reads the scan once. Raises Refusal E_ENCODER_WEIGHTS if the file holds
    something else than tensors, not those of the layers or no usable numbers, E_ENCODER_FOLDER if `folder` holds
    anything; OSError.
    """
    layers = build_layers(card)
    given = _plain(_tensors(source / BUNDLE_WEIGHTS if source.is_dir() else source), layers)
    wanted = layers.state_dict()
    given |= _of_one_colour(given, wanted)
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unlike = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if missing or unlike:
        some = ", ".join([*missing, *unlike][:3])
        problem = f"{len(missing)} tensors are missing and {len(unlike)} have another shape, such as {some}"
        raise Refusal(ENCODER_WEIGHTS, problem=problem)
    layers.load_state_dict({name: given.get(name, wanted[name]) for name in wanted})
    return save_encoder(folder, card, layers)


def _tensors(file: Path) -> Mapping[str, Tensor]:
    """Read a file of tensors. Raises Refusal E_ENCODER_WEIGHTS."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Refusal(ENCODER_WEIGHTS, problem=f"there is no file {file.name}") from error
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError) as error:
        problem = "the file cannot be read as tensors alone; files that hold code are never opened"
        raise Refusal(ENCODER_WEIGHTS, problem=problem, private=str(error)) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise Refusal(ENCODER_WEIGHTS, problem="the file holds no state dict")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _plain(tensors: Mapping[str, Tensor], layers: nn.Module) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers put before the names."""
    wanted = set(layers.state_dict())
    plain = dict(tensors)
    for prefix in _PREFIXES:
        if not wanted & set(plain):
            plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    return plain


def _of_one_colour(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first convolution for one channel, if the file has it for three; the same input in each adds up."""
    first = next(iter(wanted))
    found = given.get(first)
    if found is None or found.ndim != wanted[first].ndim or (found.shape[1], wanted[first].shape[1]) != (_COLOURS, 1):
        return {}
    return {first: found.float().sum(dim=1, keepdim=True)}
