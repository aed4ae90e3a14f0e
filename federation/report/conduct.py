"""The course of the run: learning curves, costs, missing or refused sites with reasons, and the shortcut audit."""

from collections import Counter, defaultdict
from statistics import median
from typing import Any

from federation.comparison import reasons as comparison_reasons
from federation.comparison.release_gate import doubts
from federation.coordinator.shortcut_audit import FALSE_ALARM
from federation.protocol.metric_allowlist import LOSS
from federation.report.estimates import LABELS, estimate, federated, number, over_sites, sites
from federation.report.overview import rounds_of
from federation.runs.results import Results
from federation.strategy import reasons
from federation.system.refusals_page import REASONS
from pipeline.cohort.attrition import plain


def explained(code: str) -> dict[str, str]:
    """Return a code with its text and remedy; both are empty for a code that this version does not know."""
    reason = REASONS.get(code)
    return {"code": code, "says": plain(reason.says) if reason else "", "remedy": reason.remedy if reason else ""}


def learning(results: Results) -> list[dict[str, Any]]:
    """Return the sites' means by round, weighted by their patients; None if the round was lost or no site reported.

    AUROC and validation loss of a round are those of the model at its start, on validation patients.
    """
    return [
        {
            "round": entry["round"],
            "lost": entry["lost"],
            "mean_train_loss": number(entry["means"], LOSS),
            **{f"mean_validation_auroc_{label}": number(entry["means"], f"auroc_{label}") for label in LABELS},
            **{f"mean_validation_loss_{label}": number(entry["means"], f"loss_{label}") for label in LABELS},
        }
        for entry in rounds_of(results)
    ]


def costs(results: Results) -> dict[str, Any]:
    """Return seconds and bytes of each round and in total. Bytes count only the arrays, summed over all sites."""
    rounds = rounds_of(results)
    names = ("seconds", "bytes_up", "bytes_down")
    return {
        "rounds": [{name: entry[name] for name in ("round", "lost", *names)} for entry in rounds],
        "totals": {name: sum(entry[name] for entry in rounds) for name in names},
        "medians": {name: median(entry[name] for entry in rounds) for name in names} if rounds else None,
    }


def participation(results: Results) -> dict[str, Any]:
    """By site, for each round that took place: "counted", "refused" (or missing), or None if it was not sampled."""
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
    """By code: the missing or refused sites, how often, and the meaning of the code; the most frequent first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    when: dict[str, list[str]] = defaultdict(list)
    for entry in results.history:
        refused = [(site, code) for site, code in entry.get("refused", {}).items()]
        refused += [(site, reasons.EXAMPLES_CAPPED.code) for site in entry.get("capped", [])]
        refused += [(site, reasons.UPDATE_CLIPPED.code) for site in entry.get("clipped", [])]
        for site, code in refused:
            counts[code][site] += 1
            when[code].append(str(entry.get("round", entry.get("step", ""))))
    rows = [
        {
            **explained(code),
            "times": by.total(),
            "sites": dict(by.most_common()),
            "when": list(dict.fromkeys(when[code])),
        }
        for code, by in counts.items()
    ]
    return sorted(rows, key=lambda each: -each["times"])


def judgements(results: Results) -> dict[str, Any] | None:
    """Return what the hospitals of a masked study found about the models: rounds with votes, and those taken back.

    None if no round has votes.
    """
    rounds = rounds_of(results)
    judged = [entry for entry in rounds if entry.get("votes")]
    if not judged:
        return None
    return {
        "rounds": len(judged),
        "some_worse": sum(entry["votes"]["worse"] > 0 for entry in judged),
        "undone": [
            {"round": entry["round"], **explained(entry["lost_for"]), "undone": entry["undone"]}
            for entry in rounds
            if entry.get("undone")
        ],
    }


def doubted(results: Results) -> list[dict[str, str]]:
    """Return the reasons to doubt the model that a release must answer, beside the flags of the audit."""
    flagged = results.audit.flags if results.audit else []
    return [
        {**explained(flag.code), "site": flag.site, "found": flag.says}
        for flag in doubts(results)
        if flag not in flagged
    ]


def audit(results: Results) -> dict[str, Any] | None:
    """Return the shortcut audit: how well embeddings predict the site, and tags or lung surroundings the label.

    `measured`: whether it has any figure that could have been flagged. `false_alarm`: the probability that a study
    without shortcuts gets any flag.
    """
    found = results.audit
    if found is None:
        return None
    rows = {site: _audited(results, site, figures) for site, figures in found.sites.items()}
    return {
        "measured": all(flag.code != comparison_reasons.NOT_AUDITED.code for flag in doubts(results)),
        "probe": found.probe.model_dump() if found.probe else None,
        "by_site": rows,
        "over_sites": over_sites(rows),
        "no_probe": found.no_probe,
        "false_alarm": FALSE_ALARM,
        "flags": [{**explained(flag.code), "site": flag.site, "found": flag.says} for flag in found.flags],
    }


def _audited(results: Results, site: str, figures: dict[str, float]) -> dict[str, Any]:
    """Return a site's audit metrics; next to the score without lungs, the model's score with them."""
    return {
        "scanner_from_embedding": number(figures, "scanner_from_embedding"),
        "scanner_chance": number(figures, "scanner_chance"),
        **{f"auroc_{label}_tags": estimate(figures, f"auroc_{label}_tags") for label in LABELS},
        "auroc_severe_outside": estimate(figures, "auroc_severe_outside"),
        "auroc_severe": estimate(federated(results).get(site, {}), "auroc_severe"),
    }
