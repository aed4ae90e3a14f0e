"""The network that a study starts from: drawn from its seed, or with the weights of a named release or encoder.

A server that could choose the first weights freely could choose weights whose update reveals single patients. A release
is therefore used only if the hospital has approved it and its weights are within the limits of training. An encoder
needs an approval too.

Of a pretrained start a study takes everything but the head, which is drawn from the study's seed, unless the study is
a pretraining of the same kind and goes on with its head.
"""

import copy
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from federation.protocol import reasons
from federation.protocol.batch_norm import is_counter
from federation.protocol.release_files import BEGINS_FROM, ENCODER_FILES, ENCODERS, copy_release
from federation.protocol.study_config import Study
from models.refusal import Refusal

if TYPE_CHECKING:
    from models.description import Description
    from models.network import SeverityNetwork


def begin_network(study: Study, folder: Path) -> "SeverityNetwork":
    """Return the study's network before its first round, in training mode.

    `folder`: holds each release in a folder named by the SHA-256 of its model.json.

    The tuned stages of an encoder begin with the encoder's weights (`use_encoder`).

    Raises Refusal: E_BEGIN_UNLIKE if the release does not fit the study, E_ENCODER_CLOSED if this process may not use
    the encoder, and those of `load_release`.
    """
    if study.network.tuned_stages:
        from models.encoders import allowed

        allowed(study.network.encoder)
    network = _drawn(study)
    if study.study.begin_from:
        _fill(network, study, folder / study.study.begin_from)
    return network


def bring_release(study: Study, server: Path, run: Path) -> None:
    """Copy the release that a study starts from, if any, from the server's releases to its run.

    The run then has its own copy, even if the releases change or the run is moved.

    Raises Refusal: E_BEGIN_UNKNOWN, and as `begin_network`, before anything is copied.
    """
    if not study.study.begin_from:
        return
    for description in (server / "releases").glob("*/model.json"):
        if hashlib.sha256(description.read_bytes()).hexdigest() == study.study.begin_from:
            _fill(_drawn(study), study, description.parent)
            copy_release(description.parent, run / BEGINS_FROM)
            return
    raise Refusal(reasons.BEGIN_UNKNOWN)


def bring_encoder(study: Study, server: Path, run: Path) -> None:
    """Copy the encoder whose last stages a study tunes, if any, from the server's encoders to its run, and use it.

    Raises Refusal: E_ENCODER_CLOSED if the server has no such encoder, and those of `use_encoder`.
    """
    if not study.network.tuned_stages:
        return
    from models.reasons import ENCODER_CLOSED

    for card in (server / ENCODERS).glob("*/encoder.json"):
        if hashlib.sha256(card.read_bytes()).hexdigest() == study.network.encoder:
            copy_release(card.parent, run / ENCODERS, ENCODER_FILES)
            use_encoder(study, run / ENCODERS)
            return
    raise Refusal(ENCODER_CLOSED)


def use_encoder(study: Study, encoders: Path) -> None:
    """Let this process use the encoder whose last stages a study tunes, if any. `encoders`: holds it by its name.

    Raises Refusal: those of `load_encoder`, E_ENCODER_ALTERED if it is another one.
    """
    from models.encoders import allow, is_allowed, load_encoder
    from models.reasons import ENCODER_ALTERED

    if not study.network.tuned_stages or is_allowed(study.network.encoder):
        return
    encoder = load_encoder(encoders / study.network.encoder)
    if encoder.card.sha256 != study.network.encoder:
        raise Refusal(ENCODER_ALTERED)
    allow(encoder)


def begun_sites(study: Study, folder: Path) -> list[str]:
    """Return the sites whose patients trained the release that the study starts from; empty without a release.

    Raises Refusal as `load_release` does.
    """
    if not study.study.begin_from:
        return []
    from models.release import load_release

    provenance = load_release(folder / study.study.begin_from, pretrained=True).description.provenance
    return [] if provenance is None else [name for name, site in provenance.sites.items() if site.trained]


def _drawn(study: Study) -> "SeverityNetwork":
    # Imported here because torch takes seconds, and a launch needs it only if the study begins from a release.
    from models.network import build_network

    return build_network(study.network, seed=study.study.seed)


def _fill(network: "SeverityNetwork", study: Study, folder: Path) -> None:
    """Load the weights of the release in `folder` into the network, which was drawn from the seed."""
    from models.release import load_release

    release = load_release(folder, pretrained=True)
    if release.sha256 != study.study.begin_from:
        raise Refusal(reasons.BEGIN_UNLIKE, private="the release has a different SHA-256")
    _check_like(study, release.description)
    begun = release.network
    if release.description.network.outputs != study.network.outputs:
        begun = _with_head_of(network, begun)
    _check_weights(study, network, begun)
    network.load_state_dict(begun.state_dict(), strict=True)
    network.hold_short()  # as after each training step


def _with_head_of(seed: "SeverityNetwork", begun: "SeverityNetwork") -> "SeverityNetwork":
    """Return a network with the weights of a pretrained start, and the head of the one that was drawn from the seed."""
    made, state = copy.deepcopy(seed), seed.state_dict()
    made.load_state_dict(
        {name: state[name] if name.startswith("head.") else w for name, w in begun.state_dict().items()}
    )
    return made


def _check_like(study: Study, begun: "Description") -> None:
    """Require the same network and preprocessing: weights are only useful for scans prepared as in their training.

    The outputs may differ if the release is a pretrained start.
    """
    if begun.adaptation is not None:  # its statistics are of one hospital's patients without labels, and stay there
        raise Refusal(reasons.BEGIN_UNLIKE, private="a release that one hospital adapted")
    network = begun.network
    if network.pretrains:
        network = network.model_copy(update={"outputs": study.network.outputs})
    if network.model_dump() != study.network.model_dump():
        raise Refusal(reasons.BEGIN_UNLIKE, private="a different network")
    if begun.preprocessing != study.preprocessing.model_dump(mode="json"):
        raise Refusal(reasons.BEGIN_UNLIKE, private="a different preprocessing")


def _check_weights(study: Study, seed: "SeverityNetwork", begun: "SeverityNetwork") -> None:
    """Require tensors no longer than training can make them (`tensor_bounds.Bound`), and unchanged fixed tensors."""
    import torch

    from federation.protocol.tensor_bounds import parts_of

    usual, found = (
        parts_of(network, learning_rate=study.training.learning_rate, epochs=study.epochs_a_round)
        for network in (seed, begun)
    )
    for group, parts in usual.items():
        if not is_counter(group) and not all(
            there.rms <= part.longest for part, there in zip(parts, found[group], strict=True)
        ):  # NaN fails this comparison too
            raise Refusal(reasons.BEGIN_UNLIKE, private=f"too long: {group}")
    weights = dict(begun.named_parameters())
    for name, weight in seed.named_parameters():
        if not weight.requires_grad and not torch.equal(weight, weights[name]):
            raise Refusal(reasons.BEGIN_UNLIKE, private=f"differs from its fixed value: {name}")
