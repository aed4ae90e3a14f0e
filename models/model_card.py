"""Makes the model card in Markdown from model.json and attacks.json only, so that anybody can make it again to compare.

The order follows TRIPOD+AI (BMJ 2024;385:e078378): purpose, data, model, performance, limits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from models.attacks import Attacks, attacks_section
from models.calibration import Platt
from models.network_settings import LABELS
from models.operating_points import AIM, FLOOR, LEAST_PATIENTS, RATES, Evidence
from models.pretrained_start import start_card
from models.provenance import AuditRecord, FlagRecord, Provenance, SumsRecord

if TYPE_CHECKING:
    from models.adaptation import Adaptation
    from models.description import Description, Privacy

_POINTS = {"rule_out": "rule out below", "rule_in": "rule in from"}
_UNKNOWN = "not reported"
_TOGETHER = {
    "AUROC": "auroc_{}",
    "AUROC of the lesion load alone": "auroc_{}_lesion_load",
    "prevalence": "prevalence_{}",
    "calibration slope": "calibration_slope_{}",
    "calibration intercept": "calibration_intercept_{}",
    "Brier": "brier_{}",
    "sensitivity at rule out": "sens_at_rule_out_{}",
    "specificity at rule out": "spec_at_rule_out_{}",
    "sensitivity at rule in": "sens_at_rule_in_{}",
    "specificity at rule in": "spec_at_rule_in_{}",
}
_WITH_BAND = (0.1, 0.3, 0.5, 0.7)  # calibrated probabilities whose band is shown


def card(description: "Description", sha256: str, attacks: Attacks | None = None) -> str:
    """Make the card: what the model is, its training data, its performance, and its limits."""
    d = description
    if d.network.pretrains:
        return start_card(d, sha256)
    parts = [_head(d, sha256), _without_number(d)]
    if d.adaptation is not None:
        parts.append(_adaptation(d.adaptation))
    parts.append(_doubts(d))
    if d.provenance is not None:
        p = d.provenance
        parts += [_hospitals(p), _training(p), _performance(p)]
    if d.metrics:
        parts.append(_means(d.metrics))
    parts += [_trust(d), _operating_points(d)]
    if d.provenance is not None:
        parts += [_subgroups(d.provenance), _audit(d.provenance)]
    if d.privacy is not None:
        parts.append(_privacy(d.privacy))
    if attacks is not None:
        parts.append(attacks_section(attacks).strip() + "\n")
    return "\n".join(filter(None, parts))


def _head(d: "Description", sha256: str) -> str:
    origin = (
        "SYNTHETIC hospitals (phantoms): its figures say nothing about patients"
        if d.trained_on_synthetic_data
        else "the hospitals of the study"
    )
    facts = {
        "release (SHA-256 of model.json)": f"`{sha256}`",
        "network": f"{_network(d)}, late fusion of age and sex",
        "labels": ", ".join(d.labels),
        "trained on": origin,
        "hospitals": str(d.sites),
        "rounds": str(d.rounds),
        "strategy": d.strategy,
        "run": d.run,
        "software": d.software,
    }
    limits = "\n".join(f"- {limit}" for limit in d.limits)
    return f"""# {d.study}: severe Covid-19 from chest CT

**Research use only. Not a medical device.**

{_table(("what", "value"), facts.items())}

## Intended use
{d.intended_use}

## Limits
{limits}
"""


def _without_number(d: "Description") -> str:
    rows = "\n".join(f"- **{label}**: {why}" for label, why in d.without_number.items())
    return f"## Labels without a number\nNo answer about a scan has a probability of them.\n\n{rows}\n" if rows else ""


def _adaptation(a: "Adaptation") -> str:
    facts = {
        "adapted at": a.site,
        "on": f"{a.adapted_on.isoformat()}, by fedthorax {a.software}",
        "parent release (SHA-256 of its model.json)": f"`{a.parent}`",
        "signed by the key (SHA-256)": f"`{a.parent_signed_by}`",
        "scans without labels": f"{a.found}; {a.unfamiliar} outside the parent's limit were not used",
        "mix of the statistics": f"the parent's {a.source_scans} : {a.scans} scans of the hospital",
    }
    rows = [
        (
            label,
            f"{j.positives}, {j.negatives}",
            f"{j.auroc_before:.3f}",
            f"{j.auroc_after:.3f}",
            _change(j.auroc_change),
            _UNKNOWN if j.log_loss_change is None else _change(j.log_loss_change),
        )
        for label, j in sorted(a.judged.items())
    ]
    columns = ("label", "positive, negative", "AUROC before", "after", "change", "change of the log loss")
    judged = (
        f"On the hospital's labelled validation patients:\n\n{_table(columns, rows)}"
        if rows
        else "The hospital has too few labelled validation patients to judge the model after the adaptation."
    )
    return f"""## Adapted at this hospital
**Adapted at this hospital, thresholds and operating points not backed by evidence after adaptation.** The means and
variances of the batch-norm layers were estimated again from the hospital's own scans, without labels. The weights are
the parent's. All figures below are the parent's, unless they say otherwise. An operating point is given only if this
hospital judged the parent's threshold again.

{_table(("what", "value"), facts.items())}

{judged}
"""


def _change(change: tuple[float, float, float]) -> str:
    value, low, high = change
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def _network(d: "Description") -> str:
    network = d.network
    if network.encoder:
        whose = ", ".join(map(_line, (d.encoder.name, d.encoder.source, d.encoder.licence))) if d.encoder else ""
        origin = f" ({whose})" if whose else ""
        if network.tuned_stages:
            return (
                f"the encoder `{network.encoder}`{origin}, whose last {network.tuned_stages} of 4 stages were trained "
                f"further, and a head on its {network.encoder_features} features"
            )
        return f"a head on {network.encoder_features} features of the frozen encoder `{network.encoder}`{origin}"
    dimensions = "2.5D" if network.is_slicewise else "3D"
    pooling = f", {network.pooling} pooling" if network.pooling else ""
    form = f"code `{network.code}`" if network.is_own else f"width {network.widen_factor}"
    return f"{dimensions} {network.architecture}, {form}, {network.norm} norm{pooling}"


def _hospitals(p: Provenance) -> str:
    rows = [
        (
            site,
            record.patients or _UNKNOWN,
            "yes" if record.trained else "no: unseen in training",
            str(record.rounds),
            ", ".join(f"{count} × {code}" for code, count in sorted(record.dropouts.items())) or "none",
        )
        for site, record in sorted(p.sites.items())
    ]
    columns = ("hospital", "patients (band)", "in the training", "rounds that counted", "rounds it dropped out of")
    return f"""## Hospitals
The data of training, validation and test patients never left their hospital; each patient is in only one of the three.
The labels come from each hospital: intubation or death within 30 days of the CT, and the PCR result.

{_table(columns, rows)}
"""


def _training(p: Provenance) -> str:
    study = p.study.get("study", {})
    training = p.study.get("training", {})
    local = f"{study['local_steps']} steps" if study.get("local_steps") else f"{study.get('local_epochs')} epochs"
    facts = {
        "rounds planned, lost": f"{p.rounds_planned}, {p.rounds_lost}{', stopped early' if p.stopped_early else ''}",
        "at each hospital in a round": local,
        "options of the strategy": _settings(p.strategy_options),
        "local training": _settings(training),
        "initial weights": f"the release `{begun}`" if (begun := study.get("begin_from")) else "drawn from the seed",
        "seed": str(p.seed),
        "candidate that was tested (SHA-256)": f"`{p.candidate}`, the same weights",
    }
    return f"""## Training
{_table(("what", "value"), facts.items())}
"""


def _together(sums: SumsRecord) -> str:
    """Make the section of a masked study: figures of all hospitals' patients together, and means over the hospitals."""
    rows = []
    for title, name in _TOGETHER.items():
        cells = [_figure(sums.together, name.format(label)) for label in reversed(LABELS)]
        if set(cells) != {_UNKNOWN}:
            rows.append((title, *cells))
    means = [
        (name, _figure(sums.means, name), f"{100 * sums.known.get(name, 1):.0f} %")
        for name in sorted(sums.means)
        if not name.endswith(("_low", "_high"))
    ]
    hospitals = ", ".join(f"{label} {sums.sites.get(label, 0)}" for label in reversed(LABELS))
    return f"""## Performance over all hospitals' test patients together
The study was masked: the server learnt sums over the hospitals, and no hospital's own figures. So there is no table by
hospital. Intervals are 95 % over patients, and include what the counts leave open. Hospitals behind the figures:
{hospitals}. A label with fewer than three has no figure.

{_table(("figure", *reversed(LABELS)), rows)}

Means over the hospitals, weighted by patients. They do not compare patients of different hospitals.

{_table(("figure", "mean", "patients whose hospitals have it"), means)}
"""


def _performance(p: Provenance) -> str:
    return _together(p.sums) if p.sums else _by_hospital(p)


def _by_hospital(p: Provenance) -> str:
    kinds = {
        "AUROC": "auroc_{}",
        "AUROC of age and sex alone": "auroc_{}_age_sex",
        "AUPRC": "auprc_{}",
        "prevalence": "prevalence_{}",
        "calibration slope": "calibration_slope_{}",
        "calibration intercept": "calibration_intercept_{}",
        "Brier": "brier_{}",
        "ECE": "ece_{}",
    }
    parts = []
    for label in reversed(LABELS):
        rows = [
            (
                site,
                *(_figure(record.figures, name.format(label)) for name in kinds.values()),
                _figure(record.left_out, f"auroc_{label}"),
            )
            for site, record in sorted(p.sites.items())
        ]
        columns = ("hospital", *kinds, "AUROC of the federation without it")
        parts.append(f"### {label}\n{_table(columns, rows)}\n")
    return """## Performance at each hospital
On test patients who were not used in training, with 95 % intervals if the number of patients allows one. For a hospital
that took part in the training, this is internal validation. The last column shows the performance at a hospital that
did not take part in the training of a model of the same kind, if the study requested it.

""" + "\n".join(parts)


def _means(metrics: Mapping[str, float]) -> str:
    rows = [(name, f"{value:.3f}") for name, value in sorted(metrics.items())]
    return f"""## Means over hospitals (weighted by patients; a mean of AUROCs is not the AUROC of all patients)
{_table(("figure", "value"), rows)}
"""


def _trust(d: "Description") -> str:
    """Make the section on the confidence band of a probability, and on scans that get none."""
    rows = [
        (label, *(_band(platt, probability) for probability in _WITH_BAND))
        for label, platt in sorted(d.calibration.items())
        if label not in d.without_number
    ]
    familiar = "There is no limit for scans that differ from the training scans: they get a probability, too."
    if d.familiarity:
        beyond, sites = f"{d.familiarity.limit:.2f}", d.familiarity.sites
        familiar = (
            f"A scan with a distance above {beyond} from the training scans gets no probability ({sites} hospitals)."
        )
    return f"""## Confidence bands of probabilities
The 95 % band of the true probability at a similar hospital. It covers the small number of validation patients and the
differences between hospitals. It does not cover that another training would give another model.

{_table(("label", *(f"reported {probability:g}" for probability in _WITH_BAND)), rows)}

{familiar}
"""


def _band(platt: Platt, probability: float) -> str:
    band = platt.band(platt.logit_of(probability))
    return _UNKNOWN if band is None else f"{band[0]:.2f}–{band[1]:.2f}"


def _operating_points(d: "Description") -> str:
    rows: list[Sequence[str]] = [
        (label, says, f"{at.threshold:.3f}", *_evidence(point, at.evidence))
        for label, points in sorted(d.operating_points.items())
        for point, says in _POINTS.items()
        if label not in d.without_number and (at := points.get(point))
    ]
    missing = "\n".join(
        f"- {label}, to {point.replace('_', ' ')}: {says}"
        for label in sorted(d.labels)
        for point, says in d.why_missing(label).items()
    )
    columns = ("label", "", "probability", "on validation patients", "positive", "negative", "hospitals")
    table = f"\n{_table(columns, rows)}\n" if rows else ""
    if any(at.evidence is None for points in d.operating_points.values() for at in points.values()):
        table += "\nAn earlier version chose the points without reported patients, from any number of them.\n"
    masked = d.provenance is not None and d.provenance.sums is not None
    steps = "Counts are exact sums." if masked else "Counts are rounded down in steps of three at each hospital."
    text = f"""## Operating points
Thresholds on the calibrated probability, chosen with the validation patients of all hospitals together: the highest
one to rule out (the lowest one to rule in) with a sensitivity (a specificity) of at least {AIM:.2f} whose 90 % interval
ends at or above {FLOOR:.2f}, a one-sided 95 % bound. Each needs at least {LEAST_PATIENTS} positive and {LEAST_PATIENTS}
negative patients, of at least two hospitals. {steps} One hospital alone may reach less. The
thresholds are not a recommendation.
{table}{missing and f"{chr(10)}{missing}{chr(10)}"}"""
    if d.provenance is None or d.provenance.sums or not rows:
        return text
    names = [f"{kind}_at_{point}" for point in _POINTS for kind in ("sens", "spec")]
    results = [
        (site, label, *(_figure(record.figures, f"{name}_{label}") for name in names))
        for site, record in sorted(d.provenance.sites.items())
        for label in sorted(d.operating_points)
    ]
    of_points = [f"{kind} at {point}" for point in ("rule out", "rule in") for kind in ("sensitivity", "specificity")]
    return f"""{text}
Their results on each hospital's test patients:

{_table(("hospital", "label", *of_points), results)}
"""


def _evidence(point: str, evidence: Evidence | None) -> tuple[str, ...]:
    if evidence is None:
        return (_UNKNOWN,) * 4
    e = evidence
    return (
        f"{RATES[point]} {e.value:.2f} ({e.low:.2f}–{e.high:.2f})",
        str(e.positives),
        str(e.negatives),
        str(e.sites),
    )


def _subgroups(p: Provenance) -> str:
    prefix = "auroc_severe@"
    groups = sorted(
        {
            name.removeprefix(prefix)
            for record in p.sites.values()
            for name in record.figures
            if name.startswith(prefix) and not name.endswith(("_low", "_high"))
        }
    )
    if not groups:
        return ""
    rows = [
        (site, *(_figure(record.figures, prefix + group) for group in groups))
        for site, record in sorted(p.sites.items())
    ]
    return f"""## Subgroups: AUROC of severe
Groups with too few patients are not reported.

{_table(("hospital", *groups), rows)}
"""


def _audit(p: Provenance) -> str:
    if p.audit is None:
        return "## Shortcut audit\nThere was no audit: the model may use the scanner instead of the lungs.\n"
    probe = _probe(p.audit)
    names = {
        "severe from acquisition tags alone": "auroc_severe_tags",
        "severe with the lungs blanked out": "auroc_severe_outside",
        "scanner from the embedding": "scanner_from_embedding",
        "its chance": "scanner_chance",
    }
    rows = [(site, *(_figure(found, name) for name in names.values())) for site, found in sorted(p.audit.sites.items())]
    if p.audit.means:
        rows.append(("mean over hospitals", *(_figure(p.audit.means, name) for name in names.values())))
    text = f"""## Shortcut audit
Does the model use the lungs, or features that correlate with the label at one hospital? {probe}

{_table(("hospital", *names), rows)}
"""
    if not p.audit.flags:
        return text + "\nNo figure is flagged.\n"
    return f"""{text}
**Flagged: reasons to distrust**
{_flags(p.audit.flags)}
"""


def _doubts(d: "Description") -> str:
    """List the reasons to doubt the model, and why it was released."""
    if not d.doubts:
        return ""
    because = f"\nReleased nevertheless, because: {_line(d.released_because)}\n" if d.provenance else ""
    return f"""## Reasons to doubt this model
{_flags(d.doubts)}
{because}"""


def _flags(flags: Sequence[FlagRecord]) -> str:
    return "\n".join(f"- **{flag.code}**, {flag.site or 'all'}: {_line(flag.says)}" for flag in flags)


def _probe(audit: AuditRecord) -> str:
    if audit.probe_accuracy is None or audit.probe_chance is None:
        return "It was not measured whether its embedding identifies the hospital."
    return (
        f"Its embedding of a test patient identifies the hospital with accuracy {audit.probe_accuracy:.2f} "
        f"(guessing: {audit.probe_chance:.2f})."
    )


def _privacy(privacy: "Privacy") -> str:
    rows = [
        (site, _UNKNOWN if epsilon is None else f"{epsilon:.2f}") for site, epsilon in sorted(privacy.epsilon.items())
    ]
    return f"""## Differential privacy
At each hospital below, training was (ε, δ)-differentially private with δ = {privacy.delta:g}. The unit is the patient:
the guarantee covers all training on one patient there. Noise multiplier {privacy.noise_multiplier:g}, sampling rate
{privacy.sample_rate:g}, gradients clipped to {privacy.max_grad_norm:g}.

{_table(("hospital", "ε"), rows)}

Test and calibration patients are not covered: the figures above are computed from them, without noise. A small ε limits
what anybody can learn about a patient. An ε of 8 does not by itself stop an attack that asks whether a patient was in
the training data.
"""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(figures: Mapping[str, float], name: str) -> str:
    """Format a figure with its 95 % interval, if reported."""
    if name not in figures:
        return _UNKNOWN
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    interval = "" if low is None or high is None else f" ({low:.3f}–{high:.3f})"
    return f"{figures[name]:.3f}{interval}"


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(settings.items())) or "none"


def _line(text: str) -> str:
    """Put a text on one line, so that it cannot imitate another part of the card."""
    return " ".join(text.split())
