"""What a site adds to a sum: the gateway accepts counts only if they are exactly the site's own patients."""

import math
from typing import Any

import pytest

from federation.gateway.summed_checks import check_summands
from federation.protocol.metric_allowlist import EXAMPLES, EXAMPLES_OF, FIGURES, LABELS, Kind, withheld_figures
from federation.protocol.summed_answers import SUMMED, load_counts, logit_counts, reported, sites_with
from models.refusal import Refusal
from tests.federation.gateway.test_figure_checks import ENOUGH, LEAST, having

TEST: Kind = "evaluate.test"
PATIENTS = having(severe={False: 31, True: 17}, pcr_positive={False: 4, True: 40})
KINDS: tuple[Kind, ...] = (TEST, "evaluate.calibrate")


def honest(kind: Kind = TEST, **figures: Any) -> dict[str, Any]:
    """A reply of a site where only `severe` has enough patients of both classes."""
    counts = dict.fromkeys(SUMMED[kind].counts, 0)
    counts[sites_with("severe")] = 1
    of_split = PATIENTS.with_value
    for value in (False, True):
        size = of_split[EXAMPLES_OF[kind], "severe", value]
        counts[logit_counts("severe")[value, 20]] = size - 3
        counts[logit_counts("severe")[value, 30]] = 3
        if kind == TEST:
            counts[load_counts("severe")[value, 0]] = size
    return {**counts, EXAMPLES: PATIENTS.of_split[EXAMPLES_OF[kind]], **figures}


def check(reply: dict[str, Any], kind: Kind = TEST, *, embeddings: bool = True) -> dict[str, float]:
    return check_summands(reply, kind, PATIENTS, min_patients=LEAST, embeddings=embeddings)


def refused_for(reply: dict[str, Any], kind: Kind = TEST, **options: Any) -> str:
    with pytest.raises(Refusal) as refused:
        check(reply, kind, **options)
    return refused.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_honest_part_of_a_sum_passes_as_it_is(kind: Kind) -> None:
    assert check(honest(kind), kind) == honest(kind)


def test_figures_are_rounded_and_the_gateway_squares_them_itself() -> None:
    found = check(honest(auroc_severe=0.8149))
    assert found["auroc_severe"] == 0.81
    assert found["auroc_severe_squared"] == 0.81**2
    found = check(honest("evaluate.calibrate", distance_mean=0.513, distance_sd=0.21), "evaluate.calibrate")
    assert found["distance_mean"] == 0.5
    assert found["distance_mean_squared"] == 0.25
    assert found["distance_sd_squared"] == pytest.approx(0.2**2)
    assert "distance_sd" not in found
    assert set(found) <= {*SUMMED["evaluate.calibrate"].counts, *SUMMED["evaluate.calibrate"].means, EXAMPLES}


def test_private_study_adds_no_figure_that_also_describes_training_patients() -> None:
    withheld = withheld_figures(TEST, is_private=True)
    assert "scanner_from_embedding" in withheld
    reply = honest(scanner_from_embedding=0.8)
    with pytest.raises(Refusal, match="E_REPLY_METRICS"):
        check_summands(reply, TEST, PATIENTS, min_patients=LEAST, embeddings=True, withheld_figures=withheld)


def test_only_the_lower_end_of_an_interval_is_summed() -> None:
    ends = {"auroc_severe_tags": 0.7, "auroc_severe_tags_low": 0.604, "auroc_severe_tags_high": 0.8}
    found = check(honest(TEST, **ends))
    assert (found["auroc_severe_tags"], found["auroc_severe_tags_low"]) == (0.7, 0.6)
    assert "auroc_severe_tags_high" not in found


@pytest.mark.parametrize("kind", KINDS)
def test_a_patients_number_hidden_in_a_count_is_refused(kind: Kind) -> None:
    """An age of 63, or a row number, changes the total of its class."""
    reply = honest(kind)
    reply[logit_counts("severe")[True, 7]] = 63
    assert refused_for(reply, kind) == "E_REPLY_PATIENTS"


def test_hidden_number_in_the_counts_of_lesion_loads_is_refused() -> None:
    assert refused_for(honest() | {load_counts("severe")[False, 5]: 63}) == "E_REPLY_PATIENTS"


def test_patient_of_another_class_or_a_missing_one_is_refused() -> None:
    names = logit_counts("severe")
    reply = honest()
    reply[names[True, 20]] += 1
    reply[names[False, 20]] -= 1
    assert refused_for(reply) == "E_REPLY_PATIENTS"
    reply = honest()
    reply[names[True, 20]] -= 1
    assert refused_for(reply) == "E_REPLY_PATIENTS"


def test_counts_of_a_label_with_a_small_class_are_refused() -> None:
    names, loads = logit_counts("pcr_positive"), load_counts("pcr_positive")
    told = {sites_with("pcr_positive"): 1}
    for value, size in ((False, 4), (True, 40)):
        told |= {names[value, 3]: size, loads[value, 0]: size}
    assert refused_for(honest() | told) == "E_REPLY_PATIENTS"
    assert refused_for(honest() | {names[True, 3]: 40}) == "E_REPLY_PATIENTS"


def test_label_may_be_withheld_only_as_a_whole() -> None:
    nothing = dict.fromkeys(SUMMED[TEST].counts, 0)
    assert check(honest() | nothing) == honest() | nothing
    assert refused_for(honest() | {sites_with("severe"): 0}) == "E_REPLY_PATIENTS"
    assert refused_for(honest() | dict.fromkeys(load_counts("severe").values(), 0)) == "E_REPLY_PATIENTS"
    assert refused_for(honest() | nothing | {sites_with("severe"): 1}) == "E_REPLY_PATIENTS"


def test_site_counts_once() -> None:
    assert refused_for(honest() | {sites_with("severe"): 2}) == "E_REPLY_PATIENTS"


@pytest.mark.parametrize("value", [-1, 1.0, True, math.nan, "1", None])
def test_count_that_is_no_whole_number_is_refused(value: object) -> None:
    assert refused_for(honest() | {logit_counts("severe")[True, 1]: value}) == "E_REPLY_METRICS"


@pytest.mark.parametrize("kind", KINDS)
def test_missing_count_is_refused(kind: Kind) -> None:
    """Otherwise the server would learn from the sum which counts a site has."""
    reply = honest(kind)
    del reply[logit_counts("severe")[False, 49]]
    assert refused_for(reply, kind) == "E_REPLY_METRICS"


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_figure_of_the_table_is_refused(kind: Kind) -> None:
    for name in set(FIGURES[kind]) - reported(kind):
        assert refused_for(honest(kind) | {name: 0.5}, kind) == "E_REPLY_METRICS", name


def test_square_that_the_app_reports_is_refused() -> None:
    assert refused_for(honest(auroc_severe=0.8, auroc_severe_squared=0.1)) == "E_REPLY_METRICS"


def test_figure_over_too_few_patients_is_refused() -> None:
    assert refused_for(honest(auroc_pcr_positive=0.8)) == "E_REPLY_PATIENTS"


def test_distances_need_the_sites_consent() -> None:
    figures = {"distance_mean": 0.1, "distance_sd": 0.1}
    reply = honest("evaluate.calibrate", **figures)
    assert refused_for(reply, "evaluate.calibrate", embeddings=False) == "E_REPLY_METRICS"


def test_weight_must_be_the_number_of_the_splits_patients() -> None:
    assert refused_for(honest() | {EXAMPLES: 59}) == "E_REPLY_EXAMPLES"
    assert PATIENTS.of_split["test"] == 60


def test_moments_have_neither_counts_nor_figures() -> None:
    told = {EXAMPLES: ENOUGH.of_split["train"]}
    assert check(told, "evaluate.embed") == told
    assert refused_for({**told, **dict.fromkeys(logit_counts(LABELS[0]).values(), 0)}, "evaluate.embed")
