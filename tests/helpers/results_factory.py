"""Creates plausible results of a finished run without running one.

The metrics are consistent, as those of a run: the histograms count the same patients as the AUROC, and the net
benefit matches the calibration (`tests.helpers.invented_results`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from federation.protocol.handshake import SiteAbout
from federation.protocol.study_config import EvaluationTable, Study, StudyTable
from federation.runs.results import FEDERATED, Audit, Flag, ModelFigures, Probe, Results
from models.calibration import Platt
from models.network_settings import LABELS
from models.operating_points import Evidence, OperatingPoint
from pipeline.training.privacy_budget import PrivacySettings
from tests.helpers.invented_results import POINTS, Draw, interval

NAMES = ("north", "south", "east", "west", "coast", "hills", "lake", "plains")


def make_results(
    sites: int | Sequence[str] = 4,
    /,
    *,
    seed: int = 1,
    patients: int = 140,
    rounds: int = 12,
    lost: Sequence[int] = (5,),
    synthetic: bool = True,
    private: bool = False,
    local: bool = True,
    leave_one_out: bool = True,
    fine_tuned: bool = True,
    pooled: bool = True,
    histograms: bool = True,
    audit: bool = True,
    **changes: Any,
) -> Results:
    """Create results of a run at `sites` (number or names) with about `patients` test patients each.

    Parts that are switched off are absent, as in a real run. `private` switches off what private studies do not
    support. `changes` replace fields of the results.
    """
    names = _names(sites)
    local, leave_one_out, fine_tuned, pooled = (
        asked and not private for asked in (local, leave_one_out, fine_tuned, pooled)
    )
    draw = Draw(np.random.default_rng(seed), {name: patients + 25 * (i % 3) for i, name in enumerate(names)})
    models = [draw.model(FEDERATED, "federated", names, names, histograms=histograms)]
    if pooled:
        models.append(draw.model("pooled", "pooled", names, names))
    if fine_tuned:
        models += [draw.model(f"{name} fine-tuned", "fine_tuned", [name], names) for name in names]
    if local:
        models += [draw.model(f"{name} alone", "local", [name], names) for name in names]
    if leave_one_out:
        others = {name: [other for other in names if other != name] for name in names}
        models += [draw.model(f"without {name}", "left_out", others[name], names) for name in names if others[name]]
    content = {
        "run": "severe-covid-20260301-1",
        "software": "fedthorax 0.1.0",
        "synthetic": synthetic,
        "study": _study(
            names,
            rounds,
            seed,
            synthetic=synthetic,
            private=private,
            asked=(local, leave_one_out, fine_tuned, pooled, audit),
        ),
        "sites": {name: _about(draw.patients[name]) for name in names},
        "history": _history(names, rounds, lost, private=private, rng=draw.rng),
        "models": models,
        "calibration": {"severe": Platt(slope=0.86, intercept=-0.21), "pcr_positive": Platt(slope=0.93, intercept=0.1)},
        "operating_points": {
            label: {point: OperatingPoint(threshold=at, evidence=_evidence(len(names))) for point, at in POINTS.items()}
            for label in LABELS
        },
        "audit": _audit(names, models[0], draw.rng) if audit else None,
        "release": "7b1d4c0ae29f" + "5e" * 26,
    }
    return Results(**{**content, **changes})


def _evidence(sites: int) -> Evidence:
    positives, negatives = 15 * sites, 27 * sites
    return Evidence(value=0.93, low=0.84, high=0.98, positives=positives, negatives=negatives, sites=sites)


def _names(sites: int | Sequence[str]) -> list[str]:
    if not isinstance(sites, int):
        return list(sites)
    return list(NAMES[:sites]) if sites <= len(NAMES) else [f"hospital-{k:03d}" for k in range(1, sites + 1)]


def trained_too_long(results: Results) -> Results:
    """Return results whose validation loss of `severe` rises again after the fifth round."""
    history = [
        {**entry, "means": {**entry["means"], "loss_severe": 0.4 + 0.05 * abs(entry["round"] - 5)}}
        if entry.get("means")
        else entry
        for entry in results.history
    ]
    return results.model_copy(update={"history": history})


def _study(
    names: Sequence[str], rounds: int, seed: int, *, synthetic: bool, private: bool, asked: Sequence[bool]
) -> Study:
    local, leave_one_out, fine_tuned, pooled, audit = asked
    table = StudyTable(
        name="severe-covid",
        rounds=rounds,
        seed=seed,
        sites=len(names),
        quorum=max(1, len(names) // 2),
        synthetic=synthetic,
    )
    study = Study(
        study=table,
        evaluation=EvaluationTable(
            local_models=local,
            leave_one_out=leave_one_out,
            fine_tune=fine_tuned,
            pooled=pooled,
            shortcut_audit=audit,
        ),
    )
    if not private:
        return study
    network = study.network.model_copy(update={"norm": "group"})
    privacy = PrivacySettings(noise_multiplier=1.5, sample_rate=0.1)
    return Study(**{**study.model_dump(), "network": network, "privacy": privacy})


def _about(test_patients: int) -> SiteAbout:
    low = test_patients * 6 // 100 * 100
    return SiteAbout(version="0.1.0", contract="3f" * 32, golden="a8" * 32, patients=f"{low}-{low + 499}")


def _history(
    names: Sequence[str], rounds: int, lost: Sequence[int], *, private: bool, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Create a history in the format of `server_app`. The last site misses a round, and one reply is refused."""
    history: list[dict[str, Any]] = [{"step": "handshake", "sites": list(names), "refused": {}, "ledger": {}}]
    for number in range(1, rounds + 1):
        refused = {names[-1]: "E_SITE_MISSING"} if number in {*lost, rounds - 1} else {}
        refused |= {names[0]: "E_UPDATE_NORM"} if number == 3 and len(names) > 1 else {}
        counted = [name for name in names if name not in refused]
        is_lost = number in lost
        learnt = 1 - math.exp(-number / 4)
        means = {
            "train_loss": 0.72 - 0.34 * learnt + rng.normal(0, 0.008),
            "auroc_severe": 0.56 + 0.27 * learnt + rng.normal(0, 0.012),
            "auroc_pcr_positive": 0.6 + 0.29 * learnt + rng.normal(0, 0.008),
            "loss_severe": 0.7 - 0.2 * learnt,
            "loss_pcr_positive": 0.69 - 0.3 * learnt,
        }
        if private:
            means.pop("train_loss")
        history.append(
            {
                "round": number,
                "lost": is_lost,
                "lost_for": "E_QUORUM" if is_lost else None,
                "sites": counted,
                "refused": refused,
                "capped": [names[0]] if number == rounds else [],
                "ledger": {},
                "epsilon": {name: 0.4 * math.sqrt(number) for name in counted} if private and not is_lost else {},
                "means": {} if is_lost else means,
                "seconds": round(float(38 + rng.normal(0, 4) + (300 if is_lost else 0)), 1),
                "bytes_up": 8_390_000 * len(counted),
                "bytes_down": 8_390_000 * len(names),
            }
        )
    history += [{"step": step, "sites": names, "refused": {}, "ledger": {}} for step in ("calibration", "test")]
    return history


def _audit(names: Sequence[str], federated: ModelFigures, rng: np.random.Generator) -> Audit:
    """Create an audit: tags of the first site correlate with the label, and embeddings partly identify the sites."""
    n = len(names)
    confusion = {}
    for i, name in enumerate(names):
        shares = rng.random(n) + np.where(np.arange(n) == i, 0.9 * n, 0.35 * n)
        confusion[name] = {other: float(s) for other, s in zip(names, shares / shares.sum(), strict=True)}
    accuracy = float(np.mean([confusion[name][name] for name in names]))
    sites = {}
    for i, name in enumerate(names):
        y = np.repeat([0, 1], [70, 40])
        sites[name] = {
            "scanner_from_embedding": 0.82 if i == 0 else 0.55 + 0.05 * rng.random(),
            "scanner_chance": 0.5,
            **interval("auroc_severe_tags", 0.84 if i == 0 else 0.5 + 0.06 * rng.random(), y),
            **interval("auroc_pcr_positive_tags", 0.5 + 0.08 * rng.random(), y),
            **interval("auroc_severe_outside", 0.6 if i == 0 else 0.5 + 0.04 * rng.random(), y),
        }
    tags = sites[names[0]]["auroc_severe_tags"]
    says = f"acquisition tags alone predict severe at this site: AUROC {tags:.2f}, 95 % interval from {tags - 0.09:.2f}"
    probe = Probe(confusion=confusion, accuracy=accuracy, chance=1 / n) if n > 1 else None
    return Audit(probe=probe, sites=sites, flags=[Flag(code="W_SHORTCUT_TAGS", site=names[0], says=says)])
