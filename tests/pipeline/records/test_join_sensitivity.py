"""Sensitivity of labels to join windows: same labelling for each window; windows that [join] refuses are omitted."""

from datetime import timedelta

from pipeline.records.join import JoinRules, Records
from pipeline.records.join_sensitivity import VARIED, Variant, vary
from pipeline.records.laboratory import PcrResult
from tests.helpers.scan_list import DAY


def records(**days: tuple[int, bool]) -> Records:
    """One result per patient, given as (days after the CT, whether positive)."""
    results = {p: [PcrResult(p, DAY + timedelta(days=day), positive)] for p, (day, positive) in days.items()}
    return Records(results, {}, set())


def of(rule: str, days: int, variants: list[Variant]) -> tuple[int, int, int]:
    (variant,) = [v for v in variants if (v.rule, v.days) == (rule, days)]
    return variant.positive, variant.negative, variant.undecided


def test_labels_are_recomputed_for_each_window_with_the_others_fixed() -> None:
    known = records(a=(-5, True), b=(-1, True), c=(4, True), d=(1, False), e=(9, False))
    variants = vary([(p, DAY) for p in "abcdef"], known, JoinRules())
    assert of("positive_from_days", -7, variants) == (2, 1, 3)
    assert of("positive_from_days", -5, variants) == (2, 1, 3)
    assert of("positive_from_days", -4, variants) == (1, 1, 4)
    assert of("positive_from_days", 0, variants) == (0, 1, 5)
    assert of("positive_to_days", 3, variants) == (2, 1, 3)
    assert of("positive_to_days", 4, variants) == (3, 1, 2)
    assert of("negative_to_days", 0, variants) == (2, 0, 4)
    assert of("negative_to_days", 9, variants) == (2, 2, 2)


def test_all_usual_days_and_the_configured_day_are_included() -> None:
    variants = vary([("a", DAY)], records(a=(0, True)), JoinRules(positive_to_days=9))
    for rule, usual in VARIED.items():
        days = [v.days for v in variants if v.rule == rule]
        assert days == sorted({*usual, 9} if rule == "positive_to_days" else usual)
    assert all(v.positive + v.negative + v.undecided == 1 for v in variants)


def test_windows_that_join_rules_refuse_are_omitted() -> None:
    variants = vary([("a", DAY)], records(a=(0, True)), JoinRules(guard_days=7))
    assert min(v.days for v in variants) == -7
    assert max(v.days for v in variants) == 7
