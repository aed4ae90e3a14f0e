"""The thresholds that follow from the sites' tails: when there is one, what is claimed for it, and who can move it."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from federation.protocol.operating_points import Answer, Chosen, choose, lower_bound
from models.operating_points import AIM, FLOOR, LEAST_PATIENTS, POINTS, MissingPoint
from pipeline.evaluation.figures import tail_figures
from pipeline.evaluation.ladder import RUNGS

LABEL = "severe"


def site(positives: int, negatives: int, *, seed: int = 0, distance: float = 2.0, min_patients: int = 10) -> Answer:
    """What a site with these validation patients reports."""
    return tail_figures(*patients(positives, negatives, seed, distance), LABEL, min_patients=min_patients)


def patients(positives: int, negatives: int, seed: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([1, 0], [positives, negatives])
    return np.random.default_rng(seed).normal(distance * (labels - 0.5)), labels


def chosen(answers: Sequence[Answer], point: str = "rule_out", *, is_robust: bool = False) -> Chosen:
    choice = choose(answers, LABEL, point, is_robust=is_robust)
    assert isinstance(choice, Chosen)
    return choice


def test_lower_bound_is_that_of_clopper_and_pearson() -> None:
    assert lower_bound(np.array([28]), 30) == pytest.approx(beta.ppf(0.05, 28, 3))
    assert lower_bound(np.array([0, 30]), 30) == pytest.approx([0, 0.05 ** (1 / 30)])


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("is_robust", [False, True])
@given(
    sizes=st.lists(st.tuples(st.integers(10, 400), st.integers(10, 400)), min_size=1, max_size=5),
    distance=st.floats(-1, 5),
    scale=st.floats(0.01, 30),
    seed=st.integers(0, 1000),
)
def test_claims_hold_for_the_validation_patients(
    point: str, is_robust: bool, sizes: list[tuple[int, int]], distance: float, scale: float, seed: int
) -> None:
    """Counted without any rounding, the patients behind a threshold reach what is claimed for it."""
    sites = [patients(*each, seed + place, distance) for place, each in enumerate(sizes)]
    answers = [tail_figures(scale * x, y, LABEL, min_patients=10) for x, y in sites]
    choice = choose(answers, LABEL, point, is_robust=is_robust)
    if isinstance(choice, MissingPoint):
        return
    assert choice.logit in RUNGS[1:-1]
    wanted = int(point == "rule_out")
    misses, totals = [], []
    for x, y in sites:
        of_class = scale * x[y == wanted]
        is_wrong = of_class < choice.logit if point == "rule_out" else of_class >= choice.logit
        misses.append(int(is_wrong.sum()))
        totals.append(len(of_class))
    right, total = sum(totals) - sum(misses), sum(totals)
    claimed = choice.evidence
    assert FLOOR <= claimed.low <= claimed.value <= claimed.high <= 1
    assert claimed.low <= beta.ppf(0.05, right, total - right + 1) + 1e-9
    assert claimed.value >= AIM - 1e-9
    upper = 1.0 if right == total else beta.ppf(0.95, right + 1, total - right)
    assert upper <= claimed.high + 1e-9
    assert claimed.positives <= sum(positives for positives, _ in sizes)
    assert claimed.negatives <= sum(negatives for _, negatives in sizes)
    if is_robust:
        for miss, size in zip(misses, totals, strict=True):
            others = total - size - (sum(misses) - miss)
            assert beta.ppf(0.05, others, total - size - others + 1) >= FLOOR


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], MissingPoint(why="too_few")),
        ([(9, 30)], MissingPoint(why="too_few")),  # the site withholds it: fewer than 10
        ([(9, 30), (17, 40)], MissingPoint(why="too_few", positives=15, negatives=39, sites=1)),
        ([(40, 19)], MissingPoint(why="too_few", positives=39, negatives=18, sites=1)),
        ([(10, 40), (10, 40)], MissingPoint(why="too_few", positives=18, negatives=78, sites=2)),
    ],
)
def test_twenty_patients_of_each_class_are_needed(
    sizes: list[tuple[int, int]], expected: MissingPoint, point: str
) -> None:
    answers = [site(*each) for each in sizes]
    assert choose(answers, LABEL, point, is_robust=False) == expected


def test_missing_point_is_explained_in_words() -> None:
    few = choose([site(17, 40)], LABEL, "rule_out", is_robust=False)
    assert isinstance(few, MissingPoint)
    assert few.text("rule_out") == (
        "No operating point: 15 positive and 39 negative validation patients at 1 hospital could be counted; "
        f"at least {LEAST_PATIENTS} of each are needed."
    )
    unsafe = choose([site(12, 40), site(12, 40)], LABEL, "rule_out", is_robust=True)
    assert isinstance(unsafe, MissingPoint)
    assert unsafe.why == "not_reached"
    assert "too few to show that a threshold to rule out reaches a sensitivity of 0.80" in unsafe.text("rule_out")


def test_sites_with_few_patients_are_added_up() -> None:
    evidence = chosen([site(16, 30, seed=seed) for seed in range(3)]).evidence
    assert (evidence.positives, evidence.negatives, evidence.sites) == (45, 81, 3)
    assert evidence.low >= FLOOR


@pytest.mark.parametrize("point", POINTS)
def test_overlapping_classes_give_a_cautious_threshold(point: str) -> None:
    """Without any skill a threshold still misses few patients; it only decides about few."""
    logits = [chosen([site(50, 50, distance=distance)] * 2, point).logit for distance in (0.0, 4.0)]
    assert abs(logits[0]) > abs(logits[1])


@pytest.mark.parametrize("point", POINTS)
def test_one_hostile_site_cannot_make_a_robust_threshold_look_safe(point: str) -> None:
    honest = [site(60, 60, seed=seed) for seed in range(3)]
    top = max(RUNGS[1:-1]) if point == "rule_out" else min(RUNGS[1:-1])
    lie = {"positives_severe": 900_000.0, "negatives_severe": 900_000.0}
    lie |= {f"{point}_severe_{percent:02}": top for percent in (0, 10, 20)}
    side = 1 if point == "rule_out" else -1
    assert side * chosen([*honest, lie], point).logit > side * chosen(honest, point).logit  # control: sums are moved
    without = [chosen([*honest[:place], *honest[place + 1 :]], point).logit for place in range(3)]
    robust = chosen([*honest, lie], point, is_robust=True).logit
    assert side * robust <= side * chosen(honest, point).logit
    assert robust in {*without, chosen(honest, point).logit}


@pytest.mark.parametrize("is_robust", [False, True])
def test_threshold_for_all_sites_needs_the_patients_of_two(is_robust: bool) -> None:
    choice = choose([site(300, 300), site(9, 300)], LABEL, "rule_out", is_robust=is_robust)
    assert isinstance(choice, MissingPoint)
    assert (choice.why, choice.sites) == ("not_reached", 1)
    assert choice.text("rule_out").endswith("at 1 hospital could be counted; at least two hospitals are needed.")


def test_answers_of_an_earlier_version_give_no_threshold() -> None:
    answer = {"rule_out_severe": -1.0, "rule_in_severe": 1.0, "slope_severe": 1.0, "num-examples": 100.0}
    choice = choose([answer] * 3, LABEL, "rule_out", is_robust=False)
    assert choice == MissingPoint(why="too_few")


@given(scale=st.floats(0.01, 30), seed=st.integers(0, 1000))
def test_rungs_of_a_tail_are_ordered(scale: float, seed: int) -> None:
    logits, labels = patients(50, 50, seed, 2.0)
    found = tail_figures(scale * logits, labels, LABEL, min_patients=10)
    out, into = ([found[f"{point}_severe_{percent:02}"] for percent in (0, 10, 20)] for point in POINTS)
    assert all(low <= high for low, high in pairwise(out))
    assert all(low >= high for low, high in pairwise(into))
    assert {*out, *into} <= set(RUNGS)


@pytest.mark.parametrize("positives", range(10, 40))
def test_a_single_outlier_changes_no_rung(positives: int) -> None:
    """A lone positive patient far below the others, or a lone negative one far above, is not visible."""
    logits = np.concatenate([np.full(positives, 1.3), np.full(60, -1.3)])
    labels = np.repeat([1, 0], [positives, 60])
    usual = tail_figures(logits, labels, LABEL, min_patients=10)
    logits[0], logits[-1] = -5.0, 5.0
    assert tail_figures(logits, labels, LABEL, min_patients=10) == usual
