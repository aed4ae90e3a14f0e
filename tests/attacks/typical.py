"""A chosen typical appearance: one calibration reveals whether a known scan is among the validation patients.

`evaluate.calibrate` sends a mean and a variance of appearance features. The hospital returns mean and standard
deviation of the logarithms of its patients' distances from them. If a server has a scan and sends its features as the
mean, that patient has the distance 0, if present. The server may also send means beside that scan, each about another
model, and compare the answers. The decoder is fitted to simulated hospitals, with the figures as the release reports
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from federation.protocol.grids import Step
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, FIGURES
from models.familiarity import appearance_features
from pipeline.evaluation.figures import distance_figures
from tests.attacks.cohort import Patient, draw_patients
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, alone_study, rig, seed_network
from tests.attacks.score import HOSPITALS, score

HOLDS = "the typical appearance in calibrations, and the scans of some patients"
WHAT = "whether a known scan is among the validation patients"
NAME = "typical appearance of a known scan, one calibration"
BESIDE_NAME = "typical appearance of a known scan and beside it, five calibrations"
SEEDS = range(501, 501 + HOSPITALS)
SCANS = 10  # the number of scans asked about at each hospital
VALIDATION = 24
BESIDE = 4
_AWAY = 0.7  # standard deviations, in each feature
_NEAR = 1e-3  # at distance 0 the standard deviation would be out of range, and the reply would be refused
_POOL_SEED, _POOL, _SIMULATED = 9_100, 300, 1_500
Vector = NDArray[np.float64]
Appearance = NDArray[np.float32]


def look_of(patient: Patient) -> Appearance:
    return appearance_features(patient.tensor.astype(np.float32))


@cache
def pool() -> Appearance:
    """Draw the appearance features of simulated patients, shape (patients, APPEARANCE_SIZE)."""
    return np.stack([look_of(patient) for patient in draw_patients(_POOL_SEED, {"validation": _POOL})])


def means(known: Appearance, beside: int) -> list[Appearance]:
    """Return the scan's own features, almost exactly, and then pairs on either side of them; all in float32."""
    rng, spread = np.random.default_rng(_POOL_SEED), pool().std(axis=0)
    found: list[Appearance] = [known + np.float32(_NEAR) * spread]
    for _ in range(beside // 2):
        signs: Appearance = rng.choice([-1.0, 1.0], APPEARANCE_SIZE).astype(np.float32)
        step: Appearance = np.float32(_AWAY) * spread * signs
        found += [np.add(known, step), np.subtract(known, step)]
    return found


def observed(figures: Sequence[tuple[float, float]]) -> Vector:
    """Return mean and standard deviation of the first question, and their differences from the mean of the others."""
    first, *others = np.array(figures, dtype=np.float64)
    return np.concatenate([first, first - np.mean(others, axis=0)]) if others else first


@dataclass(frozen=True)
class Decoder:
    """A linear function of the observation. A value above 0.5 means that the scan is among the patients."""

    weights: Vector

    @classmethod
    def fitted(cls, beside: int) -> "Decoder":
        rng, rows, truths = np.random.default_rng(1), [], []
        for number in range(_SIMULATED):
            chosen = pool()[rng.choice(_POOL, VALIDATION + 1, replace=False)]
            is_there = number % 2 == 0
            patients = chosen[:VALIDATION] if is_there else chosen[1:]
            rows.append(observed([figures_at(patients, mean) for mean in means(chosen[0], beside)]))
            truths.append(float(is_there))
        found = np.hstack([np.array(rows), np.ones((len(rows), 1))])
        return cls(np.linalg.lstsq(found, np.array(truths), rcond=None)[0])

    def is_there(self, seen: Vector) -> bool:
        return bool(self.weights[:-1] @ seen + self.weights[-1] > 0.5)


def figures_at(patients: Appearance, mean: Appearance) -> tuple[float, float]:
    """Return mean and standard deviation of these patients' distances from a mean, as a hospital reports them."""
    figures = distance_figures(patients, mean, pool().var(axis=0))
    return _reported("distance_mean", figures), _reported("distance_sd", figures)


def _reported(name: str, figures: dict[str, float]) -> float:
    """Return the figure as it is sent. A figure that the hospital would not report is set to the end of its range."""
    figure = FIGURES["evaluate.calibrate"][name]
    assert isinstance(figure.grid, Step)
    return figure.grid.rounded(min(max(figures.get(name, figure.high), figure.low), figure.high))


def ask(attacked: Rig, known: Appearance, beside: int) -> Vector:
    """Ask for calibrations with this appearance, each in another run and about another model. Raises Refused."""
    study, figures = alone_study(), []
    for mean in means(known, beside):
        run, model = f"typical-{attacked.asked:06d}", seed_network(study)
        attacked.must("train", study, model, run=run)
        with torch.no_grad():
            model.head.bias += attacked.asked * 1e-6
        typical = {"mean": mean, "variance": pool().var(axis=0)}
        answer = attacked.must("evaluate.calibrate", study, model, records={"typical": typical}, run=run)
        figures.append((float(answer.metrics["distance_mean"]), float(answer.metrics["distance_sd"])))
    return observed(figures)


def known_scans(attacked: Rig, seed: int, scans: int) -> list[tuple[Patient, bool]]:
    """Return patients whose scan the server has, each with whether it is a validation patient of this hospital."""
    rng = np.random.default_rng(seed)
    here, strangers = attacked.hospital.of("validation"), draw_patients(1000 + seed, {"validation": scans})
    return [(here[n] if is_there else strangers[n], is_there) for n, is_there in enumerate(rng.random(scans) < 0.5)]


def membership(scans: int, beside: int, *, name: str, seeds: Sequence[int]) -> Result:
    """Try this many scans at a hospital for each seed; `beside`: the number of further questions about each scan."""
    decoder = Decoder.fitted(beside)
    claims: list[list[tuple[int, bool]]] = []
    truths: list[list[tuple[int, bool]]] = []
    asked = 0
    for seed in seeds:
        with rig(seed=seed, patients={"train": 40, "validation": VALIDATION, "test": 40}) as attacked:
            attacked.talk_into(alone_study())
            known = known_scans(attacked, seed, scans)
            try:
                seen = [ask(attacked, look_of(patient), beside) for patient, _ in known]
            except Refused as refused:
                return Result(name, HOLDS, WHAT, 0, 0, scans, stopped_by=refused.code)
            claims.append([(place, decoder.is_there(each)) for place, each in enumerate(seen)])
            truths.append([(place, bool(is_there)) for place, (_, is_there) in enumerate(known)])
            asked = attacked.asked
    note = f"{asked // 2} calibrations at each hospital"
    return Result.scored(name, HOLDS, WHAT, score(claims, truths), note=note)


def attacks() -> Iterator[Result]:
    """Run at hospitals that were not used to build the decoder."""
    yield membership(SCANS, 0, name=NAME, seeds=SEEDS)
    yield membership(SCANS, BESIDE, name=BESIDE_NAME, seeds=SEEDS)
