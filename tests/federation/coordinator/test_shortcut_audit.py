"""The audit at the server: sites are classified from features, and shortcuts are flagged if not due to chance."""

from collections.abc import Mapping

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from federation.coordinator.shortcut_audit import NO_PROBE, discriminants, judge, judge_means, probe, strict_low
from federation.protocol.metric_allowlist import MAX_PROBED
from models.familiarity import Moments
from pipeline.evaluation.discrimination import auroc
from pipeline.evaluation.shortcuts import assigned_shares
from pipeline.evaluation.shortcuts import moments as moments_of

FEATURES = 6
Embeddings = dict[str, np.ndarray]


def embeddings(patients: Mapping[str, int], seed: int) -> Embeddings:
    """Create independent features with a different mean at each site. The last feature is constant."""
    rng = np.random.default_rng(seed)
    made = {}
    for number, (site, count) in enumerate(patients.items()):
        features = rng.normal(size=(count, FEATURES)) * (1, 3, 0.5, 2, 1, 0)
        features[:, 0] += 1.5 * number
        made[site] = features.astype(np.float32)
    return made


def moments(found: Embeddings) -> dict[str, Moments]:
    return {site: moments_of(features) for site, features in found.items()}


def figures(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


# --- the probe --------------------------------------------------------------------------------------------


def test_probe_matches_discriminant_analysis_of_all_patients() -> None:
    patients = {"north": 300, "south": 80, "west": 150}
    train, test = embeddings(patients, 1), embeddings(patients, 2)
    table = discriminants(moments(train))
    shares = {site: assigned_shares(features, table, 3) for site, features in test.items()}
    found = probe(shares, list(patients))
    known = LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(
        np.concatenate(list(train.values()))[:, :-1], np.repeat(list(patients), list(patients.values()))
    )
    for site, features in test.items():
        told = known.predict(features[:, :-1])
        for other in patients:
            assert found.confusion[site][other] == pytest.approx(np.mean(told == other), abs=0.03)
    assert found.chance == pytest.approx(1 / 3)
    assert found.accuracy == pytest.approx(np.mean([found.confusion[site][site] for site in patients]))
    assert found.accuracy > 0.6


def test_equal_sites_are_classified_at_chance() -> None:
    same = {site: embeddings({"north": 200}, seed)["north"] for seed, site in enumerate(("a", "b", "c", "d"))}
    table = discriminants(moments(same))
    fresh = embeddings({"north": 400}, 9)["north"]
    found = probe({site: assigned_shares(fresh, table, 4) for site in same}, list(same))
    assert found.accuracy == pytest.approx(found.chance)


def test_message_has_fixed_size_and_constant_feature_has_zero_weight() -> None:
    patients = {"north": 20, "south": 30}
    table = discriminants(moments(embeddings(patients, 1))).reshape(MAX_PROBED, FEATURES + 1)
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    assert (table[:2, 0] != 0).all()
    assert not table[:, FEATURES - 1].any()
    assert not table[2:].any()


@pytest.mark.parametrize("sites", [1, MAX_PROBED + 1])
def test_probe_is_rejected_for_one_site_or_too_many(sites: int) -> None:
    patients = {str(number): 5 for number in range(sites)}
    with pytest.raises(ValueError, match="sites"):
        discriminants(moments(embeddings(patients, 1)))


# --- the judgement ----------------------------------------------------------------------------------------


def test_significant_shortcut_is_flagged_with_site_and_figure() -> None:
    audit = judge(
        {
            "north": figures("auroc_severe_tags", 0.91, 0.82, 0.96) | {"loss_severe": 0.4},
            "south": figures("auroc_severe_outside", 0.88, 0.78, 0.94) | {"scanner_from_embedding": 0.99},
            "west": figures("auroc_severe_outside", 0.66, 0.52, 0.78),  # above chance, as expected for one site in 20
        },
        None,
    )
    assert [(flag.code, flag.site) for flag in audit.flags] == [
        ("W_SHORTCUT_TAGS", "north"),
        ("W_SHORTCUT_OUTSIDE", "south"),
    ]
    assert "severe" in audit.flags[0].says
    assert "0.91" in audit.flags[0].says
    assert "{" not in audit.flags[0].says + audit.flags[1].says
    assert "loss_severe" not in audit.sites["north"]
    assert audit.sites["south"]["scanner_from_embedding"] == 0.99


def test_distinguishable_sites_and_scanners_are_not_flagged() -> None:
    apart = probe({"north": [1.0, 0.0], "south": [0.0, 1.0]}, ["north", "south"])
    audit = judge({site: {"scanner_from_embedding": 1.0, "scanner_chance": 0.5} for site in apart.confusion}, apart)
    assert audit.probe == apart
    assert audit.flags == []


def test_small_effect_at_a_large_site_is_not_flagged() -> None:
    assert judge({"north": figures("auroc_severe_tags", 0.56, 0.545, 0.575)}, None).flags == []


def test_more_figures_make_the_rule_stricter() -> None:
    suspect, calm = figures("auroc_severe_tags", 0.75, 0.62, 0.85), figures("auroc_severe_tags", 0.5, 0.4, 0.6)
    assert judge({"north": suspect}, None).flags
    assert not judge({"north": suspect, **{str(n): calm for n in range(30)}}, None).flags


def test_strict_low_at_the_level_of_the_site_interval_gives_its_low_end() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(80) < 0.4).astype(np.float64)
    overlapping, apart = auroc(labels + rng.normal(size=80), labels), auroc(labels, labels)
    assert apart.value == 1
    for found in (overlapping, apart):
        assert strict_low(found.value, found.low, level=0.975) == pytest.approx(found.low)
        assert strict_low(found.value, found.low, level=0.999) < found.low
    assert strict_low(0.0, 0.0, level=0.999) == 0


@pytest.mark.slow
def test_false_flag_rate_of_clean_studies_is_bounded() -> None:
    """Simulate 200 studies of three sites with uninformative scores. About two flags are expected."""
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(200):
        sites = {}
        for site in ("north", "south", "west"):
            labels = (rng.random(30) < 0.3).astype(np.float64)
            found = auroc(rng.normal(size=30), labels)
            sites[site] = figures("auroc_severe_outside", found.value, found.low, found.high)
        flagged += bool(judge(sites, None).flags)
    assert flagged <= 4


# --- from sums --------------------------------------------------------------------------------------------


def test_shortcut_of_all_sites_is_flagged_from_the_means() -> None:
    found = judge_means(figures("auroc_severe_tags", 0.85, 0.78, 0.9))
    assert [(flag.code, flag.site) for flag in found.flags] == [("W_SHORTCUT_TAGS", "")]
    assert "at the sites, on average: AUROC 0.85" in found.flags[0].says
    assert (found.probe, found.sites, found.no_probe) == (None, {}, NO_PROBE)


def test_mean_without_its_lower_end_is_shown_and_not_flagged() -> None:
    found = judge_means({"auroc_severe_outside": 0.9, "scanner_chance": 0.5, "auroc_severe": 0.9})
    assert found.flags == []
    assert found.means == {"auroc_severe_outside": 0.9, "scanner_chance": 0.5}


def test_shortcut_at_one_of_four_sites_is_lost_in_the_means() -> None:
    """A limit of sums, which the documentation states."""
    sites = {"north": (0.9, 0.85), **dict.fromkeys(("south", "west", "east"), (0.5, 0.4))}
    each = {site: figures("auroc_severe_tags", value, low, 1.0) for site, (value, low) in sites.items()}
    assert [flag.site for flag in judge(each, None).flags] == ["north"]
    means = {name: float(np.mean([each[site][name] for site in each])) for name in each["north"]}
    assert judge_means(means).flags == []
