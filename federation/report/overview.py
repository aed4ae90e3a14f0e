"""The first page of the report: settings, sites, and the discrimination of the federated model."""

from typing import Any

from federation.protocol.metric_allowlist import EXAMPLES
from federation.report.estimates import LABELS, estimate, federated, number, over_sites, sites
from federation.runs import progress
from federation.runs.progress import asked_in
from federation.runs.results import Results
from federation.strategy.round_report import kept_rounds

RANKED = ("auroc", "auprc", "sens_at_spec90", "sens_at_spec95", "spec_at_sens90", "spec_at_sens95")


def rounds_of(results: Results) -> list[dict[str, Any]]:
    """Return the entries of the history that describe rounds."""
    return progress.rounds_of(results.history)


def about(results: Results) -> dict[str, Any]:
    """Summarise the run: settings, rounds, sites, and ε if the study was private."""
    table, rounds = results.study.study, rounds_of(results)
    kept = kept_rounds(rounds)
    return {
        "study": table.name,
        "run": results.run,
        "software": results.software,
        "synthetic": results.synthetic,
        "candidate": results.release,
        "strategy": results.study.strategy.model_dump(mode="json"),
        "seed": table.seed,
        "local_epochs": None if table.local_steps else table.local_epochs,
        "local_steps": table.local_steps or None,
        "rounds": {
            "planned": table.rounds,
            "held": len(rounds),
            "counted": len(kept),
            "lost": [{"round": entry["round"], "code": entry["lost_for"]} for entry in rounds if entry["lost"]],
            "left_out": [entry["round"] for entry in rounds if not entry["lost"] and entry["round"] not in kept],
            "stopped_early": results.stopped_early,
        },
        "stopping": results.study.stopping.model_dump(mode="json") if results.study.stopping else None,
        "privacy": _privacy(results),
        "sites": {site: _site(results, site, rounds) for site in sites(results)},
        "planned_sites": table.sites,
        "sites_per_round": table.sites_per_round or None,
        "compared_sites": results.study.evaluation.compared_sites or None,
        "network": results.study.network.model_dump(mode="json"),
        "preprocessing": results.study.preprocessing.model_dump(mode="json"),
        "training": results.study.training.model_dump(mode="json"),
    }


def _privacy(results: Results) -> dict[str, Any] | None:
    """Return the study's noise, and the largest ε of any site, from each site's last reply that counted."""
    settings = results.study.privacy
    if settings is None:
        return None
    found = _epsilon(results)
    return {**settings.model_dump(mode="json"), "largest_epsilon": max(found.values(), default=None)}


def _epsilon(results: Results) -> dict[str, float]:
    last: dict[str, float] = {}
    for entry in rounds_of(results):
        last |= entry.get("epsilon", {})
    return last


def _site(results: Results, site: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    greeting = results.sites.get(site)
    figures, kept = federated(results).get(site, {}), kept_rounds(rounds)
    return {
        "patients": greeting.patients if greeting else None,
        "version": greeting.version if greeting else None,
        "contract": greeting.contract if greeting else None,
        "golden": greeting.golden if greeting else None,
        "rounds": sum(site in entry["sites"] and entry["round"] in kept for entry in rounds),
        "asked": sum(site in asked_in(entry) for entry in rounds),
        "test_patients": number(figures, EXAMPLES),
        "auroc_severe": estimate(figures, "auroc_severe"),
        "epsilon": _epsilon(results).get(site),
    }


def discrimination(results: Results) -> dict[str, Any]:
    """By label: metrics of the federated model by site, and their summary, also weighted by test patients."""
    found = federated(results)
    weights = {site: figures.get(EXAMPLES, 0.0) for site, figures in found.items()}
    by_label: dict[str, Any] = {}
    for label in LABELS:
        cells = {site: _ranked(figures, label) for site, figures in found.items()}
        rows = {site: each for site, each in cells.items() if any(each[name] for name in RANKED)}
        without = [site for site in sites(results) if site not in rows]
        by_label[label] = {"by_site": rows, "over_sites": over_sites(rows, weights), "without": without}
    return by_label


def _ranked(figures: Any, label: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: estimate(figures, f"{name}_{label}") for name in RANKED}
    return {**found, "prevalence": number(figures, f"prevalence_{label}")}
