"""Defines the release format: a folder with a model for scoring, which can be loaded without unpickling.

    model.safetensors   weights and buffers
    model.json          architecture, preprocessing, labels, calibration, thresholds, origin, hash of the weights
    card.md             the same in words, with intended use and limits
    attacks.json        results of attacks on the model, after they were measured
    encoder.json, encoder.safetensors   of a head on a frozen encoder (`models.encoders`)

The SHA-256 of model.json is the name of the release; it covers the weights through their hash. `model_card` makes the
card only from model.json and attacks.json, and attacks.json names the model that was attacked. So measuring attacks
rewrites these two files, does not change the name, and anyone can make the card again to compare.

The candidate of a run contains these files. `study release` also makes it a MONAI bundle (`pipeline.bundle`) and signs
the whole folder (`models.signature`); after that no file may change.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.attacks import Attacks
from models.description import Description
from models.encoders import CARD as ENCODER_CARD
from models.encoders import allow, load_encoder
from models.model_card import card
from models.network import SeverityNetwork, build_network
from models.own_code import allow_installed
from models.reasons import MODEL_ALTERED, MODEL_FORMAT, MODEL_SIGNED, NO_MODEL
from models.refusal import Refusal
from models.signature import SIGNATURE, verify

WEIGHTS, DESCRIPTION, CARD, ATTACKS = "model.safetensors", "model.json", "card.md", "attacks.json"


@dataclass(frozen=True)
class Release:
    """A release in memory.

    Parameters
    ----------
    network : SeverityNetwork
        The network with its weights, in evaluation mode when `load_release` read it.
    description : Description
        The content of model.json.
    sha256 : str
        SHA-256 of model.json, the release's name.
    signed_by : str or None
        Fingerprint of the trusted key that signed it; None if the signature was not checked.
    """

    network: SeverityNetwork
    description: Description
    sha256: str
    signed_by: str | None = None


def save_release(folder: Path, network: SeverityNetwork, description: Description) -> Release:
    """Write the three files into `folder`, which is created if needed, and return the release as it will be read."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: t.contiguous().clone() for name, t in network.state_dict().items()})
    described = description.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    # Without them, versions that do not know them can read the release.
    unused = {name for name in ("encoder", "adaptation") if getattr(described, name) is None}
    content = described.model_dump(mode="json", exclude=unused)
    text = json.dumps(content, indent=1, sort_keys=True).encode()
    sha256 = hashlib.sha256(text).hexdigest()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / DESCRIPTION).write_bytes(text)
    (folder / CARD).write_text(card(described, sha256), encoding="utf-8")
    (folder / ATTACKS).unlink(missing_ok=True)  # they belong to the previous release in this folder
    return Release(network, described, sha256)


def load_release(
    folder: Path, trusted_keys: Sequence[Path] = (), *, runs_package: bool = False, pretrained: bool = False
) -> Release:
    """Read and verify a release, and its signature where public keys are trusted.

    `models.signature.verify` checks the signature.

    Parameters
    ----------
    folder : Path
        The release's folder.
    trusted_keys : sequence of Path
        Files of public keys (.pub); with none, the signature is not checked.
    runs_package : bool
        Whether the installed package of a network of one's own may run, if it has exactly the files that the release
        names.
    pretrained : bool
        Whether a pretrained start may be read too. Only for those that begin a study from it: it cannot score.

    Returns
    -------
    Release
        The release, its network in evaluation mode.

    Raises
    ------
    Refusal
        E_NO_MODEL (also of a pretrained start), E_MODEL_ALTERED (hash or tensors do not fit), E_MODEL_FORMAT; with
        `trusted_keys` also those of `verify`: E_TRUSTED_KEY, E_NOT_SIGNED, E_SIGNATURE. For a network of a package:
        E_NETWORK_CLOSED, with `runs_package` E_NETWORK_PACKAGE, E_NETWORK_UNLIKE. For an encoder, those of
        `load_encoder`.
    """
    try:
        text, weights = (folder / DESCRIPTION).read_bytes(), (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise Refusal(NO_MODEL, private=str(folder)) from error
    signed_by = verify(folder, trusted_keys) if trusted_keys else None
    try:
        description = Description.model_validate_json(text)
    except ValidationError as error:
        raise Refusal(MODEL_FORMAT) from error
    if description.network.pretrains and not pretrained:
        raise Refusal(NO_MODEL, private=f"a pretrained start, which cannot score: {folder}")
    if hashlib.sha256(weights).hexdigest() != description.weights_sha256:
        raise Refusal(MODEL_ALTERED)
    if description.network.encoder and (folder / ENCODER_CARD).is_file():
        _allow_encoder(folder, description)
    if runs_package and description.network.is_own:
        allow_installed(description.network.architecture, description.network.code)
    network = build_network(description.network, seed=0)
    try:
        network.load_state_dict(load_tensors(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise Refusal(MODEL_ALTERED) from error
    network.eval()
    return Release(network, description, hashlib.sha256(text).hexdigest(), signed_by)


def _allow_encoder(folder: Path, description: Description) -> None:
    """Let this process use a release's encoder. Raises Refusal as `load_encoder` does, E_MODEL_ALTERED."""
    encoder = load_encoder(folder)
    if encoder.card.sha256 != description.network.encoder:
        raise Refusal(MODEL_ALTERED)
    allow(encoder)


def add_attacks(folder: Path, attacks: Attacks) -> None:
    """Write attacks.json into a release and rewrite its card; the release keeps its name.

    Attacks on a run's candidate also count for the release made from it, because the weights are the same. Raises
    Refusal E_MODEL_ALTERED if another model was attacked, E_MODEL_SIGNED if the release is signed, and as
    `load_release` does.
    """
    release = load_release(folder)
    if (folder / SIGNATURE).exists():
        raise Refusal(MODEL_SIGNED)
    provenance = release.description.provenance
    if attacks.release not in {release.sha256, provenance and provenance.candidate}:
        raise Refusal(MODEL_ALTERED)
    for name, text in (
        (ATTACKS, attacks.model_dump_json(indent=1)),
        (CARD, card(release.description, release.sha256, attacks)),
    ):
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
