"""Comparison of models: the matrix of models and sites, generalisation, and federations without one site.

The form follows the report of EXAM (Dayan et al., Nature Medicine 2021;27:1735): each site's own model at every site,
compared with the federated model at the same sites.
"""

from typing import Any

from federation.protocol.metric_allowlist import EXAMPLES
from federation.report.estimates import LABELS, Estimate, estimate, federated, mean, over_sites, sites, spread, value_of
from federation.runs.results import FEDERATED, ModelFigures, Results

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
    values = {site: value_of(cell) for site, cell in cells.items()}
    return {"name": model.name, "kind": model.kind, "cells": cells, "over_sites": spread(values, weights)}


def _place(model: ModelFigures, site: str) -> str:
    has_learnt_there = site in model.trained_at
    if model.kind in ("local", "fine_tuned"):
        return "own" if has_learnt_there else ""
    return "" if has_learnt_there else "outside"


def generalisation(results: Results) -> dict[str, Any]:
    """By label: each local model at its own site and at the others, and the federated model at the same others."""
    return {label: _generalisation(results, label) for label in LABELS}


def _generalisation(results: Results, label: str) -> dict[str, Any] | None:
    shared = aurocs(results.model(FEDERATED), label)
    rows = {}
    for model in results.models:
        if model.kind != "local" or len(model.trained_at) != 1:
            continue
        (home,) = model.trained_at
        found = aurocs(model, label)
        away = [site for site in found if site != home and site in shared]
        if home in found and away:
            elsewhere, instead = mean(found[site] for site in away), mean(shared[site] for site in away)
            rows[home] = {
                "at_home": found[home],
                "elsewhere": elsewhere,
                "federated_elsewhere": instead,
                "gain": _difference(instead, elsewhere),
                "sites_elsewhere": len(away),
            }
    return {"by_site": rows, "over_sites": over_sites(rows)} if rows else None


def aurocs(model: ModelFigures | None, label: str) -> dict[str, float]:
    """Return a model's AUROC at each site that reported it."""
    found = {site: estimate(figures, f"auroc_{label}") for site, figures in (model.figures if model else {}).items()}
    return {site: cell["value"] for site, cell in found.items() if cell and cell["value"] is not None}


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


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
                "loss": _difference(whole["value"], without["value"]),
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
        {"kind": kind, "what": what, "key": key, "why": _why(results, was_asked=was_asked)}
        for kind, (what, key, was_asked) in wanted.items()
        if kind not in kinds
    ]


def _why(results: Results, *, was_asked: bool) -> str:
    if was_asked:
        return "failed"
    return "private" if results.study.privacy else "not_asked"
