"""Tests of the report's content, computed from the results of a run."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.reasons import UPDATE_NORM
from federation.report import comparison, conduct, overview, pooled_patients, trust
from federation.report.content import content
from federation.report.estimates import over_sites, spread
from federation.report.rates import rate
from federation.runs.results import Audit, Flag, Kind, ModelFigures, Results
from models.calibration import Platt
from models.operating_points import MissingPoint
from tests.helpers.results_factory import make_results

Figures = dict[str, float]


def model(name: str, kind: Kind, trained_at: list[str], figures: dict[str, Figures]) -> ModelFigures:
    return ModelFigures(name=name, kind=kind, trained_at=trained_at, figures=figures)


def run_of(*models: ModelFigures, **changes: Any) -> Results:
    """A run at north, south and east with only these models."""
    return make_results(["north", "south", "east"], models=list(models), **changes)


def aurocs(**values: float) -> dict[str, Figures]:
    return {site: {"auroc_severe": value, "num-examples": 20.0} for site, value in values.items()}


def bare(value: float) -> dict[str, Any]:
    """An estimate of which no interval is known."""
    return {"value": pytest.approx(value), "low": None, "high": None}


def with_ends(**values: float) -> dict[str, Figures]:
    """AUROCs of `severe` with intervals of 0.1 to each side."""
    ends = {"": 0.0, "_low": -0.1, "_high": 0.1}
    return {
        site: {"num-examples": 20.0, **{f"auroc_severe{end}": value + by for end, by in ends.items()}}
        for site, value in values.items()
    }


def at_north(**figures: float) -> Results:
    """A run whose federated model has these figures at north, and none elsewhere."""
    return run_of(model("federated", "federated", ["north"], {"north": {"num-examples": 40.0, **figures}}))


def test_example_run_has_exactly_the_allowed_figures():
    run = make_results(4)
    told = {name for figures in run.models[0].figures.values() for name in figures} - {"num-examples"}
    told |= {name for figures in run.audit.sites.values() for name in figures}
    allowed = set(FIGURES["evaluate.test"])
    assert not told - allowed
    # As in a real run, groups and bins with too few patients are absent.
    assert all(name.startswith("count_") or "@" in name for name in allowed - told)


def test_mean_is_unweighted_and_weighted_mean_uses_patient_numbers():
    found = spread({"north": 0.9, "south": 0.7, "east": None}, {"north": 10, "south": 30, "east": 99})
    assert found is not None
    assert (found["sites"], found["mean"]) == (2, pytest.approx(0.8))
    assert found["weighted_mean"] == pytest.approx((0.9 * 10 + 0.7 * 30) / 40)
    assert (found["lowest"]["site"], found["highest"]["site"]) == ("south", "north")


def test_column_without_values_has_no_spread():
    assert over_sites({"north": {"auroc": None}, "south": {"auroc": None}}) == {"auroc": None}


def test_thresholds_have_evidence_or_a_reason_why_there_is_none():
    run = make_results(2, missing_points={"severe": {"rule_out": MissingPoint(why="too_few", positives=12, sites=1)}})
    run.operating_points["severe"].pop("rule_out")
    found = trust.operating_points(run)
    assert "12 positive and 0 negative validation patients at 1 hospital" in found["severe"]["missing"]["rule_out"]
    assert "from 30 positive and 54 negative validation patients" in found["severe"]["points"]["rule_in"]["says"]
    assert found["pcr_positive"]["missing"] == {}


def test_results_of_an_earlier_version_have_thresholds_without_counts():
    content = make_results(2).model_dump(mode="json")
    del content["missing_points"]
    content["operating_points"] = {"severe": {"rule_out": {"threshold": 0.2, "sites": 2}}}
    found = trust.operating_points(Results.model_validate(content))
    assert "not recorded" in found["severe"]["points"]["rule_out"]["says"]
    assert found["severe"]["missing"] == {"rule_in": "The release defines no operating points."}


def test_non_finite_figures_are_treated_as_missing():
    told = content(at_north(auroc_severe=math.nan, prevalence_severe=math.inf, brier_severe=0.2))
    json.dumps(told, allow_nan=False)
    assert told["discrimination"]["severe"]["by_site"] == {}
    assert told["calibration"]["severe"]["by_site"]["north"]["brier"]["value"] == 0.2


def test_generalisation_compares_models_at_the_same_other_sites():
    run = run_of(
        model("federated", "federated", ["north", "south", "east"], aurocs(north=0.8, south=0.9)),
        model("north alone", "local", ["north"], aurocs(north=0.75, south=0.6, east=0.2)),
    )
    found = comparison.generalisation(run)["severe"]
    # The federated model has no figure at east, so east is not compared.
    assert found["by_site"]["north"] == {
        "at_home": bare(0.75),
        "elsewhere": bare(0.6),
        "federated_elsewhere": bare(0.9),
        "gain": bare(0.3),
        "sites_elsewhere": 1,
    }


def test_mean_over_sites_has_the_interval_over_their_patients():
    run = run_of(model("federated", "federated", ["north"], with_ends(north=0.8, south=0.7, east=0.6)))
    over = overview.discrimination(run)["severe"]["over_sites"]["auroc"]
    half = 0.1 / math.sqrt(3)
    assert (over["mean"], over["mean_low"], over["mean_high"]) == pytest.approx((0.7, 0.7 - half, 0.7 + half))
    assert over["weighted_mean_low"] == pytest.approx(0.7 - half)
    cells = {"north": {"value": 0.8, "low": 0.7, "high": 0.9}, "south": {"value": 0.7, "low": None, "high": None}}
    assert spread(cells)["mean_low"] is None, "a site without an interval leaves the mean without one"


def test_gain_at_other_hospitals_goes_by_the_patients_of_each_hospital():
    """The rows of three local models share test patients, so the gain is a mean over three sites, not six cells."""
    run = run_of(
        model("federated", "federated", ["north", "south", "east"], with_ends(north=0.8, south=0.9, east=0.7)),
        model("north alone", "local", ["north"], with_ends(north=0.8, south=0.8, east=0.6)),
        model("south alone", "local", ["south"], with_ends(north=0.7, south=0.8, east=0.5)),
        model("east alone", "local", ["east"], with_ends(north=0.6, south=0.7, east=0.7)),
    )
    found = comparison.generalisation(run)["severe"]
    gains = {"north": 0.8 - 0.65, "south": 0.9 - 0.75, "east": 0.7 - 0.55}
    whole = found["over_models"]
    assert whole["gain"]["value"] == pytest.approx(math.fsum(gains.values()) / 3)
    assert whole["gain"]["value"] == pytest.approx(found["over_sites"]["gain"]["mean"])
    assert whole["gain"]["low"] == pytest.approx(0.15 - 0.2 / math.sqrt(3)), "any correlation, so distances add up"
    assert whole["gain_over_sites"] == pytest.approx([0.14, 0.16]), "equal gains of rounded figures"
    assert found["over_sites"]["gain"]["mean_low"] is None, "rows that share patients have no mean with an interval"
    assert found["by_site"]["north"]["gain"]["low"] == pytest.approx(0.1 - 0.2 / math.sqrt(2))


def test_leave_one_out_loss_is_full_minus_left_out_auroc():
    run = run_of(
        model("federated", "federated", ["north", "south", "east"], aurocs(north=0.8, south=0.9, east=0.7)),
        model("without south", "left_out", ["north", "east"], aurocs(north=0.8, south=0.65, east=0.7)),
    )
    found = comparison.leave_one_out(run)["severe"]["by_site"]
    assert list(found) == ["south"]
    assert found["south"]["loss"] == bare(0.25)
    assert found["south"]["alone"] is None


def test_matrix_cells_mark_own_and_outside_sites():
    everywhere = aurocs(north=0.8, south=0.8, east=0.8)
    run = run_of(
        model("federated", "federated", ["north", "south"], everywhere),
        model("north alone", "local", ["north"], everywhere),
        model("without north", "left_out", ["south", "east"], everywhere),
    )
    rows = {row["name"]: row["cells"] for row in comparison.matrix(run)["severe"]["models"]}
    places = {name: [cell["place"] for cell in cells.values()] for name, cells in rows.items()}
    assert places == {
        "federated": ["", "", "outside"],
        "without north": ["outside", "", ""],
        "north alone": ["own", "", ""],
    }


def test_missing_models_are_marked_failed_not_asked_or_private():
    run = make_results(2)
    without = run.model_copy(update={"models": [each for each in run.models if each.kind != "local"]})
    assert [(each["kind"], each["why"]) for each in comparison.missing(without)] == [("local", "failed")]
    asked_nothing = make_results(2, local=False, leave_one_out=False, fine_tuned=False, pooled=False)
    assert {each["why"] for each in comparison.missing(asked_nothing)} == {"not_asked"}
    assert {each["why"] for each in comparison.missing(make_results(2, private=True))} == {"private"}


def test_net_benefit_is_compared_with_treat_all_and_treat_none():
    run = at_north(prevalence_severe=0.3, net_benefit_severe_10=0.25, net_benefit_severe_20=0.12)
    found = trust.decision(run)["severe"]
    # At 20 % a false positive weighs a quarter of a true one: 0.3 - 0.7 / 4.
    assert found["by_site"]["north"]["20"] == {"model": 0.12, "treat_all": pytest.approx(0.125)}
    assert found["better"] == {"10": {"sites": 1, "of": 1}, "20": {"sites": 0, "of": 1}}


def test_predictive_values_use_the_prevalence_of_the_site():
    run = at_north(prevalence_severe=0.25, sens_at_rule_out_severe=0.9, spec_at_rule_out_severe=0.8)
    row = trust.operating_points(run)["severe"]["by_site"]["north"]
    assert row["positive_predictive_value_at_rule_out"] == bare(0.225 / (0.225 + 0.15))
    assert row["negative_predictive_value_at_rule_out"] == bare(0.6 / (0.6 + 0.025))
    assert row["sensitivity_at_rule_in"] is None
    assert (row["with_label"], row["without_label"]) == (None, None)


def test_rates_at_a_threshold_have_counts_and_intervals_where_the_site_released_counts():
    counts = {"count_severe_1_04": 11, "count_severe_1_12": 13, "count_severe_0_02": 40, "count_severe_0_09": 32}
    shares = {"prevalence_severe": 0.25, "sens_at_rule_out_severe": 0.875, "spec_at_rule_out_severe": 20 / 24}
    row = trust.operating_points(at_north(**shares, **counts))["severe"]["by_site"]["north"]
    assert (row["with_label"], row["without_label"]) == (24, 72)
    sensitivity = row["sensitivity_at_rule_out"]
    # 21 of 24 severe patients in steps of three: 19.5 to 22.5 of them.
    assert sensitivity["low"] == pytest.approx(beta.ppf(0.025, 19.5, 24 - 19.5 + 1))
    assert sensitivity["high"] == pytest.approx(beta.ppf(0.975, 22.5 + 1, 24 - 22.5))
    cleared, missed = 60, 3
    negative = row["negative_predictive_value_at_rule_out"]
    assert negative["value"] == pytest.approx(cleared / (cleared + missed))
    assert negative["low"] == pytest.approx(beta.ppf(0.025, cleared - 1.5, missed + 1.5 + 1))
    assert negative["low"] < negative["value"] < negative["high"] <= 1


def test_interval_of_a_rounded_rate_covers_the_true_rate():
    """Every number of patients that is rounded to the released share lies within half a step."""
    rng = np.random.default_rng(4)
    for truth in (0.6, 0.8, 0.95, 1.0):
        held = []
        for count in rng.binomial(25, truth, 400):
            cell = rate(round(count / 25 * 8) / 8, 25)
            held.append(cell["low"] <= truth <= cell["high"])
        assert np.mean(held) >= 0.95


def test_no_positive_predictive_value_without_positive_calls():
    run = at_north(prevalence_severe=0.25, sens_at_rule_in_severe=0.0, spec_at_rule_in_severe=1.0)
    assert trust.operating_points(run)["severe"]["by_site"]["north"]["positive_predictive_value_at_rule_in"] is None


def test_brier_score_is_shown_with_the_brier_score_of_the_prevalence():
    row = trust.calibration(at_north(brier_severe=0.2, prevalence_severe=0.4))["severe"]["by_site"]["north"]
    assert row["brier_of_prevalence"] == pytest.approx(0.24)


def test_subgroup_without_a_figure_is_none_not_zero():
    found = trust.subgroups(at_north(**{"auroc_severe@female": 0.8}))["severe"]["sex"]
    assert found["female"]["by_site"]["north"]["value"] == 0.8
    assert found["male"] == {"by_site": {"north": None, "south": None, "east": None}, "over_sites": None}


def test_model_without_baselines_has_no_comparison():
    assert trust.baselines(at_north(auroc_severe=0.8))["severe"]["by_site"] == {}


def baseline_figures(model: float, load: float, age_sex: float | None) -> Figures:
    found = {"num-examples": 40.0, "auroc_severe": model, "auroc_severe_lesion_load": load}
    if age_sex is not None:
        found |= {"auroc_severe_age_sex": age_sex, "auroc_severe_over_age_sex": round(model - age_sex, 2)}
    return found


def test_means_of_model_and_baselines_are_over_the_same_sites():
    """East does not know the age; there the model is bad."""
    figures = {
        "north": baseline_figures(0.9, 0.8, 0.7),
        "south": baseline_figures(0.8, 0.7, 0.6),
        "east": baseline_figures(0.55, 0.6, None),
    }
    found = trust.baselines(run_of(model("federated", "federated", ["north"], figures)))["severe"]
    assert found["same"] == ["north", "south"]
    means = {name: over["mean"] for name, over in found["over_same"].items()}
    expected = {"model": 0.85, "age_sex": 0.65, "lesion_load": 0.75, "over_age_sex": 0.2}
    assert means == pytest.approx(expected)
    assert means["model"] - means["age_sex"] == pytest.approx(means["over_age_sex"])
    nowhere = {site: baseline_figures(0.8, 0.7, None) for site in ("north", "south")}
    found = trust.baselines(run_of(model("federated", "federated", ["north"], nowhere)))["severe"]
    assert found["same"] == ["north", "south"], "a baseline that no site has is not compared"


def test_lost_round_has_costs_but_no_figures():
    run = make_results(3, rounds=6, lost=[4])
    learnt = conduct.learning(run)
    assert [entry["round"] for entry in learnt if entry["mean_train_loss"] is None] == [4]
    assert overview.about(run)["rounds"]["lost"] == [{"round": 4, "code": "E_QUORUM"}]
    costs = conduct.costs(run)
    assert costs["totals"]["bytes_down"] == sum(entry["bytes_down"] for entry in costs["rounds"])
    assert costs["rounds"][3]["seconds"] > costs["medians"]["seconds"]


def test_absences_are_grouped_by_code_with_meaning_and_remedy():
    history = [
        {"step": "test", "sites": ["south"], "refused": {"north": "E_SITE_MISSING"}},
        {"step": "audit", "sites": ["south"], "refused": {"north": "E_SITE_MISSING", "east": "E_FROM_TOMORROW"}},
    ]
    missing, unknown = conduct.absences(make_results(3, history=history))
    assert (missing["times"], missing["sites"], missing["when"]) == (2, {"north": 2}, ["test", "audit"])
    assert missing["says"]
    assert missing["remedy"]
    assert (unknown["code"], unknown["says"]) == ("E_FROM_TOMORROW", "")


def test_flag_has_its_remedy():
    audit = Audit(probe=None, sites={}, flags=[Flag(code="E_UPDATE_NORM", site="north", says="it is large")])
    (flag,) = conduct.audit(make_results(2, audit=False).model_copy(update={"audit": audit}))["flags"]
    assert (flag["site"], flag["found"]) == ("north", "it is large")
    assert flag["remedy"] == UPDATE_NORM.remedy


def test_epsilon_is_the_last_per_site_and_the_largest_overall():
    run = make_results(2, private=True, rounds=9, lost=[])
    about = overview.about(run)
    told = [about["sites"][site]["epsilon"] for site in ("north", "south")]
    assert about["privacy"]["largest_epsilon"] == max(told)
    assert told[0] == pytest.approx(0.4 * math.sqrt(9))


def test_pooled_figures_use_sites_with_histograms_and_state_their_share():
    run = make_results(2)
    assert pooled_patients.pooled(run)["severe"]["share"] == 1
    one_tells = run.model_copy(deep=True)
    one_tells.models[0].figures["south"] = {"num-examples": run.models[0].figures["south"]["num-examples"]}
    found = pooled_patients.pooled(one_tells)["severe"]
    assert found["sites"] == ["north"]
    assert 0 < found["share"] < 1
    assert pooled_patients.pooled(make_results(2, histograms=False))["severe"] is None


def test_coarse_histograms_give_no_pooled_auroc_but_the_mean_of_the_hospitals():
    run = make_results(3, patients=60)
    found = pooled_patients.pooled(run)["severe"]
    assert found["auroc"] is None and found["curve"] == []
    assert found["possible"][0] < found["possible"][1]
    mean = pooled_patients.mean_over_hospitals(run)["severe"]
    assert mean["sites"] == 3
    assert mean["low"] <= mean["here"][0] < mean["value"] < mean["here"][1] <= mean["high"]
    assert pooled_patients.pooled(make_results(3, patients=900))["severe"]["auroc"]["low"] > 0.5


def test_empty_run_has_content():
    empty = make_results(1, models=[], sites={}, history=[], audit=False, operating_points={}, calibration={})
    told = content(empty)
    assert told["about"]["sites"] == {}
    assert told["costs"]["medians"] is None
    assert told["calibration"]["severe"] == {"learnt": None, "band": [], "by_site": {}, "over_sites": {}}


def test_shared_calibration_is_reported():
    run = make_results(2, calibration={"severe": Platt(slope=0.5, intercept=-1)})
    found = trust.calibration(run)
    assert found["severe"]["learnt"] == {"slope": 0.5, "intercept": -1}
    assert found["severe"]["band"] == []
    assert found["pcr_positive"]["learnt"] is None


def test_calibration_band_surrounds_each_reported_probability():
    run = make_results(2, calibration={"severe": Platt(slope=0.5, intercept=-1, covariance=(0.02, 0, 0.04))})
    found = trust.calibration(run)["severe"]["band"]
    assert [each["told"] for each in found] == [0.1, 0.3, 0.5, 0.7]
    assert all(each["low"] < each["told"] < each["high"] for each in found)
