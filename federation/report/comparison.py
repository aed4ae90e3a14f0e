"""Comparison of models: the matrix of models and sites, generalisation, and federations without one site.

The form follows the report of EXAM (Dayan et al., Nature Medicine 2021;27:1735): each site's own model at every site,
compared with the federated model at the same sites.
"""

import math
from typing import Any

import numpy as np

from federation.protocol.metric_allowlist import AUC, EXAMPLES
from federation.report.estimates import (
    LABELS,
    Estimate,
    as_estimate,
    difference,
    estimate,
    federated,
    interval,
    mean_estimate,
    over_sites,
    sites,
    spread,
)
from federation.runs.results import FEDERATED, ModelFigures, Results
from pipeline.evaluation.combining import mean_at_site, mean_of_repeats

ORDER = ("federated", "pooled", "left_out", "fine_tuned", "local")


def matrix(results: Results) -> dict[str, Any]:
    """Return the AUROC of each model at each site, by label.

    `place` of a cell: "own" if a model of one site is evaluated at that site, "outside" if a model is evaluated at a
    site that gave it no patients, otherwise "". Test patients are never training patients, also for "own".
    """
    columns = sites(results)
    models = sorted(results.models, key=lambda model: ORDER.index(model.kind))  # the order within a kind is kept
    return {
        label: {"sites": columns, "models": [row for model in models if (row := _row(model, label))["cells"]]}
        for label in LABELS
    }


def _row(model: ModelFigures, label: str) -> dict[str, Any]:
    cells: dict[str, Estimate] = {
        site: {**found, "place": _place(model, site)}
        for site, figures in model.figures.items()
        if (found := estimate(figures, f"auroc_{label}"))
    }
    weights = {site: figures.get(EXAMPLES, 0.0) for site, figures in model.figures.items()}
    return {"name": model.name, "kind": model.kind, "cells": cells, "over_sites": spread(cells, weights)}


def _place(model: ModelFigures, site: str) -> str:
    has_learnt_there = site in model.trained_at
    if model.kind in ("local", "fine_tuned"):
        return "own" if has_learnt_there else ""
    return "" if has_learnt_there else "outside"


def generalisation(results: Results) -> dict[str, Any]:
    """By label: each local model at its own site and at the others, and the federated model at the same others."""
    return {label: _generalisation(results, label) for label in LABELS}


def _generalisation(results: Results, label: str) -> dict[str, Any] | None:
    """Return one row for each local model, and their summary `over_models`.

    Rows have test patients in common, so their summary goes site by site (`_over_models`).
    """
    shared = aurocs(results.model(FEDERATED), label)
    rows, abroad = {}, dict[str, list[Estimate]]()
    for model in results.models:
        if model.kind != "local" or len(model.trained_at) != 1:
            continue
        (home,) = model.trained_at
        found = aurocs(model, label)
        away = [site for site in found if site != home and site in shared]
        if home in found and away:
            elsewhere = mean_estimate(found[site] for site in away)
            instead = mean_estimate(shared[site] for site in away)
            rows[home] = {
                "at_home": found[home],
                "elsewhere": elsewhere,
                "federated_elsewhere": instead,
                "gain": mean_estimate(difference(shared[site], found[site]) for site in away),
                "sites_elsewhere": len(away),
            }
            for site in away:
                abroad.setdefault(site, []).append(found[site])
    if not rows:
        return None
    return {"by_site": rows, "over_sites": _without_ends(over_sites(rows)), "over_models": _over_models(shared, abroad)}


def _over_models(shared: dict[str, Estimate], abroad: dict[str, list[Estimate]]) -> dict[str, Any]:
    """Summarise the local models of other sites at each site, and the federated model at the same patients.

    `gain`: over the patients of these sites, for any correlation of the models. `gain_over_sites`: the ends of its
    interval over the sites' own gains, by Student's t; None with fewer than three sites.
    """
    local = {site: _same_patients(cells) for site, cells in abroad.items()}
    gains = {site: difference(shared[site], cell) for site, cell in local.items()}
    repeats = mean_of_repeats(np.array([gain["value"] for gain in gains.values()]), least=AUC.size)
    return {
        "sites": len(gains),
        "local": mean_estimate(local.values()),
        "federated": mean_estimate(shared[site] for site in local),
        "gain": mean_estimate(gains.values()),
        "gain_over_sites": [max(-1.0, repeats.low), min(1.0, repeats.high)] if repeats else None,
    }


def _same_patients(cells: list[Estimate]) -> Estimate:
    """Return the mean of several models' figures at one site."""
    found = [end for cell in cells if (end := interval(cell))]
    if len(found) == len(cells):
        return as_estimate(mean_at_site(found))
    return as_estimate(None, math.fsum(cell["value"] for cell in cells) / len(cells))


def _without_ends(summaries: dict[str, Any]) -> dict[str, Any]:
    """Leave out intervals of means over rows that have patients in common: they would be too narrow."""
    return {key: over and over | {"mean_low": None, "mean_high": None} for key, over in summaries.items()}


def aurocs(model: ModelFigures | None, label: str) -> dict[str, Estimate]:
    """Return a model's AUROC at each site that reported it."""
    found = {site: estimate(figures, f"auroc_{label}") for site, figures in (model.figures if model else {}).items()}
    return {site: cell for site, cell in found.items() if cell}


def leave_one_out(results: Results) -> dict[str, Any]:
    """By label and site: the federation without the site, the full one, and the site's own model if there is one."""
    return {label: _leave_one_out(results, label) for label in LABELS}


def _leave_one_out(results: Results, label: str) -> dict[str, Any] | None:
    name, rows = f"auroc_{label}", {}
    for site, figures in federated(results).items():
        model = results.model(f"without {site}")
        without, whole = estimate(model.figures.get(site, {}) if model else {}, name), estimate(figures, name)
        if without and whole:
            rows[site] = {
                "without": without,
                "federated": whole,
                "alone": _alone(results, site, name),
                "loss": difference(whole, without),
            }
    return {"by_site": rows, "over_sites": over_sites(rows)} if rows else None


def _alone(results: Results, site: str, name: str) -> Estimate | None:
    model = results.model(f"{site} alone")
    return estimate(model.figures.get(site, {}), name) if model else None


def missing(results: Results) -> list[dict[str, str]]:
    """Return the models that the study did not ask for, or that could not be trained."""
    asked, kinds = results.study.evaluation, {model.kind for model in results.models}
    wanted = {
        "local": ("each site alone", "local_models", asked.local_models),
        "left_out": ("the federation without each site", "leave_one_out", asked.leave_one_out),
        "fine_tuned": ("fine-tuned at each site", "fine_tune", asked.fine_tune),
        "pooled": ("all patients pooled, only possible in a simulation", "pooled", asked.pooled),
    }
    return [
        {"kind": kind, "what": what, "key": key, "why": _why(results, key, was_asked=was_asked)}
        for kind, (what, key, was_asked) in wanted.items()
        if kind not in kinds
    ]


def _why(results: Results, key: str, *, was_asked: bool) -> str:
    if was_asked:
        return "failed"
    if results.study.sums_answers and key != "pooled":
        return "masked"
    return "private" if results.study.privacy else "not_asked"
