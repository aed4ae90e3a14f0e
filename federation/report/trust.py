"""Calibration, net benefit, thresholds, baselines and patient groups of the federated model, by site."""

from collections.abc import Mapping
from typing import Any

from federation.comparison.class_sizes import class_sizes
from federation.report.estimates import (
    LABELS,
    Estimate,
    as_estimate,
    by_site,
    estimate,
    federated,
    number,
    over_sites,
    sites,
    spread,
)
from federation.report.rates import half_step, predictive_value, rate
from federation.runs.figures_from_counts import PERCENTS, means_row
from federation.runs.results import Results
from models.calibration import Platt
from models.operating_points import AIM, FLOOR, NO_POINT, RATES, evidence_text

WITH_BAND = (0.1, 0.3, 0.5, 0.7)  # calibrated probabilities whose band is shown
_FLOAT = 1e-9  # more than the error of these sums; a difference of exactly the rounding is none
GROUPS: Mapping[str, Mapping[str, str]] = {
    "sex": {"female": "women", "male": "men"},
    "age": {"under_50": "under 50 years", "50_to_69": "50 to 69 years", "from_70": "70 years or more"},
    "scanner": {
        "siemens": "Siemens",
        "ge": "GE",
        "philips": "Philips",
        "canon": "Canon",
        "other_scanner": "another make",
    },
}


def calibration(results: Results) -> dict[str, Any]:
    """By label: the federation's fitted slope and intercept, and the calibration metrics of the result at each site.

    `brier_of_prevalence`: p (1 - p), the Brier score of predicting the site's prevalence p for every patient. `band`:
    `models.calibration.Platt.band` at some probabilities.
    """
    by_label: dict[str, Any] = {}
    for label in LABELS:
        names = (f"calibration_slope_{label}", f"calibration_intercept_{label}", f"brier_{label}", f"ece_{label}")
        rows: dict[str, dict[str, Any]] = {}
        for site, cells in by_site(results, *names).items():
            prevalence = number(federated(results)[site], f"prevalence_{label}")
            rows[site] = {
                **{name.removesuffix(f"_{label}"): cell for name, cell in cells.items()},
                "prevalence": prevalence,
                "brier_of_prevalence": None if prevalence is None else prevalence * (1 - prevalence),
            }
        learnt = results.calibration.get(label)
        by_label[label] = {
            "learnt": learnt.model_dump(include={"slope", "intercept"}) if learnt else None,
            "band": _band(learnt),
            "by_site": rows,
            "over_sites": over_sites(rows),
        }
    return by_label


def _band(learnt: Platt | None) -> list[dict[str, float]]:
    """Return the 95 % band at some calibrated probabilities; empty if it is not known."""
    if learnt is None:
        return []
    bands = [(probability, learnt.band(learnt.logit_of(probability))) for probability in WITH_BAND]
    return [{"told": probability, "low": band[0], "high": band[1]} for probability, band in bands if band]


def decision(results: Results) -> dict[str, Any]:
    """By label and site: the decision curve (Vickers & Elkin, Medical Decision Making 2006;26:565).

    It is the net benefit of acting on the model at each threshold probability, and of treating all; treating none has
    the net benefit 0. `better`: the number of sites at which the model is above both, whatever the rounding hides, by
    threshold.
    """
    by_label: dict[str, Any] = {}
    for label in LABELS:
        rows = {site: curve for site, figures in federated(results).items() if (curve := _curve(figures, label))}
        halves = {site: half_step(federated(results)[site], label) for site in rows}
        better = {
            str(percent): {
                "sites": sum(_is_best(rows[site][str(percent)], percent, halves[site]) for site in having),
                "of": len(having),
            }
            for percent in PERCENTS
            if (having := [site for site, row in rows.items() if str(percent) in row])
        }
        by_label[label] = {"by_site": rows, "better": better}
    return by_label


def _is_best(point: Mapping[str, float], percent: int, half: float) -> bool:
    """Whether the true net benefit of the model is above those of treating all and none, for any rounding.

    The model's net benefit b and the prevalence p are each at most `half` a step from the true ones. Treating all has
    p - (1 - p) odds = p (1 + odds) - odds, so its error is at most half (1 + odds). Treating none is exactly 0.
    """
    of_all = half * (1 + _odds(percent))
    margin = half + _FLOAT
    return point["model"] > margin and point["model"] - point["treat_all"] > margin + of_all


def _odds(percent: int) -> float:
    """Return how many true positives a false positive weighs at this threshold probability."""
    return percent / (100 - percent)


def _curve(figures: Mapping[str, float], label: str) -> dict[str, dict[str, float]]:
    prevalence, curve = number(figures, f"prevalence_{label}"), {}
    for percent in PERCENTS:
        model = number(figures, f"net_benefit_{label}_{percent}")
        if model is not None and prevalence is not None:
            curve[str(percent)] = {"model": model, "treat_all": prevalence - (1 - prevalence) * _odds(percent)}
    return curve


def operating_points(results: Results) -> dict[str, Any]:
    """By label: the thresholds, and their performance at each site, with predictive values at its prevalence.

    `missing`: by point, why there is no threshold, in a sentence; `evidence`: the validation patients behind one.
    """
    by_label: dict[str, Any] = {}
    for label in LABELS:
        points = {
            point: {
                **found.model_dump(),
                "says": evidence_text(point, found.evidence),
                "learnt_for": RATES[point],
                "aim": AIM,
                "floor": FLOOR,
            }
            for point, found in results.operating_points.get(label, {}).items()
            if point in RATES
        }
        missing = {point: found.text(point) for point, found in results.missing_points.get(label, {}).items()}
        missing |= {point: NO_POINT for point in RATES if point not in {**points, **missing}}
        rows = {}
        for site, figures in federated(results).items():
            row = {name: cell for point in points for name, cell in _at(figures, label, point).items()}
            if any(row.values()):
                rows[site] = row | _patients(figures, label)
        by_label[label] = {"points": points, "missing": missing, "by_site": rows, "over_sites": over_sites(rows)}
    return by_label


def _patients(figures: Mapping[str, float], label: str) -> dict[str, int | None]:
    """Return the numbers of test patients with and without the label; None if the site did not release them."""
    sizes = class_sizes(figures, label)
    return {"with_label": sizes.positive if sizes else None, "without_label": sizes.negative if sizes else None}


def _at(figures: Mapping[str, float], label: str, point: str) -> dict[str, Any]:
    sensitivity = number(figures, f"sens_at_{point}_{label}")
    specificity = number(figures, f"spec_at_{point}_{label}")
    prevalence, sizes = number(figures, f"prevalence_{label}"), class_sizes(figures, label)
    predicted = _predictive_values(sensitivity=sensitivity, specificity=specificity, prevalence=prevalence)
    cells: dict[str, Any] = {
        "sensitivity": _with_interval(sensitivity, sizes.positive if sizes else None),
        "specificity": _with_interval(specificity, sizes.negative if sizes else None),
        **{name: None if value is None else as_estimate(None, value) for name, value in predicted.items()},
    }
    if sizes and sensitivity is not None and specificity is not None:
        found, cleared = sensitivity * sizes.positive, specificity * sizes.negative
        for name, right, wrong in (
            ("positive_predictive_value", found, sizes.negative - cleared),
            ("negative_predictive_value", cleared, sizes.positive - found),
        ):
            if cells[name]:
                cells[name] = predictive_value(cells[name]["value"], right, wrong, sizes)
    return {f"{name}_at_{point}": cell for name, cell in cells.items()}


def _with_interval(value: float | None, patients: int | None) -> Estimate | None:
    if value is None:
        return None
    return rate(value, patients) if patients else as_estimate(None, value)


def _predictive_values(
    *, sensitivity: float | None, specificity: float | None, prevalence: float | None
) -> dict[str, float | None]:
    """Compute predictive values with Bayes' theorem at the site's own prevalence."""
    if sensitivity is None or specificity is None or prevalence is None:
        return {"positive_predictive_value": None, "negative_predictive_value": None}
    ill, well = prevalence, 1 - prevalence
    return {
        "positive_predictive_value": _share(sensitivity * ill, (1 - specificity) * well),
        "negative_predictive_value": _share(specificity * well, (1 - sensitivity) * ill),
    }


def _share(right: float, wrong: float) -> float | None:
    return right / (right + wrong) if right + wrong > 0 else None


def baselines(results: Results) -> dict[str, Any]:
    """By label and site: the model, age and sex alone, lesion load alone, and the model's gain over age and sex.

    `over_same`: summaries over the same sites, `same`, that have all columns which any site has. Means over different
    sites would compare the models on different patients.
    """
    by_label: dict[str, Any] = {}
    for label in LABELS:
        names = {
            f"auroc_{label}": "model",
            f"auroc_{label}_age_sex": "age_sex",
            f"auroc_{label}_lesion_load": "lesion_load",
            f"auroc_{label}_over_age_sex": "over_age_sex",
        }
        rows = {
            site: {names[name]: cell for name, cell in cells.items()}
            for site, cells in by_site(results, *names).items()
        }
        rows = {site: row for site, row in rows.items() if any(cell for name, cell in row.items() if name != "model")}
        known = {name for row in rows.values() for name, cell in row.items() if cell}
        same = {site: row for site, row in rows.items() if all(row[name] for name in known)}
        by_label[label] = {
            "by_site": rows,
            "over_sites": over_sites(rows),
            "over_same": over_sites(same),
            "same": list(same),
        }
    return by_label


def subgroups(results: Results) -> dict[str, Any]:
    """By label, kind of group and group: the AUROC of its patients by site; None if a site reports none."""
    return {
        label: {kind: {group: _group(results, label, group) for group in groups} for kind, groups in GROUPS.items()}
        for label in LABELS
    }


def _group(results: Results, label: str, group: str) -> dict[str, Any]:
    found = federated(results)
    cells = {site: estimate(found.get(site, {}), f"auroc_{label}@{group}") for site in sites(results)}
    return {"by_site": cells, "over_sites": spread(cells)}


def has_groups(results: Results) -> bool:
    """Whether any site released a metric of a group, or added one to the sum of a masked study."""
    rows = [*federated(results).values(), means_row(results)]
    return any("@" in name for row in rows for name in row)
