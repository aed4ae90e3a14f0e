"""The release format: a folder that holds a model fit to score with, and nothing that must be unpickled.

    model.safetensors   weights and buffers
    model.json          architecture, preprocessing, labels, calibration, where it comes from, hash of the weights
    card.md             the same in words, with intended use and limits
    attacks.json        what attacks on it found, once they were measured

The SHA-256 of model.json is the release's name; it covers the weights through their hash. The card is always what
`card` makes of model.json and attacks.json, and attacks.json names the release that was attacked: measuring attacks
writes these two anew, touches nothing that the name covers, and anyone can make the card again to compare.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.attacks import Attacks, attacks_section
from models.calibration import Platt
from models.network import LABELS, NetworkSettings, SeverityNetwork, build_network
from models.reasons import MODEL_ALTERED, MODEL_FORMAT, NO_MODEL
from models.refusal import Refusal

WEIGHTS, DESCRIPTION, CARD, ATTACKS = "model.safetensors", "model.json", "card.md", "attacks.json"


class Privacy(BaseModel):
    """How private the training was: (ε, `delta`)-differentially, of each patient, at each site by its name.

    `epsilon` is None where a site that took part did not tell.
    """

    model_config = ConfigDict(extra="forbid")

    noise_multiplier: float
    sample_rate: float
    max_grad_norm: float
    delta: float
    epsilon: dict[str, float | None]


class Description(BaseModel):
    """The content of model.json."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    network: NetworkSettings
    preprocessing: dict[str, Any]
    labels: tuple[Literal["pcr_positive"], Literal["severe"]] = LABELS
    calibration: dict[str, Platt]
    study: str
    run: str
    rounds: int
    sites: int
    strategy: str
    software: str
    trained_on_synthetic_data: bool
    metrics: dict[str, float] = {}
    privacy: Privacy | None = None
    weights_sha256: str = ""


@dataclass(frozen=True)
class Release:
    """A release in memory; `sha256` is its name."""

    network: SeverityNetwork
    description: Description
    sha256: str


def save_release(folder: Path, network: SeverityNetwork, description: Description) -> Release:
    """Write the three files into `folder`, which is made; returns the release as it will be read."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: t.contiguous().clone() for name, t in network.state_dict().items()})
    described = description.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    text = json.dumps(described.model_dump(mode="json"), indent=1, sort_keys=True).encode()
    sha256 = hashlib.sha256(text).hexdigest()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / DESCRIPTION).write_bytes(text)
    (folder / CARD).write_text(card(described, sha256), encoding="utf-8")
    (folder / ATTACKS).unlink(missing_ok=True)  # they were on the release that was here before
    return Release(network, described, sha256)


def load_release(folder: Path) -> Release:
    """Read and verify a release.

    Raises Refusal E_NO_MODEL, E_MODEL_ALTERED (hash or tensors do not fit) or E_MODEL_FORMAT.
    """
    try:
        text, weights = (folder / DESCRIPTION).read_bytes(), (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise Refusal(NO_MODEL, private=str(folder)) from error
    try:
        description = Description.model_validate_json(text)
    except ValidationError as error:
        raise Refusal(MODEL_FORMAT) from error
    if hashlib.sha256(weights).hexdigest() != description.weights_sha256:
        raise Refusal(MODEL_ALTERED)
    network = build_network(description.network, seed=0)
    try:
        network.load_state_dict(load_tensors(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise Refusal(MODEL_ALTERED) from error
    network.eval()
    return Release(network, description, hashlib.sha256(text).hexdigest())


def add_attacks(folder: Path, attacks: Attacks) -> None:
    """Write attacks.json beside a release, and its card anew; the release keeps its name.

    Raises Refusal E_MODEL_ALTERED where the release is not the one that was attacked, and what `load_release` raises.
    """
    release = load_release(folder)
    if attacks.release != release.sha256:
        raise Refusal(MODEL_ALTERED)
    for name, text in (
        (ATTACKS, attacks.model_dump_json(indent=1)),
        (CARD, card(release.description, release.sha256, attacks)),
    ):
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def card(description: Description, sha256: str, attacks: Attacks | None = None) -> str:
    """The model card in Markdown: what it is, what it was learnt from, what it must not be used for."""
    d = description
    origin = (
        "SYNTHETIC hospitals (phantoms): its figures say nothing about patients"
        if (d.trained_on_synthetic_data)
        else "the hospitals of the study"
    )
    figures = "\n".join(f"| {name} | {value:.3f} |" for name, value in sorted(d.metrics.items()))
    return f"""# {d.study}: severe Covid-19 from chest CT

**Research use only. Not a medical device.**

| | |
| --- | --- |
| release (SHA-256 of model.json) | `{sha256}` |
| network | 3D {d.network.architecture}, width {d.network.widen_factor}, {d.network.norm} norm, age, sex joined late |
| labels | {", ".join(d.labels)} |
| learnt from | {origin} |
| hospitals | {d.sites} |
| rounds | {d.rounds} |
| strategy | {d.strategy} |
| run | {d.run} |
| software | {d.software} |

## Intended use
Research on the recognition of severe Covid-19 (intubation or death within 30 days of the CT) in adults with a
chest CT and a PCR result. `severe` is meant for PCR-positive patients alone.

## Limits
Not validated on any patient of another hospital than those named above. No use for children, for other diseases,
or for deciding on care. A probability without its interval and without the quality checks is not an answer.

## Figures at the hospitals (means over hospitals of the last evaluation, weighted by patients; not a pooled AUROC)
| figure | value |
| --- | --- |
{figures}
{_privacy_section(d.privacy)}{"" if attacks is None else attacks_section(attacks)}"""


def _privacy_section(privacy: Privacy | None) -> str:
    """What the card says of differential privacy; nothing where there is none."""
    if privacy is None:
        return ""
    rows = "\n".join(
        f"| {site} | {'not told' if epsilon is None else f'{epsilon:.2f}'} |"
        for site, epsilon in sorted(privacy.epsilon.items())
    )
    return f"""
## Differential privacy
At each hospital below, training was (ε, δ)-differentially private with δ = {privacy.delta:g}. The unit is the patient:
it covers all that the model learnt of one there. Noise multiplier {privacy.noise_multiplier:g}, sampling rate
{privacy.sample_rate:g}, gradients clipped to {privacy.max_grad_norm:g}.

| hospital | ε |
| --- | --- |
{rows}

The patients on whom the model was tested and calibrated are not covered: the figures above are about them, without
noise. A small ε bounds what anybody can find out; one of 8 does not by itself stop an attack that asks whether a
patient was in the training data.
"""
