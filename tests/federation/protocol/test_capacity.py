"""Tests of the capacity of one reply: its bits are bounded, published and enforced by the gateway."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.gateway.figure_checks import check_figures
from federation.protocol import capacity
from federation.protocol.capacity import bits, code_bits, summed_bits, with_table
from federation.protocol.coarse_moments import MANTISSA_BITS, RANGES, Range
from federation.protocol.error_codes import OF_APPS
from federation.protocol.figure_rounding import HIGH, LOW, figure_of_end
from federation.protocol.metric_allowlist import EPSILON, EXAMPLES_OF, FIGURES, LABELS, TAILS, Kind, class_counts
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from pipeline.evaluation.ladder import RUNGS, counted_classes
from tests.federation.gateway.messages import MIN_PATIENTS, PATIENTS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "one-reply.md"
IDENTIFIER = "4401728395566"
LIMITS: dict[Kind, float] = {
    "query.handshake": 0,
    "train": 64,
    "train.head": 0,
    "evaluate.calibrate": 256,
    "evaluate.test": 1000,
    "evaluate.embed": 6500,
    "evaluate.assign": 256,
}
FIGURED = [kind for kind in FIGURES if FIGURES[kind]]


def let_out(figures: dict[str, float], kind: Kind) -> dict[str, float]:
    told = {**figures, "num-examples": PATIENTS.of_split[EXAMPLES_OF[kind]]}
    if kind == "evaluate.calibrate":  # without them no tail leaves
        told |= {name: PATIENTS.own(FIGURES[kind][name]) for label in LABELS for name in class_counts(label)}
    withheld_figures = {EPSILON} & set(FIGURES[kind])
    return check_figures(
        told,
        kind,
        PATIENTS,
        min_patients=MIN_PATIENTS,
        histograms=False,
        embeddings=True,
        withheld_figures=withheld_figures,
    )


def names(kind: Kind) -> list[str]:
    """The names of all figures whose value the app may choose, without interval ends."""
    table = FIGURES[kind]
    return [
        name
        for name, figure in table.items()
        if name != EPSILON and figure.counts is None and not figure.reveals_classes and not figure_of_end(name, table)
    ]


@pytest.mark.parametrize("kind", FIGURES)
def test_reply_carries_at_most_the_limit_of_bits(kind: Kind) -> None:
    assert bits(kind) <= LIMITS[kind]


def test_error_code_carries_at_most_nine_bits() -> None:
    assert code_bits(OF_APPS) < code_bits() <= 9


def test_histograms_are_counted_separately() -> None:
    more = bits("evaluate.test", histograms=100) - bits("evaluate.test")
    assert more == pytest.approx(4 * math.log2(math.comb(120, 20)))


def test_one_reply_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m federation.protocol.capacity"


def test_page_uses_the_feature_count_of_the_default_network() -> None:
    assert build_network(NetworkSettings(), seed=1).features == capacity.FEATURES


@pytest.mark.parametrize("kind", FIGURED)
@given(seed=st.integers(0, 2**32))
def test_digits_below_the_grid_are_removed(kind: Kind, seed: int) -> None:
    """Digits below the grid, in figures and in interval ends, do not change the reply by one bit."""
    rng = np.random.default_rng(seed)
    table = FIGURES[kind]
    figures: dict[str, float] = {}
    for name in names(kind):
        low, high = table[name].low, table[name].high
        figures[name] = float(rng.uniform(low, high)) * 0.9
        if name + LOW in table:
            figures |= {name + LOW: low, name + HIGH: 0.95 * high}
    clean = {name: value for name, value in let_out(figures, kind).items() if name in table}
    replies = []
    for _ in range(2):
        # The finest step is 1e-7. Rounding upwards moves any value above a grid point to the next one.
        hidden = {
            name: value + float(rng.uniform(1e-8, 4e-8)) for name, value in clean.items() if value < table[name].high
        }
        hidden |= {name: value for name, value in clean.items() if value == table[name].high}
        hidden |= {name: value for name, value in clean.items() if table[name].reveals_classes}
        replies.append(let_out(hidden, kind))
    assert replies[0] == replies[1]
    assert bits(kind) < sum(math.log2(1e7) for _ in figures)


@pytest.mark.parametrize("kind", FIGURED)
def test_identifier_hidden_in_decimals_is_removed(kind: Kind) -> None:
    """Each figure hides three digits below its precision. All identifiers give the same reply."""

    def spelt(identifier: str) -> dict[str, float]:
        parts = (int((2 * identifier)[3 * number % 12 :][:3]) for number in range(100))
        return {name: 0.10003 + part * 1e-9 for name, part in zip(names(kind), parts, strict=False)}

    replies = {tuple(sorted(let_out(spelt(number), kind).items())) for number in (IDENTIFIER, "9" * 13, "0" * 13)}
    assert len(replies) == 1


@pytest.mark.parametrize("claim", [0, 10, 29, 31, 4401728395566, 30.0, True])
def test_number_of_examples_must_match_the_site(claim: object) -> None:
    told = {"auroc_severe": 0.5, "num-examples": claim}
    with pytest.raises(Refusal, match="E_REPLY_EXAMPLES"):
        check_figures(told, "evaluate.test", PATIENTS, min_patients=MIN_PATIENTS, histograms=False, embeddings=False)


@pytest.mark.parametrize("claim", [0.0, 0.45, 0.7, 1.0])
def test_prevalence_must_match_the_site(claim: float) -> None:
    few = replace(PATIENTS, with_value={**PATIENTS.with_value, ("test", "severe", True): 20})  # 20 of 30; minimum is 10
    told = {"prevalence_severe": claim, "num-examples": 30}
    rules = {"min_patients": MIN_PATIENTS, "histograms": False, "embeddings": False}
    if claim == 0.7:
        assert check_figures(told, "evaluate.test", few, **rules)["prevalence_severe"] == 0.7  # type: ignore[arg-type]
    else:
        with pytest.raises(Refusal, match="E_REPLY_METRICS"):
            check_figures(told, "evaluate.test", few, **rules)  # type: ignore[arg-type]


def test_rate_does_not_reveal_a_single_patient() -> None:
    """With ten positives, eleven counts become four values, and each value stands for two or more counts."""
    seen = [let_out({"sens_at_rule_in_severe": count / 10}, "evaluate.test") for count in range(11)]
    rates = [each["sens_at_rule_in_severe"] for each in seen]
    assert sorted(set(rates)) == [0, 1 / 3, 2 / 3, 1]
    assert min(rates.count(rate) for rate in rates) >= 2


@given(rungs=st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_rungs_of_a_tail_leave_in_order(rungs: list[float]) -> None:
    """An app cannot use their order to say more than the published number of bits."""
    for names in TAILS:
        told = let_out(dict(zip(names, rungs, strict=True)), "evaluate.calibrate")
        values = [told[name] for name in names]
        assert values == sorted(values, reverse=names[0].startswith("rule_in"))
        assert set(values) <= set(RUNGS)


def test_class_sizes_do_not_give_the_exact_sizes() -> None:
    """With the number of all patients, which leaves exactly, each pair of sizes fits three or more cohorts."""
    for patients in range(20, 200):
        told = [counted_classes(positives, patients - positives) for positives in range(9, patients - 9)]
        assert {told.count(each) for each in told[:-3]} <= {3}


# --- moments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", RANGES.values(), ids=list(RANGES))
@given(seed=st.integers(0, 2**32))
def test_rounding_of_moments_is_idempotent_and_keeps_few_digits(numbers: Range, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=200) * 10.0 ** rng.uniform(-12, 12, 200)).astype(np.float32)
    values = values if numbers.signed else np.abs(values)
    told = numbers.rounded(values)
    assert told.dtype == np.float32
    assert numbers.holds(told) and numbers.rounded(told).tobytes() == told.tobytes()
    assert not (told.view(np.uint32) & ((1 << 23 - MANTISSA_BITS) - 1)).any()
    inside = (np.abs(values) < 2.0**numbers.most) & (np.abs(values) > 2.0**numbers.least)
    assert np.allclose(told[inside], values[inside], rtol=2.0 ** -(MANTISSA_BITS + 1), atol=0)
    assert np.abs(told).max() <= 2.0**numbers.most


def test_number_of_possible_moments_is_exact() -> None:
    """Enumerate a small range: all float32 numbers with this many mantissa bits."""
    numbers = Range(-2, 3, signed=True)
    values = (np.arange(1 << 21, dtype=np.uint32) << np.uint32(23 - MANTISSA_BITS)).view(np.float32)
    told = numbers.rounded(values[np.isfinite(values)])
    assert len(np.unique(told.view(np.uint32))) == numbers.points


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.0, 1 + 2.0**-20, 4096.0, 2.0**-30])
def test_value_off_the_grid_is_detected(value: float) -> None:
    assert not RANGES["mean"].holds(np.array([0.5, value], np.float32))


def test_capacity_imports_no_heavy_library() -> None:
    code = "import sys; import federation.protocol.capacity; print(*{'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- parts of a sum ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "limit"), [("evaluate.calibrate", 600), ("evaluate.test", 1300)])
def test_bits_of_a_part_of_a_sum_are_bounded(kind: Kind, limit: float) -> None:
    assert summed_bits(kind, of_class=100) < limit


@pytest.mark.parametrize(("kind", "ways"), [("evaluate.calibrate", 50**2), ("evaluate.test", 50**2 * 40**2)])
def test_counts_of_classes_of_one_patient_are_the_places_where_it_can_be(kind: Kind, ways: int) -> None:
    without = summed_bits(kind, of_class=0) - len(LABELS)  # nobody to count: a label is there, or not
    assert summed_bits(kind, of_class=1) - without == pytest.approx(len(LABELS) * math.log2(1 + ways))
