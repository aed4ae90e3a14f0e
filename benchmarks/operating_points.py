"""Simulate how often a released threshold truly has the sensitivity or specificity that is claimed for it.

    python benchmarks/operating_points.py

Scores are normal in both classes with different variances (the binormal model), and shifted at each site, so the true
rates are known. Each simulated site computes the figures that a real one reports, and the thresholds are chosen as in a
study: from the sites' tails by sums or robustly or, with secure aggregation, from the sums of exact counts. Writes
benchmarks/results/operating_points.json and operating_points.md. Takes some minutes on one core.
"""

import json
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from federation.protocol import pooled_counts
from federation.protocol.operating_points import Chosen, choose
from federation.protocol.summed_answers import CLASSES, SUMMED, Summed, logit_counts, sites_with
from models.operating_points import FLOOR, POINTS
from pipeline.evaluation.figures import tail_figures
from pipeline.evaluation.histograms import exact_histograms
from pipeline.evaluation.ladder import RUNGS
from pipeline.site.folder import VALIDATION_SHARE

LABEL, MIN_PATIENTS = "severe", 10
STUDIES = 4000
Pool = Literal["sums", "robust", "masked"]
POOLS: tuple[Pool, ...] = ("sums", "robust", "masked")
Patients = tuple[NDArray[np.float64], NDArray[np.int64]]  # logits and labels
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Setting:
    """A kind of study: hospitals, patients of each (one number if all have as many), and label.

    `distance`: of the classes' means, in standard deviations. `scale`: standard deviation of the logits of negative
    patients. `shift`, `drift`: standard deviations, between hospitals, of the mean of all logits and of the distance of
    the classes, in units of `scale`.
    """

    sites: int
    patients: int | tuple[int, ...]
    prevalence: float = 0.35
    distance: float = 1.6
    scale: float = 1.0
    shift: float = 0.3
    drift: float = 0.2

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.patients,) * self.sites if isinstance(self.patients, int) else self.patients


SETTINGS = (
    *(Setting(3, patients) for patients in (60, 100, 300, 600, 1500)),
    *(Setting(3, patients, shift=0.6, drift=0.4) for patients in (300, 600)),
    *(Setting(3, 300, scale=scale) for scale in (0.3, 3.0)),
    Setting(3, 300, distance=0.8),
    Setting(3, 300, prevalence=0.5),
    Setting(8, 60),
    Setting(8, 300),
    Setting(20, 300),
)


@dataclass(frozen=True)
class Hospital:
    """A hospital's population. `logits` are normal: `means` and standard deviations of negative and positive ones."""

    size: int
    prevalence: float
    means: tuple[float, float]
    spreads: tuple[float, float]

    @classmethod
    def drawn(cls, size: int, setting: Setting, rng: np.random.Generator) -> "Hospital":
        middle = rng.normal(-0.7, setting.shift)
        distance = max(0.0, rng.normal(setting.distance, setting.drift))
        means = (setting.scale * (middle - distance / 2), setting.scale * (middle + distance / 2))
        prevalence = float(np.clip(rng.normal(setting.prevalence, 0.05), 0.05, 0.95))
        return cls(size, prevalence, means, (setting.scale, 1.2 * setting.scale))

    def patients(self, rng: np.random.Generator) -> Patients:
        """Return the hospital's validation patients."""
        labels = (rng.random(rng.binomial(self.size, VALIDATION_SHARE)) < self.prevalence).astype(np.int64)
        logits = rng.normal(np.take(self.means, labels), np.take(self.spreads, labels))
        return logits, labels

    def rates(self, logit: float) -> tuple[float, float]:
        """Return the true sensitivity and specificity of a threshold."""
        below = norm.cdf((logit - np.array(self.means)) / np.array(self.spreads))
        return float(1 - below[1]), float(below[0])


@dataclass(frozen=True)
class Outcome:
    """A released threshold: the true rate that it was chosen for, over all patients and at the worst hospital.

    `other`: the true other rate. `low`, `high`: the interval that is released.
    """

    rate: float
    worst: float
    other: float
    low: float
    high: float


def simulate(setting: Setting, rng: np.random.Generator, *, pool: Pool) -> dict[str, Outcome | None]:
    """Return the outcome of each point of one study; None where nothing is released."""
    hospitals = [Hospital.drawn(size, setting, rng) for size in setting.sizes]
    found = [hospital.patients(rng) for hospital in hospitals]
    if pool == "masked":
        summed = _summed(found)
        return {point: _outcome(hospitals, pooled_counts.choose(summed, LABEL, point), point) for point in POINTS}
    answers = [tail_figures(logits, labels, LABEL, min_patients=MIN_PATIENTS) for logits, labels in found]
    is_robust = pool == "robust"
    return {point: _outcome(hospitals, choose(answers, LABEL, point, is_robust=is_robust), point) for point in POINTS}


def _summed(hospitals: Sequence[Patients]) -> Summed:
    """Return the sum of the hospitals' exact counts, of those with enough patients of both classes."""
    large = [each for each in hospitals if min(np.bincount(each[1], minlength=2)) >= MIN_PATIENTS]
    counts = dict.fromkeys(SUMMED["evaluate.calibrate"].counts, 0) | {sites_with(LABEL): len(large)}
    table = sum((exact_histograms(*each, RUNGS) for each in large), np.zeros((len(CLASSES), len(RUNGS) - 1), np.int64))
    counts |= {name: int(table[int(value), bin]) for (value, bin), name in logit_counts(LABEL).items()}
    return Summed(sites=len(hospitals), patients=sum(len(labels) for _, labels in hospitals), counts=counts)


def _outcome(hospitals: Sequence[Hospital], choice: object, point: str) -> Outcome | None:
    if not isinstance(choice, Chosen):
        return None
    sizes, prevalences = (np.array([getattr(each, name) for each in hospitals]) for name in ("size", "prevalence"))
    rates = np.array([hospital.rates(choice.logit) for hospital in hospitals])
    positives, negatives = sizes * prevalences, sizes * (1 - prevalences)
    pooled = (np.average(rates[:, 0], weights=positives), np.average(rates[:, 1], weights=negatives))
    chosen = 0 if point == "rule_out" else 1
    evidence = choice.evidence
    return Outcome(
        float(pooled[chosen]), float(rates[:, chosen].min()), float(pooled[1 - chosen]), evidence.low, evidence.high
    )


def row(setting: Setting, *, pool: Pool, studies: int, seed: int) -> dict[str, Any]:
    """Return the figures of many studies of one setting."""
    rng = np.random.default_rng(seed)
    outcomes = [simulate(setting, rng, pool=pool) for _ in range(studies)]
    return {
        "setting": vars(setting),
        "pool": pool,
        **{point: _summary([each[point] for each in outcomes]) for point in POINTS},
    }


def _summary(outcomes: Sequence[Outcome | None]) -> dict[str, Any]:
    released = [outcome for outcome in outcomes if outcome]
    if not released:
        return {"released": 0.0}

    def of(name: str) -> NDArray[np.float64]:
        return np.array([getattr(outcome, name) for outcome in released])

    rate = of("rate")
    return {
        "released": len(released) / len(outcomes),
        "reaches_floor": float((rate >= FLOOR).mean()),
        "range": np.percentile(rate, [2.5, 97.5]).tolist(),
        "worst_reaches_floor": float((of("worst") >= FLOOR).mean()),
        "other": float(of("other").mean()),
        "covered": float(((of("low") <= rate) & (rate <= of("high"))).mean()),
    }


def markdown(result: dict[str, Any]) -> str:
    columns = ["hospitals × patients", "unlike the first rows", "pool"]
    columns += ["released", "truly ≥ 0.80", "true rate, 95 % range", "the other rate", "worst hospital ≥ 0.80"]
    tables = []
    for point in POINTS:
        lines = [columns, ["---"] * len(columns)]
        lines += [[*_named(each), *_cells(each[point])] for each in result["rows"]]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        tables.append(f"## {_SAYS[point]}\n\n{text}\n")
    s = SETTINGS[0]
    told = (
        f"{result['studies']} simulated studies in each row (`benchmarks/operating_points.py`). A patient is a "
        f"validation patient with a chance of {VALIDATION_SHARE:g}; a hospital reports nothing if a class has under "
        f"{MIN_PATIENTS} of them. Logits are normal in both classes, with a standard deviation of {s.scale:g} and of "
        f"{1.2 * s.scale:g}, and with means {s.distance:g} apart. Between hospitals this distance varies by "
        f"{s.drift:g} (standard deviation), the mean of all logits by {s.shift:g}, and the prevalence of "
        f"{s.prevalence:g} by 0.05. "
        "The pool is that of plain averaging (sums), that of robust strategies, whose threshold must also be safe "
        "without any one hospital, or that of secure aggregation (masked): sums of exact counts. The true "
        "rate is that over the patients of all hospitals."
    )
    return "\n".join(("# Thresholds: what they truly reach\n", *textwrap.wrap(told, 120), "", *tables))


_SAYS = {
    "rule_out": "To rule out: the sensitivity (the other rate is the specificity)",
    "rule_in": "To rule in: the specificity (the other rate is the sensitivity)",
}


def _named(row: dict[str, Any]) -> list[str]:
    """Return the first cells of a row: the size of the study, what is unlike the first setting, and the pool."""
    setting, usual = row["setting"], vars(SETTINGS[0])
    each = setting["patients"]
    size = f"{setting['sites']} × {each}" if isinstance(each, int) else ", ".join(map(str, each))
    names = ("prevalence", "distance", "scale", "shift", "drift")
    changed = ", ".join(f"{name} {setting[name]:g}" for name in names if setting[name] != usual[name])
    return [size, changed, row["pool"]]


def _cells(found: dict[str, Any]) -> list[str]:
    if not found["released"]:
        return ["0", *["–"] * 4]
    low, high = found["range"]
    return [
        f"{found['released']:.2f}",
        f"{found['reaches_floor']:.3f}",
        f"{low:.2f} to {high:.2f}",
        f"{found['other']:.2f}",
        f"{found['worst_reaches_floor']:.2f}",
    ]


def main() -> None:
    rows = [
        row(setting, pool=pool, studies=STUDIES, seed=number)
        for number, setting in enumerate(SETTINGS)
        for pool in POOLS
    ]
    result = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "numpy": version("numpy"),
        "studies": STUDIES,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "operating_points.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "operating_points.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
