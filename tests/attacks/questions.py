"""Unlimited questions: counts above and below chosen thresholds, until every patient is alone between two of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import lcm
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from federation.protocol.metric_allowlist import LABELS, MAX_PROBED
from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from pipeline.cohort.dataset import Example, Examples
from pipeline.evaluation.shortcuts import embed
from tests.attacks.cohort import Hospital, Patient, draw_patients, with_patient
from tests.attacks.result import Result, compare
from tests.attacks.rig import Answer, Refused, Rig, released_study, rig, seed_network
from tests.attacks.trap import AGES, SEX_STEP, blind, row_of

ADVERSARY = "the weights, thresholds and discriminants of its questions"
_MOST = 150  # questions
_SCALE = 1 / 64  # logits per year


@torch.no_grad()
def ruler_network(study: Study) -> SeverityNetwork:
    """Return the study's network. Both logits are the age, for men plus SEX_STEP, times _SCALE."""
    network = seed_network(study)
    blind(network)
    unit, head = network.tabular[0], network.head
    unit.weight.zero_()
    unit.bias.zero_()
    unit.weight[0] = torch.tensor([20.0, 0.0, 60.0, 0.0]) * _SCALE
    unit.bias[0] = 120.0 * _SCALE
    head.weight.zero_()
    head.bias.zero_()
    head.weight[:, network.features] = 1.0
    return network


# --- sensitivities and specificities ----------------------------------------------------------------------


@dataclass
class Counts:
    """The number of patients of one label and value at or above each threshold of the question."""

    shares: dict[int, Fraction] = field(default_factory=dict)

    @property
    def of(self) -> int:
        """Return the number of patients. All shares are multiples of one divided by this number."""
        return lcm(*(share.denominator for share in self.shares.values()))

    def above(self, threshold: int) -> int:
        return int(self.shares[threshold] * self.of)


@dataclass
class Ruler:
    """What is known about one label's patients, by their keys."""

    label: str
    positives: Counts = field(default_factory=Counts)
    negatives: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        for counts, first in ((self.positives, 1), (self.negatives, 1)):
            counts.shares |= {AGES.start: Fraction(first), SEX_STEP + AGES.stop: Fraction(0)}

    def widest(self) -> list[int]:
        """Return thresholds that divide ranges with several patients; ranges with most patients come first."""
        asked = sorted(self.positives.shares)
        stretches = []
        for low, high in pairwise(asked):
            inside = sum(c.shares[low] - c.shares[high] for c in (self.positives, self.negatives))
            if inside > 0 and high - low > 1:
                stretches.append((inside * (high - low), (low + high) // 2))
        return [middle for _, middle in sorted(stretches, reverse=True)]

    def learn(self, threshold: int, figures: Mapping[str, Any], point: str) -> None:
        sensitivity, specificity = (figures.get(f"{what}_at_{point}_{self.label}") for what in ("sens", "spec"))
        if sensitivity is not None and specificity is not None:
            self.positives.shares[threshold] = Fraction(sensitivity).limit_denominator(1000)
            self.negatives.shares[threshold] = 1 - Fraction(specificity).limit_denominator(1000)

    def rows(self) -> Iterator[tuple[int, bool]]:
        """Return key and label of each patient in a range of one year who is alone or only with others of the same
        label.
        """
        asked = sorted(self.positives.shares)
        for low, high in pairwise(asked):
            if high - low == 1:
                for counts, value in ((self.positives, True), (self.negatives, False)):
                    for _ in range(counts.above(low) - counts.above(high)):
                        yield low, value


Setting = Callable[[int], tuple[Study, str, SeverityNetwork]]  # study, run and model of a question


def thresholds(attacked: Rig, setting: Setting, name: str, between: Callable[[], None] = lambda: None) -> Result:
    """Bisect all ages, with two thresholds for each label in a question. `between`: called after each question."""
    truth = attacked.hospital.of("test")
    rulers = [Ruler(label) for label in LABELS]
    code = ""
    while attacked.asked < _MOST and any(ruler.widest() for ruler in rulers):
        study, run, model = setting(attacked.asked)
        asked = {ruler.label: (ruler.widest() * 2 or [AGES.start + 1] * 2)[:2] for ruler in rulers}
        answer = attacked.ask("evaluate.test", study, model, config=_deployed(asked), run=run)
        if answer.code:
            code = answer.code
            break
        for ruler in rulers:
            for point, threshold in zip(("rule_in", "rule_out"), asked[ruler.label], strict=True):
                ruler.learn(threshold, answer.metrics, point)
        if all(len(ruler.positives.shares) == 2 for ruler in rulers):
            break  # the answer has no such figures
        between()
    pcr = list(rulers[0].rows())
    right, wrong = compare([(*row_of(key), value) for key, value in pcr], [patient.row for patient in truth])
    severe = list(rulers[1].rows())
    known = [(p.age, p.sex, p.severe) for p in truth if p.severe is not None]
    severe_right, severe_wrong = compare([(*row_of(key), value) for key, value in severe], known)
    note = f"{attacked.asked} questions; severity of {severe_right} of {len(known)} ({severe_wrong} wrong)"
    return Result(name, ADVERSARY, "age, sex, PCR", right, wrong, len(truth), code, note)


def _deployed(asked: Mapping[str, Sequence[int]]) -> dict[str, float]:
    config: dict[str, float] = {}
    for label, (rule_in, rule_out) in asked.items():
        config |= {f"slope_{label}": 1.0, f"intercept_{label}": 0.0}
        config |= {f"rule_in_{label}": (rule_in - 0.5) * _SCALE, f"rule_out_{label}": (rule_out - 0.5) * _SCALE}
    return config


def one_run(attacked: Rig) -> Result:
    study = released_study()
    model = ruler_network(study)
    return thresholds(attacked, lambda _: (study, "trial-0123abcd", model), "thresholds, one run")


def many_runs(attacked: Rig) -> Result:
    """Ask each question in a separate study and run, about a separate model, one month after the previous question."""

    def setting(number: int) -> tuple[Study, str, SeverityNetwork]:
        study = released_study()
        model = ruler_network(study)
        with torch.no_grad():
            model.head.bias += number * 1e-7
        return study, f"trial-{number:08x}", model

    return thresholds(
        attacked, setting, "thresholds, over many runs, models and months", lambda: attacked.pass_time(days=31)
    )


# --- linear discriminants ---------------------------------------------------------------------------------


def features_of(study: Study, model: SeverityNetwork, patients: Sequence[Patient], hospital: Hospital) -> NDArray[Any]:
    """Return the truth: the network's features of these patients' scans."""
    tensors = hospital.site.cohort_folder / "tensors"
    numbers = [list(hospital.patients).index(patient) for patient in patients]
    return embed(model, Examples([Example(tensors / f"{n:05d}.npy", None, None, None, None) for n in numbers]))


def discriminants(attacked: Rig) -> Result:
    """Bisect one feature of the scans by the numbers of patients that are assigned to each of 32 invented sites."""
    study = released_study()
    model = seed_network(study)
    truth = np.sort(features_of(study, model, attacked.hospital.of("test"), attacked.hospital)[:, 0])
    what = "a feature of the scan to 1/1000 of its spread"
    edges, low_high = [0.0, 64.0], 64.0
    shares: dict[float, int] = {0.0: len(truth), 64.0: 0}  # the number of patients at or above
    code = ""
    while attacked.asked < _MOST:
        spread = max(low_high, 1e-9)
        open_ = [(a, b) for a, b in pairwise(edges) if shares[a] - shares[b] and b - a > spread / 1000]
        if not open_:
            break
        each = max(1, (MAX_PROBED - 1) // len(open_))
        cuts = sorted(a + (b - a) * (k + 1) / (each + 1) for a, b in open_[: MAX_PROBED - 1] for k in range(each))
        cuts = cuts[: MAX_PROBED - 1]
        probe = {"discriminants": _steps(cuts, model.features)}
        config = {"probed": len(cuts) + 1}
        answer = attacked.ask("evaluate.assign", study, model, config=config, records={"probe": probe})
        if answer.code:
            code = answer.code
            break
        counts = [round(float(answer.metrics[f"assigned_{n:02d}"]) * len(truth)) for n in range(len(cuts) + 1)]
        base = _cumulated(cuts, counts)
        shares |= base
        edges = sorted(shares)
        occupied = [(a, b) for a, b in pairwise(edges) if shares[a] - shares[b]]
        low_high = occupied[-1][1] - occupied[0][0]
    alone = [(a, b) for a, b in pairwise(edges) if shares[a] - shares[b] == 1 and b - a <= low_high / 1000]
    right = sum(int(np.sum((truth >= a) & (truth < b)) == 1) for a, b in alone)
    name, note = "discriminants", f"{attacked.asked} questions"
    return Result(name, ADVERSARY, what, right, len(alone) - right, len(truth), code, note)


def _cumulated(cuts: Sequence[float], counts: Sequence[int]) -> dict[float, int]:
    """Return the number of patients at or above each cut."""
    return {cut: sum(counts[place + 1 :]) for place, cut in enumerate(cuts)}


def _steps(cuts: Sequence[float], features: int) -> NDArray[np.float32]:
    """Return lines. The line with the highest value changes at each cut of the first feature."""
    table = np.zeros((MAX_PROBED, features + 1), np.float32)
    for place in range(len(cuts) + 1):
        table[place, 0] = place
        table[place, -1] = -sum(cuts[:place])
    return table.ravel()


# --- before and after one patient -------------------------------------------------------------------------


def one_patient_more(attacked: Rig) -> Result:
    """Compare means of features over N patients and over N + 1 patients."""
    study = released_study()
    model = seed_network(study)
    new = draw_patients(99, {"train": 1})[0]
    name, what = "means before and after one patient", "all features of the scan"
    try:
        before = attacked.must("evaluate.embed", study, model)
        attacked.hospital = with_patient(attacked.hospital, new)
        after = attacked.must("evaluate.embed", study, model)
    except Refused as refused:
        return Result(name, ADVERSARY, what, 0, 0, 1, refused.code)
    claimed = _total(after) - _total(before)
    truth = features_of(study, model, [new], attacked.hospital)[0]
    is_right = bool(np.linalg.norm(claimed - truth) < 0.01 * np.linalg.norm(truth))
    return Result(name, ADVERSARY, what, int(is_right), int(not is_right), 1)


def _total(answer: Answer) -> NDArray[np.float64]:
    total: NDArray[np.float64] = answer.arrays["moments"]["mean"].astype(np.float64) * answer.metrics["num-examples"]
    return total


def attacks() -> Iterator[Result]:
    """Run each at a separate hospital."""
    for attack in (one_run, many_runs, discriminants, one_patient_more):
        with rig() as attacked:
            yield attack(attacked)
