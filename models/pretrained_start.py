"""What a pretrained start says of itself: the weights that a study may begin from, and that answer nothing.

It has the form of a release (`models.release`), and its network estimates measures of a scan or of hidden parts of it
(`network_settings.AUXILIARY`, `BLOCKS`).
`load_release` reads it only for the few who may begin a study from it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.description import Description

USE = (
    "The first weights of a study (`begin_from` in study.toml). It estimates measures of a scan or of its parts, "
    "gives no probability for a patient, and cannot score."
)
LIMITS = (
    "Whether a study gains by these first weights was not measured.",
    "The weights were learnt from scans of patients, with and without labels, and may reveal something about them.",
)


_LEARNT = {"auxiliary": "measures of the scan", "hidden_blocks": "densities of hidden blocks of the scan"}


def start_card(description: "Description", sha256: str) -> str:
    """Make the card of a pretrained start: what it is, what it was learnt from, and its limits."""
    d = description
    origin = "SYNTHETIC hospitals (phantoms)" if d.trained_on_synthetic_data else "the hospitals of the study"
    sites = d.provenance.sites if d.provenance else {}
    facts = {
        "start (SHA-256 of model.json)": f"`{sha256}`",
        "network": f"{d.network.architecture}, {d.network.norm} norm, width {d.network.widen_factor}",
        "learnt": _LEARNT[d.network.outputs],
        "trained on": origin,
        "hospitals": ", ".join(sorted(sites)) or str(d.sites),
        "rounds": str(d.rounds),
        "strategy": d.strategy,
        "run": d.run,
        "software": d.software,
    }
    rows = "\n".join(f"| {what} | {value} |" for what, value in facts.items())
    limits = "\n".join(f"- {limit}" for limit in d.limits)
    return f"""# {d.study}: a pretrained start

**Research use only. Not a medical device. It gives no answer about a patient.**

| what | value |
| --- | --- |
{rows}

## Intended use
{d.intended_use}

## Limits
{limits}
"""
