"""Makes the results of a masked study from simulated patients: scores are drawn, counted and summed as in a real one.

No figure is chosen: AUROCs, counts, calibration and thresholds are all computed from the patients that were drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import rankdata

from federation.protocol.figure_rounding import rounded
from federation.protocol.operating_points import lower_bound
from federation.protocol.patient_counts import Patients
from federation.protocol.study_config import Study
from federation.protocol.summed_answers import (
    LEAST_SITES,
    LOAD_EDGES,
    Summed,
    load_counts,
    logit_counts,
    sites_with,
    summands,
)
from federation.runs.results import FEDERATED, Audit, ModelFigures, Results
from models.calibration import Platt, fit_platt
from models.network import LABELS
from models.operating_points import AIM, FLOOR, POINTS, Evidence, MissingPoint, OperatingPoint
from pipeline.evaluation.ladder import RUNGS
from tests.helpers.invented_results import GROUPS, MIN_PATIENTS, PREVALENCE, SKILL, interval
from tests.helpers.results_factory import make_results

Numbers = NDArray[np.float64]
RAW_SLOPE, RAW_INTERCEPT = 0.8, 0.3  # raw logits are these times the true ones, so there is something to calibrate
SHARE_OF_VALIDATION = 0.75  # validation patients for each test patient


@dataclass(frozen=True)
class Drawn:
    """One hospital's patients of one split and label: class, raw logit, lesion load, and score of age and sex."""

    labels: NDArray[np.int64]
    logits: Numbers
    loads: Numbers
    by_age: Numbers
    groups: Mapping[str, NDArray[np.bool_]]

    @property
    def is_counted(self) -> bool:
        return min(self.labels.sum(), len(self.labels) - self.labels.sum()) >= MIN_PATIENTS


def draw(rng: np.random.Generator, patients: int, *, skill: float, prevalence: float) -> Drawn:
    """Draw patients with normally distributed true logits, whose classes differ by `skill` standard deviations."""
    labels = (rng.random(patients) < prevalence).astype(np.int64)
    z = skill * labels + rng.normal(0, 1, patients)
    logits = skill * z - skill**2 / 2 + logit(prevalence)
    groups = {group: rng.random(patients) < share for group, share in GROUPS.items()}
    loads = expit(-2.0 + 0.8 * labels + 0.9 * rng.normal(0, 1, patients))
    by_age = 0.6 * labels + rng.normal(0, 1, patients)
    return Drawn(labels, RAW_SLOPE * logits + RAW_INTERCEPT, loads, by_age, groups)


def make_secure_results(
    sites: int | Sequence[str] = 4,
    /,
    *,
    seed: int = 1,
    patients: int = 140,
    skill: float = 0.0,
    differ: float = 0.2,
    model: int = 0,
    tags: float = 0.0,
    opted_in: Sequence[str] = (),
    audit: bool = True,
    of_sum: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Results:
    """Return the results of a masked study at `sites` (number or names) with about `patients` test patients each.

    `skill` is added to that of `invented_results.SKILL`, `differ`: its standard deviation between hospitals. `tags`:
    how far tags tell the label, in standard deviations. `model`: if not 0, another model for the same patients.
    `opted_in`: hospitals that send their own row, too. `of_sum`:
    replaces fields of the sum of the test. `changes`: replaces fields of the results.
    """
    plain = make_results(sites, seed=seed, local=False, leave_one_out=False, fine_tuned=False, pooled=False)
    names = list(plain.sites)
    drawn = draw_hospitals(names, seed=seed, patients=patients, skill=skill, differ=differ, model=model)
    rng, numbers, tests, validations = drawn.rng, drawn.numbers, drawn.tests, drawn.validations
    answers = {name: _answer(rng, tests[name], tags) for name in names}
    summed = summed_up(answers, numbers).model_copy(update=dict(of_sum or {}))
    fits = {label: _fit([validations[name][label] for name in names]) for label in LABELS}
    calibration = {label: fit for label, fit in fits.items() if summed.covers(label)}
    points, missing = _points(validations, calibration)
    rows = {name: {"num-examples": float(numbers[name]), **answers[name]["own"]} for name in opted_in}
    federated = ModelFigures(name=FEDERATED, kind="federated", trained_at=names, figures=rows, summed=summed)
    of_audit = ("_tags", "_outside", "scanner_")
    means = {name: value for name, value in summed.means.items() if any(part in name for part in of_audit)}
    content = {
        **dict(plain),
        "study": _secure(plain.study, audit=audit),
        "models": [federated],
        "calibration": calibration,
        "operating_points": points,
        "missing_points": missing,
        "audit": Audit(probe=None, sites={}, flags=[], means=means, no_probe="the study is masked") if audit else None,
    }
    return Results(**{**content, **changes})


def summed_up(answers: Mapping[str, Mapping[str, Any]], patients: Mapping[str, int]) -> Summed:
    """Return the sum of hospitals' answers: counts, and means weighted by patients over those that have the figure."""
    total, counts, means, known = sum(patients.values()), {}, {}, {}
    for answer in answers.values():
        counts = {name: counts.get(name, 0) + count for name, count in answer["counts"].items()}
    for name in dict.fromkeys(name for answer in answers.values() for name in answer["means"]):
        having = {site: answer["means"][name] for site, answer in answers.items() if name in answer["means"]}
        weight = sum(patients[site] for site in having)
        means[name] = sum(value * patients[site] for site, value in having.items()) / weight
        known[name] = weight / total
    return Summed(sites=len(answers), patients=total, counts=counts, means=means, known=known)


@dataclass(frozen=True)
class Hospitals:
    """All patients of a study, by hospital and label. `numbers`: of test patients."""

    rng: np.random.Generator
    numbers: dict[str, int]
    tests: dict[str, dict[str, Drawn]]
    validations: dict[str, dict[str, Drawn]]


def draw_hospitals(
    names: Sequence[str],
    *,
    seed: int = 1,
    patients: int = 140,
    skill: float = 0.0,
    differ: float = 0.2,
    model: int = 0,
) -> Hospitals:
    """Draw the patients of `make_secure_results` with the same arguments."""
    rng, of_model = np.random.default_rng(seed), np.random.default_rng([seed, model])
    drawn = Hospitals(rng, {name: patients + 25 * (place % 3) for place, name in enumerate(names)}, {}, {})
    for name, count in drawn.numbers.items():
        for label in LABELS:
            own_skill = SKILL[label] + skill - abs(rng.normal(0, differ))
            prevalence = float(np.clip(PREVALENCE[label] + rng.normal(0, 0.06), 0.05, 0.95))
            for split, size in ((drawn.tests, count), (drawn.validations, round(SHARE_OF_VALIDATION * count))):
                found = draw(rng, size, skill=own_skill, prevalence=prevalence)
                if model:
                    found = replace(found, logits=found.logits + 0.4 * of_model.normal(0, 1, size))
                split.setdefault(name, {})[label] = found
    return drawn


def _answer(rng: np.random.Generator, by_label: Mapping[str, Drawn], tags: float) -> dict[str, dict[str, Any]]:
    """Return what a hospital adds to the sum: `counts` and `means`; `own`: the row that it would send of itself."""
    counts: dict[str, int] = {}
    own: dict[str, float] = {"scanner_from_embedding": 0.5 + 0.1 * rng.random(), "scanner_chance": 0.5}
    for label, drawn in by_label.items():
        counts |= score_counts(drawn, label)
        if drawn.is_counted:
            own |= _figures(rng, drawn, label, tags)
    own = rounded(own, "evaluate.test", Patients())
    return {"counts": counts, "means": summands(own, "evaluate.test"), "own": own}


def score_counts(drawn: Drawn, label: str) -> dict[str, int]:
    """Count a hospital's patients by class and bin; all counts are 0 where a class has too few."""
    found = {sites_with(label): int(drawn.is_counted)}
    for names, scores, edges in (
        (logit_counts(label), drawn.logits, RUNGS),
        (load_counts(label), drawn.loads, LOAD_EDGES),
    ):
        place = np.digitize(scores, edges[1:-1])
        for (value, bin), name in names.items():
            found[name] = int(((place == bin) & (drawn.labels == value)).sum()) if drawn.is_counted else 0
    return found


def _figures(rng: np.random.Generator, drawn: Drawn, label: str, tags: float) -> dict[str, float]:
    y = drawn.labels
    model, age = area(drawn.logits, y), area(drawn.by_age, y)
    found = interval(f"auroc_{label}", model, y) | interval(f"auroc_{label}_age_sex", age, y)
    over = model - age
    found |= {f"auroc_{label}_over_age_sex{end}": over + by for end, by in (("", 0.0), ("_low", -0.1), ("_high", 0.1))}
    found |= interval(f"auroc_{label}_tags", area(tags * y + rng.normal(0, 1, len(y)), y), y)
    if label == "severe":
        found |= interval("auroc_severe_outside", area(rng.normal(0, 1, len(y)), y), y)
    for group, inside in drawn.groups.items():
        if min(y[inside].sum(), (1 - y[inside]).sum()) >= MIN_PATIENTS:
            found |= interval(f"auroc_{label}@{group}", area(drawn.logits[inside], y[inside]), y[inside])
    return found


def area(scores: Numbers, labels: NDArray[np.int64]) -> float:
    """Return the AUROC, ties counting half."""
    positive = int(labels.sum())
    ranks = rankdata(scores)[labels == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def _fit(drawn: Sequence[Drawn]) -> Platt:
    return fit_platt(
        np.concatenate([each.logits for each in drawn]).astype(np.float32),
        np.concatenate([each.labels for each in drawn]).astype(np.float32),
    )


def _points(
    validations: Mapping[str, Mapping[str, Drawn]], calibration: Mapping[str, Platt]
) -> tuple[dict[str, dict[str, OperatingPoint]], dict[str, dict[str, MissingPoint]]]:
    points: dict[str, dict[str, OperatingPoint]] = {}
    missing = {
        label: dict.fromkeys(POINTS, MissingPoint(why="not_calibrated")) for label in LABELS if label not in calibration
    }
    for label, platt in calibration.items():
        logits, labels = (
            np.concatenate([getattr(each[label], of) for each in validations.values()]) for of in ("logits", "labels")
        )
        for point in POINTS:
            found = _point(logits, labels, point, platt, len(validations))
            (points if isinstance(found, OperatingPoint) else missing).setdefault(label, {})[point] = found  # type: ignore[assignment]
    return points, missing


def _point(
    logits: Numbers, labels: NDArray[np.int64], point: str, platt: Platt, sites: int
) -> OperatingPoint | MissingPoint:
    """Choose a threshold as `protocol.operating_points` does, from exact counts at the rungs."""
    counted = {"positives": int(labels.sum()), "negatives": int((1 - labels).sum()), "sites": sites}
    rungs = np.array(RUNGS[1:-1])[:: -1 if point == "rule_in" else 1]
    scores = logits[labels == (point == "rule_out")]
    missed = np.array([(scores < rung).sum() if point == "rule_out" else (scores >= rung).sum() for rung in rungs])
    low = lower_bound(len(scores) - missed, len(scores))
    good = np.flatnonzero((missed <= (1 - AIM) * len(scores)) & (low >= FLOOR))
    if sites < LEAST_SITES or not len(good):
        return MissingPoint(why="not_reached", **counted)
    at = int(good[-1])
    high = 1 - float(lower_bound(missed[at], len(scores)))
    evidence = Evidence(value=1 - missed[at] / len(scores), low=float(low[at]), high=high, **counted)
    threshold = float(expit(platt.slope * rungs[at] + platt.intercept))
    return OperatingPoint(threshold=threshold, evidence=evidence)


def _secure(study: Study, *, audit: bool) -> Study:
    content = study.model_dump()
    content["aggregation"]["secure"] = True
    content["strategy"] = {"name": "FedAvg"}
    content["study"]["quorum"] = max(3, len(content["study"]["seeds"]), content["study"]["quorum"])
    content["study"]["sites"] = max(3, content["study"]["sites"])
    content["evaluation"]["shortcut_audit"] = audit
    return Study.model_validate(content)
