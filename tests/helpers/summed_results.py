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

from federation.client.score_counts import score_counts
from federation.coordinator.examined import Calibrated
from federation.coordinator.shortcut_audit import judge_means
from federation.protocol import pooled_counts
from federation.protocol.figure_rounding import rounded
from federation.protocol.patient_counts import Patients
from federation.protocol.study_config import Study
from federation.protocol.summed_answers import (
    Summed,
    load_counts,
    logit_counts,
    sites_with,
    summands,
)
from federation.runs.results import FEDERATED, ModelFigures, Results
from models.network_settings import LABELS
from models.operating_points import few_hospitals
from pipeline.evaluation.figures import Deployed
from tests.helpers.invented_results import GROUPS, MIN_PATIENTS, PREVALENCE, SKILL, interval
from tests.helpers.results_factory import make_results

Numbers = NDArray[np.float64]
RAW_SLOPE, RAW_INTERCEPT = 0.8, 0.3  # raw logits are these times the true ones, so there is something to calibrate


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
    raw = (RAW_SLOPE * logits + RAW_INTERCEPT).astype(np.float32)  # as a network answers
    return Drawn(labels, raw.astype(np.float64), loads, by_age, groups)


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
    few: str = "",
    audit: bool = True,
    of_sum: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Results:
    """Return the results of a masked study at `sites` (number or names) with about `patients` test patients each.

    `skill` is added to that of `invented_results.SKILL`, `differ`: its standard deviation between hospitals. `tags`:
    how far tags tell the label, in standard deviations. `model`: if not 0, another model for the same patients.
    `few`: a label that only two hospitals have patients with. `of_sum`: replaces fields of the sum of the test.
    `changes`: replaces fields of the results.
    """
    plain = make_results(sites, seed=seed, local=False, leave_one_out=False, fine_tuned=False, pooled=False)
    names = list(plain.sites)
    drawn = draw_hospitals(names, seed=seed, patients=patients, skill=skill, differ=differ, model=model)
    for split in (drawn.tests, drawn.validations):
        for name in names[2:] if few else ():
            split[name][few] = replace(split[name][few], labels=np.zeros_like(split[name][few].labels))
    rng, numbers, tests, validations = drawn.rng, drawn.numbers, drawn.tests, drawn.validations
    answers = {name: _answer(rng, tests[name], tags) for name in names}
    summed = summed_up(answers, numbers).model_copy(update=dict(of_sum or {}))
    calibrated = _calibrated([validations[name] for name in names])
    withheld = {
        label: few_hospitals(summed.counts.get(sites_with(label), 0)) for label in LABELS if not summed.covers(label)
    }
    federated = ModelFigures(
        name=FEDERATED, kind="federated", trained_at=names, figures={}, summed=summed, withheld=withheld
    )
    content = {
        **dict(plain),
        "study": _secure(plain.study, audit=audit),
        "models": [federated],
        "calibration": dict(calibrated.deployed.calibration),
        "operating_points": calibrated.operating_points(),
        "missing_points": calibrated.missing_points(),
        "audit": judge_means(summed.means) if audit else None,
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
            for split in (drawn.tests, drawn.validations):
                found = draw(rng, count, skill=own_skill, prevalence=prevalence)
                if model:
                    noise = 0.4 * of_model.normal(0, 1, count)
                    found = replace(found, logits=(found.logits + noise).astype(np.float32).astype(np.float64))
                split.setdefault(name, {})[label] = found
    return drawn


def _answer(rng: np.random.Generator, by_label: Mapping[str, Drawn], tags: float) -> dict[str, dict[str, Any]]:
    """Return what a hospital adds to the sum: `counts` and `means`."""
    counts: dict[str, int] = {}
    own: dict[str, float] = {"scanner_from_embedding": 0.5 + 0.1 * rng.random(), "scanner_chance": 0.5}
    for label, drawn in by_label.items():
        counts |= counts_of(drawn, label)
        if drawn.is_counted:
            own |= _figures(rng, drawn, label, tags)
    own = rounded(own, "evaluate.test", Patients())
    return {"counts": counts, "means": summands(own, "evaluate.test")}


def counts_of(drawn: Drawn, label: str) -> dict[str, int]:
    """Count a hospital's patients of one label as its app does."""
    logits, targets = np.zeros((2, len(drawn.labels), len(LABELS)), np.float32)
    targets[:] = np.nan
    column = LABELS.index(label)
    logits[:, column], targets[:, column] = drawn.logits, drawn.labels
    found = score_counts(logits, targets, drawn.loads, min_patients=MIN_PATIENTS)
    names = {sites_with(label), *logit_counts(label).values(), *load_counts(label).values()}
    return {name: count for name, count in found.items() if name in names}


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


def _calibrated(validations: Sequence[Mapping[str, Drawn]]) -> Calibrated:
    """Calibrate and choose thresholds from the sum of the validation patients, as the server does."""
    counts: dict[str, int] = {}
    for by_label in validations:
        for label, drawn in by_label.items():
            counts |= {name: counts.get(name, 0) + count for name, count in counts_of(drawn, label).items()}
    summed = Summed(sites=len(validations), patients=0, counts=counts)
    choices = pooled_counts.choose_all(summed)
    deployed = Deployed(pooled_counts.calibration(summed), pooled_counts.thresholds(choices))
    return Calibrated(deployed, (), choices, None)


def _secure(study: Study, *, audit: bool) -> Study:
    content = study.model_dump()
    content["aggregation"]["secure"] = True
    content["strategy"] = {"name": "FedAvg"}
    content["study"]["quorum"] = max(3, len(content["study"]["seeds"]), content["study"]["quorum"])
    content["study"]["sites"] = max(3, content["study"]["sites"])
    content["evaluation"]["shortcut_audit"] = audit
    return Study.model_validate(content)
