"""How the run went: learning curves, what each round cost, who was missing or refused and why, and the audit."""

from collections import Counter, defaultdict
from statistics import median
from typing import Any

from federation.coordinator.shortcut_audit import FALSE_ALARM
from federation.protocol.metric_allowlist import LOSS
from federation.report.estimates import LABELS, estimate, federated, number, over_sites, sites
from federation.report.overview import rounds_of
from federation.runs.results import Results
from federation.strategy import reasons
from federation.system.refusals_page import REASONS
from pipeline.cohort.attrition import plain


def explained(code: str) -> dict[str, str]:
    """A code with what it says and what to do about it; both empty for one that this version does not know."""
    reason = REASONS.get(code)
    return {"code": code, "says": plain(reason.says) if reason else "", "remedy": reason.remedy if reason else ""}


def learning(results: Results) -> list[dict[str, Any]]:
    """By round the sites' means, weighted by their patients: None in a lost round, or where no site told.

    The AUROC of a round is that of the model with which the round began, on validation patients.
    """
    return [
        {
            "round": entry["round"],
            "lost": entry["lost"],
            "mean_train_loss": number(entry["means"], LOSS),
            **{f"mean_validation_auroc_{label}": number(entry["means"], f"auroc_{label}") for label in LABELS},
        }
        for entry in rounds_of(results)
    ]


def costs(results: Results) -> dict[str, Any]:
    """Seconds and bytes of each round and of all. Bytes count the arrays alone, all sites together."""
    rounds = rounds_of(results)
    names = ("seconds", "bytes_up", "bytes_down")
    return {
        "rounds": [{name: entry[name] for name in ("round", "lost", *names)} for entry in rounds],
        "totals": {name: sum(entry[name] for entry in rounds) for name in names},
        "medians": {name: median(entry[name] for entry in rounds) for name in names} if rounds else None,
    }


def participation(results: Results) -> dict[str, Any]:
    """By site for each round that was held: "counted", "refused" (or missing), or None where it was not asked."""
    rounds = rounds_of(results)
    return {
        "rounds": [entry["round"] for entry in rounds],
        "by_site": {site: [_took_part(entry, site) for entry in rounds] for site in sites(results)},
    }


def _took_part(entry: dict[str, Any], site: str) -> str | None:
    if site in entry["sites"]:
        return "counted"
    return "refused" if site in entry.get("refused", {}) else None


def absences(results: Results) -> list[dict[str, Any]]:
    """By code who was missing or refused, how often, and what that means; the most frequent first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    when: dict[str, list[str]] = defaultdict(list)
    for entry in results.history:
        refused = [(site, code) for site, code in entry.get("refused", {}).items()]
        refused += [(site, reasons.EXAMPLES_CAPPED.code) for site in entry.get("capped", [])]
        refused += [(site, reasons.UPDATE_CLIPPED.code) for site in entry.get("clipped", [])]
        for site, code in refused:
            counts[code][site] += 1
            when[code].append(str(entry.get("round", entry.get("step", ""))))
    told = [
        {
            **explained(code),
            "times": by.total(),
            "sites": dict(by.most_common()),
            "when": list(dict.fromkeys(when[code])),
        }
        for code, by in counts.items()
    ]
    return sorted(told, key=lambda each: -each["times"])


def audit(results: Results) -> dict[str, Any] | None:
    """The shortcut audit: does the embedding tell the site, do tags or the surroundings of the lungs tell the label?

    `false_alarm`: the chance that a study without shortcuts gets any flag.
    """
    found = results.audit
    if found is None:
        return None
    rows = {site: _audited(results, site, figures) for site, figures in found.sites.items()}
    return {
        "probe": found.probe.model_dump() if found.probe else None,
        "by_site": rows,
        "over_sites": over_sites(rows),
        "false_alarm": FALSE_ALARM,
        "flags": [{**explained(flag.code), "site": flag.site, "found": flag.says} for flag in found.flags],
    }


def _audited(results: Results, site: str, figures: dict[str, float]) -> dict[str, Any]:
    """The audit's figures of a site, and beside the score without lungs what the model reaches with them."""
    return {
        "scanner_from_embedding": number(figures, "scanner_from_embedding"),
        "scanner_chance": number(figures, "scanner_chance"),
        **{f"auroc_{label}_tags": estimate(figures, f"auroc_{label}_tags") for label in LABELS},
        "auroc_severe_outside": estimate(figures, "auroc_severe_outside"),
        "auroc_severe": estimate(federated(results).get(site, {}), "auroc_severe"),
    }
