"""Decides what may be said of a probability: which thresholds are met, its level, and whether it is withheld.

This is the only place that decides. Pages, JSON, reports and FHIR show what is decided here.
"""

from collections.abc import Mapping
from typing import Any, Literal

from models.operating_points import POINTS

SYNTHETIC = "This model was trained on synthetic data. Its result is not valid for patients."
NO_MAP_WITHHELD = "the result of this model is not valid for patients"
NO_MAP_NO_NUMBER = "the model was not calibrated and evaluated for the label that it would explain"
NO_NUMBER = "No number: the model was not calibrated and evaluated for it."
_DOUBT = " was not calibrated on validation patients, or not judged on test patients"
Level = Literal["low", "intermediate", "high", "uncertain"]
Band = tuple[float, float]


def why_withheld(*, is_synthetic: bool, is_phantom: bool) -> str | None:
    """Return why a result is no verdict on its scan, None if it is one.

    `is_synthetic`: the model was trained on synthetic phantoms; it says nothing about a patient.
    """
    return SYNTHETIC if is_synthetic and not is_phantom else None


def withheld(score: Mapping[str, Any]) -> str | None:
    """Return why a stored score (`Score.to_json`) is no verdict, None if it is one.

    A score of an earlier version does not tell whether its scan was a phantom; it counts as a patient's.
    """
    is_phantom = (score.get("input") or {}).get("is_phantom", False)
    return why_withheld(is_synthetic=bool(score.get("trained_on_synthetic_data")), is_phantom=is_phantom)


def is_met(point: str, p: float, threshold: float, band: Band | None) -> bool | None:
    """Whether a probability is below rule_out, or at or above rule_in; None where its band crosses the threshold.

    The ends belong to the band. So a band that ends exactly at a threshold crosses it from below, and one that begins
    there does not.
    """
    low, high = band or (p, p)
    answers = {each < threshold if point == "rule_out" else each >= threshold for each in (low, p, high)}
    return answers.pop() if len(answers) == 1 else None


def decide_points(
    probabilities: Mapping[str, float], thresholds: Mapping[str, Mapping[str, float]], bands: Mapping[str, Band]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {label: {rule_out, rule_in: {threshold, met}}}, as far as there are thresholds."""
    return {
        label: {
            point: {"threshold": at, "met": is_met(point, probabilities[label], at, bands.get(label))}
            for point, at in points.items()
        }
        for label, points in thresholds.items()
        if label in probabilities
    }


def level(points: Mapping[str, Mapping[str, Any]]) -> Level | None:
    """Return the level that the decided points of one label give; None if one of the two thresholds is missing.

    Low if only rule_out is met, high if only rule_in is, else intermediate; uncertain if the band crosses a threshold.
    In a model that discriminates well the two overlap; a probability between them is intermediate too.
    """
    if points.keys() != set(POINTS):
        return None
    is_out, is_in = points["rule_out"]["met"], points["rule_in"]["met"]
    if is_out is None or is_in is None:
        return "uncertain"
    return "intermediate" if is_out == is_in else "low" if is_out else "high"


def limit(probability: float) -> tuple[Literal["<", ">"], float] | None:
    """Return what replaces a probability next to 0 or 1, as comparator and percent: no model is certain."""
    if probability < 0.001:
        return "<", 0.1
    return (">", 99.9) if probability > 0.999 else None


def percent(probability: float) -> str:
    """Format a probability in percent with one decimal; never as 0 or 100."""
    if beyond := limit(probability):
        return f"{beyond[0]} {beyond[1]} %"
    return f"{probability * 100:.1f} %"


def evidence_texts(score: Mapping[str, Any], label: str) -> list[str]:
    """Return what a stored score says of each threshold of a label, and why one is missing.

    Scores of earlier versions say neither.
    """
    points = (score.get("operating_points") or {}).get(label, {})
    missing = (score.get("missing_points") or {}).get(label, {})
    known = [f"To {name.replace('_', ' ')}: {point['says']}" for name, point in points.items() if "says" in point]
    return [*known, *dict.fromkeys(missing.values())]


def redecided(score: dict[str, Any]) -> dict[str, Any]:
    """Return a stored score as it may be shown today: without the number of a label that was not calibrated and judged.

    Scores of versions before 'withheld' was among the keys are decided again from their figures: their levels took no
    notice of the band, and a model of phantoms gave them to patients. So is a score that must be withheld and is not,
    whoever wrote it.
    """
    if "no_number" not in score:
        score = _without_doubted(score)
    reason = withheld(score)
    if "withheld" in score and (score["withheld"] or not reason):
        return score
    thresholds = {
        label: {point: each["threshold"] for point, each in points.items()}
        for label, points in (score.get("operating_points") or {}).items()
    }
    bands = {label: (low, high) for label, (low, high) in (score.get("interval") or {}).items()}
    probabilities = score.get("probability") or {}
    points = {} if reason else decide_points(probabilities, thresholds, bands)
    levels = {label: level(points.get(label, {})) for label in probabilities}
    again = {**score, "withheld": reason, "operating_points": points, "level": levels}
    saliency = score.get("saliency")
    if reason and saliency and not saliency["shown"]:
        again["saliency"] = {**saliency, "why_not": NO_MAP_WITHHELD}
    return again


def _without_doubted(score: dict[str, Any]) -> dict[str, Any]:
    """Remove from a score of an earlier version the numbers that its release's doubts call not calibrated or judged."""
    doubts = (score.get("model") or {}).get("doubts") or []
    none = [
        label for label in score.get("probability") or {} if any(each.startswith(label + _DOUBT) for each in doubts)
    ]
    if not none:
        return score
    kept = {
        key: {label: value for label, value in score[key].items() if label not in none}
        for key in ("probability", "interval", "level", "operating_points")
        if score.get(key)
    }
    if (score.get("saliency") or {}).get("label") in none:
        kept["saliency"] = {"shown": False, "label": None, "method": None, "why_not": NO_MAP_NO_NUMBER}
    return {**score, **kept, "no_number": dict.fromkeys(none, NO_NUMBER)}
