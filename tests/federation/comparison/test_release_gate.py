"""The release gate: which results raise doubts about a model. Random differences between hospitals do not."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from federation.comparison import release_gate
from federation.comparison.hospital_mean import HospitalMean
from federation.comparison.pooled import pool
from federation.comparison.release_gate import doubts
from federation.runs.results import Results
from models.calibration import Platt
from pipeline.evaluation.discrimination import auroc
from pipeline.evaluation.histograms import histograms
from tests.helpers.results_factory import make_results
from tests.helpers.summed_results import make_secure_results

Figures = dict[str, dict[str, float]]


def results(change: Callable[[Figures], None] = lambda figures: None, **options: object) -> Results:
    """Create results of three hospitals without audit flags, with the federated metrics modified by `change`."""
    made = make_results(3, **options)  # type: ignore[arg-type]
    if made.audit:
        made.audit.flags.clear()
    change(made.models[0].figures)
    return made


def codes(made: Results) -> list[str]:
    return [flag.code for flag in doubts(made)]


def set_auroc(figures: Figures, *values: float, half: float = 0.05) -> None:
    for site, value in zip(figures.values(), values, strict=True):
        site |= {"auroc_severe": value, "auroc_severe_low": value - half, "auroc_severe_high": value + half}


@pytest.mark.parametrize("options", [{}, {"histograms": False}, {"patients": 600}], ids=str)
def test_sound_model_has_no_doubts(options: dict[str, object]) -> None:
    assert codes(results(**options)) == []


def test_missing_audit_is_a_doubt() -> None:
    assert codes(results(audit=False)) == ["W_NOT_AUDITED"]


def test_audit_that_no_hospital_answered_is_an_audit_that_was_not_made() -> None:
    made = results()
    assert made.audit is not None
    for figures in made.audit.sites.values():
        for name in [name for name in figures if name.startswith("auroc_")]:
            del figures[name]
    assert made.audit.probe is not None, "the probe tells of the sites, and raises no flag"
    assert codes(made) == ["W_NOT_AUDITED"]


def test_audit_flags_are_doubts() -> None:
    assert [flag.code for flag in doubts(make_results(3))] == ["W_SHORTCUT_TAGS"]


def test_auroc_at_chance_is_a_doubt() -> None:
    found = doubts(results(lambda figures: set_auroc(figures, 0.48, 0.55, 0.52), histograms=False))
    assert [flag.code for flag in found] == ["W_AT_CHANCE"]
    assert "severe may be no better than chance" in found[0].says
    assert codes(results(lambda figures: set_auroc(figures, 0.58, 0.6, 0.62), histograms=False)) == []


def test_pooled_auroc_at_chance_is_a_doubt() -> None:
    def reverse(figures: Figures) -> None:
        """Give each class the histogram of the other, and the AUROC that belongs to it."""
        for site in figures.values():
            low, high = 1 - site["auroc_severe_high"], 1 - site["auroc_severe_low"]
            site |= {"auroc_severe": 1 - site["auroc_severe"], "auroc_severe_low": low, "auroc_severe_high": high}
            counts = {name: site.pop(name) for name in list(site) if name.startswith("count_severe_")}
            site |= {name.replace("_severe_0_", "_severe_?_"): n for name, n in counts.items() if "_severe_0_" in name}
            site |= {name.replace("_severe_1_", "_severe_0_"): n for name, n in counts.items() if "_severe_1_" in name}
            for name in [name for name in site if "_severe_?_" in name]:
                site[name.replace("?", "1")] = site.pop(name)

    assert "W_AT_CHANCE" in codes(results(reverse, patients=900))


def test_pooled_auroc_counts_beside_the_mean_of_the_hospitals() -> None:
    """Each hospital ranks well, but one has high and one has low probabilities for all its patients."""

    def shift(figures: Figures) -> None:
        rng = np.random.default_rng(0)
        for number, site in enumerate(figures.values()):
            for name in [name for name in site if name.startswith("count_severe_")]:
                del site[name]
            severe, well, start = (400, 40, 0.1) if number == 0 else (40, 400, 0.7)
            p = start + 0.15 * np.concatenate([1 + rng.random(severe), rng.random(well)])
            first = np.repeat([start + 0.13, start - 0.02], 10)  # these cells reach down to 0, and only these
            p = np.concatenate([p, first])
            cells = histograms(p, np.repeat([1, 0, 1, 0], [severe, well, 10, 10]), min_patients=10)
            site |= {f"count_severe_{label}_{bin:02}": count for (label, bin), count in cells.items()}

    assert codes(results(shift)) == ["W_AT_CHANCE"]
    assert codes(results()) == []


def test_model_that_only_tells_hospitals_apart_is_a_doubt() -> None:
    """Over all patients its AUROC is about 0.75, as hospitals differ in prevalence; within each it is chance."""

    def guess_the_hospital(figures: Figures) -> None:
        rng = np.random.default_rng(0)
        for site, share in zip(figures.values(), (0.1, 0.5, 0.85), strict=True):
            severe = np.repeat([1, 0], [round(400 * share), 400 - round(400 * share)])
            logits = math.log(share / (1 - share)) + rng.normal(0, 0.8, 400)
            found = auroc(logits, severe)
            for name in [name for name in site if name.startswith("count_severe_")]:
                del site[name]
            cells = histograms(1 / (1 + np.exp(-logits)), severe, min_patients=10)
            site |= {f"count_severe_{label}_{bin:02}": count for (label, bin), count in cells.items()}
            site |= {"auroc_severe": found.value, "auroc_severe_low": found.low, "auroc_severe_high": found.high}

    made = results(guess_the_hospital)
    pooled = pool(made.models[0].figures, "severe")
    assert pooled is not None and pooled.auroc.low > 0.6
    assert codes(made) == ["W_AT_CHANCE"]


@pytest.mark.parametrize("absent", ["value", "low", "high"])
@pytest.mark.parametrize("histograms", [True, False])
def test_interval_that_is_not_a_number_is_no_proof_against_chance(absent: str, histograms: bool) -> None:
    def spoil(figures: Figures) -> None:
        for site in figures.values():
            site["auroc_severe" if absent == "value" else f"auroc_severe_{absent}"] = math.nan

    assert codes(results(spoil, histograms=histograms)) == ["W_NOT_JUDGED"]


def test_pooled_interval_that_is_not_a_number_is_no_proof_against_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an interval is neither above nor below 0.5: the comparison with chance must not pass."""
    mean = HospitalMean(0.8, math.nan, math.nan, (math.nan, math.nan), 3)
    monkeypatch.setattr(release_gate, "hospital_mean", lambda areas: mean)
    assert "W_AT_CHANCE" in codes(results(histograms=False))


@pytest.mark.parametrize("slope", [-4.5, 0.3, 2.4])
def test_calibration_slope_far_from_one_is_a_doubt(slope: float) -> None:
    def bend(figures: Figures) -> None:
        for site in figures.values():
            site["calibration_slope_severe"] = slope

    assert codes(results(bend)) == ["W_SLOPE_FAR"]


def set_slopes(figures: Figures, *slopes: float) -> None:
    for site, slope in zip(figures.values(), slopes, strict=True):
        site["calibration_slope_severe"] = slope


@pytest.mark.parametrize("slopes", [(0.2, 1.8, 1.8), (0.35, 0.35, 2.2), (-0.5, 2.0, 1.5)])
def test_calibration_slopes_that_are_far_from_one_on_both_sides_do_not_cancel(slopes: tuple[float, ...]) -> None:
    assert 0.5 <= sum(slopes) / 3 <= 2, "their mean tells nothing"
    found = doubts(results(lambda figures: set_slopes(figures, *slopes)))
    assert [flag.code for flag in found] == ["W_SLOPE_FAR"]
    assert f"{min(slopes):.2f} to {max(slopes):.2f} by hospital" in found[0].says


@pytest.mark.parametrize("slopes", [(0.7, 1.4, 1.0), (0.55, 1.9, 1.0), (0.9, 1.1, -0.1)])
def test_calibration_slopes_that_differ_as_by_chance_are_no_doubt(slopes: tuple[float, ...]) -> None:
    def weigh(figures: Figures) -> None:
        set_slopes(figures, *slopes)
        list(figures.values())[2]["num-examples"] = 30.0  # a small hospital, whose slope may be negative by chance

    assert codes(results(weigh)) == []


def test_calibration_slope_that_no_hospital_reported_is_a_doubt() -> None:
    """A slope beyond ±100, or of classes that do not overlap, stays at the hospital."""

    def forget(figures: Figures) -> None:
        for site in figures.values():
            del site["calibration_slope_severe"]

    found = doubts(results(forget))
    assert [flag.code for flag in found] == ["W_SLOPE_FAR"]
    assert "not known" in found[0].says


def test_negative_calibration_slope_is_a_doubt() -> None:
    made = results()
    made.calibration["severe"] = Platt(slope=-0.4, intercept=0.0)
    assert codes(made) == ["W_SLOPE_FAR"]


@pytest.mark.parametrize("absent", ["calibration", "figures"])
def test_label_without_calibration_or_figures_is_a_doubt(absent: str) -> None:
    def forget(figures: Figures) -> None:
        for site in figures.values():
            for name in [name for name in site if name.startswith("auroc_severe")]:
                del site[name]

    made = results(forget if absent == "figures" else lambda figures: None)
    if absent == "calibration":
        del made.calibration["severe"]
    assert codes(made) == ["W_NOT_JUDGED"]


def test_large_difference_between_hospitals_is_a_doubt() -> None:
    found = doubts(results(lambda figures: set_auroc(figures, 0.9, 0.7, 0.88)))
    assert [flag.code for flag in found] == ["W_SITES_DIFFER"]
    assert "AUROC 0.70 to 0.90" in found[0].says
    assert codes(results(lambda figures: set_auroc(figures, 0.88, 0.8, 0.86, half=0.07))) == []


@pytest.mark.slow
def test_random_difference_between_hospitals_is_rarely_flagged() -> None:
    """Simulate six hospitals with equal AUROC and 15 severe patients of 60 each: at most 4 % of studies are flagged."""
    rng, flagged = np.random.default_rng(0), 0
    labels, made = np.repeat([1, 0], [15, 45]), make_results(6, histograms=False)
    for _ in range(200):
        for site in made.models[0].figures.values():
            found = auroc(rng.normal(1.2 * labels, 1), labels)
            site |= {"auroc_severe": found.value, "auroc_severe_low": found.low, "auroc_severe_high": found.high}
        flagged += any(flag.says.startswith("hospitals differ in severe") for flag in doubts(made))
    assert flagged <= 8


# --- masked studies ---------------------------------------------------------------------------------------------

IN_PART = "W_AUDIT_IN_PART"


def test_sound_masked_model_has_one_doubt_the_audit_in_part() -> None:
    assert codes(make_secure_results(4)) == [IN_PART]
    assert codes(make_secure_results(4, audit=False)) == ["W_NOT_AUDITED"]


def test_masked_model_at_chance_is_a_doubt() -> None:
    found = doubts(make_secure_results(4, skill=-1.9, differ=0.0))
    assert "W_AT_CHANCE" in [flag.code for flag in found]


def test_masked_model_that_only_tells_hospitals_apart_is_a_doubt() -> None:
    """The sums over all patients are those of a good model; the mean of the hospitals' AUROCs is that of chance."""
    made = make_secure_results(4)
    summed = made.models[0].summed
    assert summed is not None and codes(made) == [IN_PART]
    means = {**summed.means, "auroc_severe": 0.5, "auroc_severe_squared": 0.2505}
    made.models[0] = made.models[0].model_copy(update={"summed": summed.model_copy(update={"means": means})})
    assert "W_AT_CHANCE" in codes(made)


def test_masked_label_of_two_hospitals_is_not_judged() -> None:
    assert codes(make_secure_results(3, few="severe")) == [IN_PART, "W_NOT_JUDGED"]
    assert codes(make_secure_results(4).model_copy(update={"calibration": {}})) == [IN_PART, *["W_NOT_JUDGED"] * 2]


@pytest.mark.parametrize("slope", [0.3, 4.0])
def test_masked_probabilities_that_are_too_flat_or_too_extreme_are_a_doubt(slope: float) -> None:
    made = make_secure_results(4)
    made.calibration["severe"] = Platt(slope=slope, intercept=made.calibration["severe"].intercept)
    assert codes(made) == [IN_PART, "W_SLOPE_FAR"]


def test_masked_calibration_slope_that_is_not_known_is_a_doubt() -> None:
    """The logits were calibrated so flat that the slope on test patients is beyond 100."""
    made = make_secure_results(4)
    made.calibration["severe"] = Platt(slope=1e-3, intercept=made.calibration["severe"].intercept)
    found = doubts(made)
    assert [flag.code for flag in found] == [IN_PART, "W_SLOPE_FAR"]
    assert "not known" in found[1].says


def test_masked_audit_without_an_answer_was_not_made() -> None:
    made = make_secure_results(4)
    assert made.audit is not None
    assert codes(made.model_copy(update={"audit": made.audit.model_copy(update={"means": {}})})) == ["W_NOT_AUDITED"]


def test_masked_hospitals_that_differ_are_a_doubt() -> None:
    found = doubts(make_secure_results(5, patients=400, differ=1.2, seed=3))
    says = [flag.says for flag in found if flag.code == "W_SITES_SPREAD"]
    assert says
    assert "deviate by" in says[0]
    assert not [flag for flag in doubts(make_secure_results(5, patients=400, differ=0.0)) if "SPREAD" in flag.code]
