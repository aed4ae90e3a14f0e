"""Invented calibrations: the gateway pools the answers that the server attributes to all hospitals.

The gateway can verify only its own answer. A server that invents two more answers can set the pooled thresholds freely,
once for each model. The models are heads on age and sex alone, each in a separate run. A logit is then a function of a
patient's band of age and sex. Sensitivity and specificity at a threshold are counts of patients over some bands, in
steps of three patients. Many heads order the bands in many ways. The counts are linear equations in the number of
patients of each kind, and their rounding averages out.

`own`: the control. The server only repeats the hospital's own answer as that of many others, so the thresholds follow
from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import nnls

from federation.protocol.calibration_answers import to_record
from federation.protocol.grids import Shares, parts_of
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, LABELS, class_counts, tail
from federation.protocol.pooled_calibration import pooled, settings_of
from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from models.operating_points import POINTS
from pipeline.evaluation.ladder import RUNGS
from tests.attacks.cohort import Patient, draw_patients, with_patient
from tests.attacks.gate import CELLS, Matrix, features_of_cells, gated
from tests.attacks.gate import row as banded_row
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, alone_study, released_study, rig, seed_network
from tests.attacks.score import HOSPITALS, score

HEADS = "heads on age and sex, a study without sums that the hospital was persuaded to approve"
HOLDS = "the same, and the other hospitals' calibrations"
RELEASED = "heads on age and sex, and the other hospitals' calibrations, a released study"
ALL_BUT_ONE = "heads, calibrations, and all patients but one"
WHAT = "age band, sex, PCR, severity"
DEFAULT_NAME = "invented calibrations, 16 tests, default settings"
NAME = "invented calibrations, 16 tests"
OWN_NAME = "thresholds of the hospital's own calibration, 16 tests"
KNOWN_NAME = "invented calibrations, all patients but one known"
JOINED_NAME = "invented calibrations, before and after one patient"
SEEDS = range(401, 401 + HOSPITALS)
PATIENTS = {"train": 40, "validation": 24, "test": 40}
TESTS = 16  # each with a calibration: a third of the questions that a month allows
_RMS = 0.55  # of a head's weights; the gateway allows 0.6
_SURE, _ROUNDED = 0.1, 0.9  # standard deviations in patients: of an exact number, and of a number in steps of three
_MANY = 900_000.0  # invented patients
_REPEATED = 40  # answers: enough patients for any threshold
_TIE = 2e-4  # a logit this near to a threshold may be on either side
_TRIED = 12  # the number of class sizes that are tried
_NO_STATISTICS = dict.fromkeys(("mean", "variance"), np.zeros(APPEARANCE_SIZE, np.float32))

# Both labels: negative; positive and not severe; positive and severe. Severity is known only for positive patients.
Kind = tuple[bool, bool | None]
KINDS: tuple[Kind, ...] = ((False, None), (True, False), (True, True))
POSITIVE = {"pcr_positive": (1, 2), "severe": (2,)}
NEGATIVE = {"pcr_positive": (0,), "severe": (1,)}
Row = tuple[int, str, bool, bool | None]
ROWS: list[Row] = [(*cell, *kind) for kind in KINDS for cell in CELLS]


def row(patient: Patient) -> Row:
    return (*banded_row(*patient.row), patient.severe)


# --- a question -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tested:
    """One answer: by label the logits of each cell, the thresholds, and the figures."""

    logits: Mapping[str, Matrix]
    thresholds: Mapping[str, Mapping[str, float]]
    figures: Mapping[str, Any]

    def shares(self) -> Iterator[tuple[str, bool, Matrix, float]]:
        """One share: its label, whether it covers the positives, which cells are above a threshold, and its value.

        A cell that may be on either side counts half.
        """
        for label, points in self.thresholds.items():
            for point, at in points.items():
                over = np.where(np.abs(self.logits[label] - at) < _TIE, 0.5, self.logits[label] >= at)
                sensitivity, specificity = (self.figures.get(f"{what}_at_{point}_{label}") for what in ("sens", "spec"))
                if sensitivity is not None and specificity is not None:
                    yield label, True, over, float(sensitivity)
                    yield label, False, over, 1 - float(specificity)


@dataclass(frozen=True)
class Probe:
    """A head for each label, shape (labels, features), and by label the rungs wanted as its two thresholds."""

    weights: Matrix
    wanted: Mapping[str, Sequence[float]]

    @classmethod
    def drawn(cls, study: Study, rng: np.random.Generator) -> "Probe":
        """Draw random heads, with thresholds that have some cells on either side."""
        weights = rng.normal(size=(len(LABELS), study.network.tabular_features))
        weights *= _RMS / np.sqrt(np.square(weights).mean(axis=1, keepdims=True))
        network = gated(study, np.zeros_like(weights))
        wanted = {}
        for label, logits in cell_logits(network, weights).items():
            low, high = np.sort(logits)[[4, -5]]
            between = [rung for rung in RUNGS if low < rung < high]
            wanted[label] = [float(rung) for rung in rng.choice(between, 2, replace=False)]
        return cls(weights, wanted)

    def nearly(self, step: int) -> "Probe":
        """Change the model slightly. The gateway answers each model once and treats this one as new; outputs stay
        equal.
        """
        return replace(self, weights=self.weights * (1 + step * 1e-6))


def cell_logits(network: SeverityNetwork, weights: Matrix) -> dict[str, Matrix]:
    features = features_of_cells(network)[:, :-1]
    return {label: features @ each.astype(np.float32) for label, each in zip(LABELS, weights, strict=True)}


def ask(attacked: Rig, study: Study, probe: Probe, *, run: str, own: bool = False) -> Tested:
    """Train the seed's model once, calibrate a head, and test it at the server's thresholds. Raises Refused."""
    model = gated(study, probe.weights)
    attacked.must("train", study, run=run, model=seed_network(study))
    calibrated = attacked.must("evaluate.calibrate", study, model, records={"typical": _NO_STATISTICS}, run=run)
    invented = {
        name: at
        for label in LABELS
        for point, at in zip(POINTS, probe.wanted[label], strict=True)
        for name in tail(point, label)
    }
    invented |= {name: _MANY for label in LABELS for name in class_counts(label)} | {"num-examples": _MANY}
    others = [dict(calibrated.metrics)] * _REPEATED if own else [invented] * 2
    answers = [dict(calibrated.metrics), *others]
    fits, thresholds = pooled(answers, is_robust=True)
    tested = attacked.must(
        "evaluate.test",
        study,
        model,
        config=settings_of(fits, thresholds),
        configs={"calibrations": to_record(answers)},
        run=run,
    )
    return Tested(cell_logits(model, probe.weights), thresholds, tested.metrics)


def ask_all(attacked: Rig, study: Study, probes: Sequence[Probe], *, name: str, own: bool = False) -> list[Tested]:
    """Do one run for each probe, up to the limit of the month. Raises Refused."""
    answers = [ask(attacked, study, probe, run=f"{name}-{n:04d}", own=own) for n, probe in enumerate(probes)]
    attacked.pass_time(days=32)
    return answers


def draw_probes(study: Study, number: int) -> list[Probe]:
    rng = np.random.default_rng(7)
    return [Probe.drawn(study, rng) for _ in range(number)]


# --- reading the answers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """The number of test patients of each of KINDS."""

    of_kind: tuple[int, int, int]

    def of(self, label: str, positive: bool) -> int:
        return sum(self.of_kind[kind] for kind in (POSITIVE if positive else NEGATIVE)[label])

    def plus(self, kind: int) -> "Sizes":
        grown = [size + (place == kind) for place, size in enumerate(self.of_kind)]
        return Sizes((grown[0], grown[1], grown[2]))


def possible_sizes(answers: Sequence[Tested]) -> list[Sizes]:
    """Return the sizes for which all reported values are possible shares."""
    patients = int(answers[0].figures["num-examples"])
    reported: dict[tuple[str, bool], set[float]] = {}
    for answer in answers:
        for label, positive, _, share in answer.shares():
            reported.setdefault((label, positive), set()).add(share)

    def fits(sizes: Sizes) -> bool:
        return all(
            abs(share * parts - round(share * parts)) < 1e-6
            for key, shares in reported.items()
            for parts in [parts_of(sizes.of(*key))]
            for share in shares
        )

    every = (
        Sizes((patients - positive, positive - severe, severe))
        for positive, severe in product(range(1, patients), repeat=2)
        if severe < positive
    )
    found = [sizes for sizes in every if fits(sizes)]
    most = max((sum(parts_of(sizes.of(*key)) for key in reported) for sizes in found), default=0)
    usual = np.array([0.4, 0.3, 0.3]) * patients
    finest = [sizes for sizes in found if sum(parts_of(sizes.of(*key)) for key in reported) <= most]
    return sorted(finest, key=lambda sizes: float(np.abs(np.array(sizes.of_kind) - usual).sum()))[:_TRIED]


@dataclass(frozen=True)
class System:
    """Linear equations in the number of patients of each of ROWS, in units of their standard deviations."""

    left: Matrix
    right: Matrix

    @classmethod
    def of(cls, answers: Sequence[Tested], sizes: Sizes) -> "System":
        left, right = [], []
        for kind, size in enumerate(sizes.of_kind):
            left.append(np.repeat(np.eye(3)[kind], len(CELLS)) / _SURE)
            right.append(size / _SURE)
        for answer in answers:
            for label, positive, over, share in answer.shares():
                kinds = np.isin(range(3), (POSITIVE if positive else NEGATIVE)[label])
                left.append(np.outer(kinds, over).ravel() / _ROUNDED)
                right.append(share * sizes.of(label, positive) / _ROUNDED)
        usual = np.repeat(sizes.of_kind, len(CELLS)) / len(CELLS)
        pull = 1 / np.sqrt(np.maximum(usual, 0.1))
        return cls(np.vstack([*left, np.diag(pull)]), np.concatenate([right, pull * usual]))

    @cached_property
    def solved(self) -> tuple[Matrix, float]:
        """Return the numbers that fit best, none negative, and the remaining sum of squares."""
        counts, misfit = nnls(self.left, self.right)
        return counts, float(misfit) ** 2


def decode(answers: Sequence[Tested]) -> list[Row]:
    """Return the rows that fit best, as many as there are patients."""
    systems = [System.of(answers, sizes) for sizes in possible_sizes(answers)]
    left = min(systems, key=lambda system: system.solved[1]).solved[0].copy()
    claimed = []
    for _ in range(int(answers[0].figures["num-examples"])):
        place = int(left.argmax())
        left[place] -= 1
        claimed.append(ROWS[place])
    return claimed


def decode_joined(before: Sequence[Tested], after: Sequence[Tested]) -> Row:
    """Return the row of the patient who joined: the row with which both answers fit best."""
    best = (np.inf, ROWS[0])
    for sizes in possible_sizes(before):
        first = System.of(before, sizes)
        for kind in range(len(KINDS)):
            second = System.of(after, sizes.plus(kind))
            left = np.vstack([first.left, second.left[: -len(ROWS)]])
            for cell in range(len(CELLS)):
                place = kind * len(CELLS) + cell
                right = second.right[: -len(ROWS)] - second.left[: -len(ROWS), place]
                misfit = float(nnls(left, np.concatenate([first.right, right]))[1])
                best = min(best, (misfit, ROWS[place]), key=lambda each: each[0])
    return best[1]


def decode_last(answers: Sequence[Tested], others: Sequence[Row]) -> Row:
    """Return the row of the one unknown patient: the row with which most figures equal the reported ones."""
    counts = counts_of(others)
    return ROWS[int(np.argmin([misses(answers, counts + counts_of([claimed])) for claimed in ROWS]))]


def counts_of(rows: Sequence[Row]) -> Matrix:
    """Return the number of patients of each kind and cell."""
    counts = np.zeros((len(KINDS), len(CELLS)))
    for each in rows:
        counts[KINDS.index(each[2:]), CELLS.index(each[:2])] += 1
    return counts


def misses(answers: Sequence[Tested], counts: Matrix) -> float:
    """Return the total distance between the figures and those that these patients would give."""
    grid, total = Shares(), 0.0
    for answer in answers:
        for label, positive, over, share in answer.shares():
            of_class = counts[list((POSITIVE if positive else NEGATIVE)[label])].sum(axis=0)
            size = int(of_class.sum())
            exact = float(of_class @ over) / max(size, 1)
            expected = grid.rounded(exact if positive else 1 - exact, size)
            total += abs((expected if positive else 1 - expected) - share)
    return total


# --- at several hospitals ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """The answers of one hospital, and the truth: rows of its test patients, and of the patient who joined them later.

    `own`: at the thresholds of the hospital's own calibration. `after`: the first questions again, with one more
    patient.
    """

    truth: Sequence[Row]
    joined: Row
    invented: Sequence[Tested]
    own: Sequence[Tested]
    after: Sequence[Tested]


def attack_one(study: Study, probes: Sequence[Probe], seed: int) -> Seen:
    """Ask a hospital of this seed for three months. Raises Refused."""
    with rig(seed=seed, patients=PATIENTS) as attacked:
        attacked.talk_into(study)
        truth = [row(patient) for patient in attacked.hospital.of("test")]
        invented = ask_all(attacked, study, probes, name="invented")
        own = ask_all(attacked, study, [probe.nearly(1) for probe in probes], name="own", own=True)
        joined = draw_patients(1000 + seed, {"test": 1})[0]
        attacked.hospital = with_patient(attacked.hospital, joined)
        after = ask_all(attacked, study, [probe.nearly(2) for probe in probes], name="after")
        return Seen(truth, row(joined), invented, own, after)


def last_patients(seen: Seen) -> list[Row]:
    """Return the claims of servers that each know all patients but one."""
    return [decode_last(seen.invented, [*seen.truth[:n], *seen.truth[n + 1 :]]) for n in range(len(seen.truth))]


def results(hospitals: Sequence[Seen]) -> Iterator[Result]:
    truths, tests = [each.truth for each in hospitals], len(hospitals[0].invented)
    note = f"{2 * tests} questions to each hospital"
    found = score([decode(each.invented) for each in hospitals], truths)
    yield Result.scored(NAME, HOLDS, WHAT, found, note=note)
    yield Result.scored(OWN_NAME, HEADS, WHAT, score([decode(each.own) for each in hospitals], truths), note=note)
    numbered = [list(enumerate(truth)) for truth in truths]
    last = score([list(enumerate(last_patients(each))) for each in hospitals], numbered)
    yield Result.scored(KNOWN_NAME, ALL_BUT_ONE, WHAT, last, note=note)
    claims = [[decode_joined(each.invented, each.after)] for each in hospitals]
    joined = score(claims, [[each.joined] for each in hospitals])
    yield Result.scored(JOINED_NAME, HOLDS, WHAT, joined, note=f"{4 * tests} questions to each hospital")


def attacks() -> Iterator[Result]:
    """Run at hospitals whose patients are drawn from unused seeds."""
    for study, name in ((released_study(), DEFAULT_NAME), (alone_study(), NAME)):
        probes = draw_probes(study, TESTS)
        try:
            yield from results([attack_one(study, probes, seed) for seed in SEEDS])
        except Refused as refused:
            yield Result(name, RELEASED, WHAT, 0, 0, PATIENTS["test"], stopped_by=refused.code)
