"""Check the figures of a reply: listed in the table, finite, in range, and computed over enough patients.

Each figure leaves rounded to its grid, whatever precision the app gave it.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from federation.gateway import reasons
from federation.protocol import reasons as protocol_reasons
from federation.protocol.figure_rounding import HIGH, LOW, figure_of_end, rounded
from federation.protocol.metric_allowlist import (
    EXAMPLES,
    EXAMPLES_OF,
    FIGURES,
    LABELS,
    Figure,
    Kind,
    class_counts,
    tail,
)
from federation.protocol.patient_counts import Patients
from models.operating_points import POINTS
from models.refusal import Refusal


def check_figures(
    metrics: Mapping[str, Any],
    kind: Kind,
    patients: Patients,
    *,
    min_patients: int,
    histograms: bool,
    embeddings: bool,
    withheld_figures: Collection[str] = (),
) -> dict[str, float]:
    """Return the rounded figures of a reply to a message of this kind, in the table's order, and the reply's weight.

    The weight, the prevalences and the sizes of classes must equal those of the site's own cohort; otherwise the reply
    is refused.

    `histograms`: whether the site allows counts of patients to leave. `embeddings`: whether it allows statistics of
    scans' appearance and features to leave. `withheld_figures`: listed figures that this study must not report.

    Raises Refusal: E_REPLY_METRICS, E_REPLY_EXAMPLES, E_REPLY_PATIENTS.
    """
    known = {
        name: figure
        for name, figure in FIGURES[kind].items()
        if name not in withheld_figures and (embeddings or not figure.embedding)
    }
    if EXAMPLES not in metrics or not set(metrics) <= {*known, EXAMPLES}:
        raise Refusal(protocol_reasons.REPLY_METRICS)
    examples = metrics[EXAMPLES]
    here = patients.of_split.get(EXAMPLES_OF[kind], 0)
    if type(examples) is not int or not min_patients <= examples == here:
        raise Refusal(protocol_reasons.REPLY_EXAMPLES)
    reported = {name: metrics[name] for name in known if name in metrics}
    for name, value in reported.items():
        # This comparison also refuses NaN.
        if type(value) not in (int, float) or not known[name].low <= value <= known[name].high:
            raise Refusal(protocol_reasons.REPLY_METRICS)
        if not patients.may_leave(known[name], min_patients=min_patients):
            raise Refusal(reasons.REPLY_PATIENTS)
    for name in reported:
        base = figure_of_end(name, known)
        if base and not {base, base + LOW, base + HIGH} <= set(reported):
            raise Refusal(protocol_reasons.REPLY_METRICS)
    counts = {name: value for name, value in reported.items() if known[name].counts is not None}
    if counts and not histograms:
        raise Refusal(protocol_reasons.REPLY_METRICS)
    _check_counts(counts, known, patients, min_patients)
    _check_tails(reported)
    reported = rounded(reported, kind, patients)
    own = {name: patients.own(known[name]) for name in reported if known[name].reveals_classes}
    if any(reported[name] != value for name, value in rounded(own, kind, patients).items()):
        raise Refusal(protocol_reasons.REPLY_METRICS)
    return {**reported, EXAMPLES: examples}


def _check_tails(reported: Mapping[str, Any]) -> None:
    """Refuse a part of a tail, and a tail without the sizes of both classes, which must be large enough."""
    for label in LABELS:
        for names in (tail(point, label) for point in POINTS):
            found = set(names) & set(reported)
            if found and not {*names, *class_counts(label)} <= set(reported):
                raise Refusal(protocol_reasons.REPLY_METRICS)


def _check_counts(
    counts: Mapping[str, Any], known: Mapping[str, Figure], patients: Patients, min_patients: int
) -> None:
    """Refuse a count over too few patients, and counts of a class that exceed the class's size in total."""
    of_class: Counter[tuple[str, str, bool]] = Counter()
    for name, count in counts.items():
        if type(count) is not int:
            raise Refusal(protocol_reasons.REPLY_METRICS)
        if count < min_patients:
            raise Refusal(reasons.REPLY_PATIENTS)
        of_class[known[name].of_class] += count
    if any(count > patients.with_value.get(each, 0) for each, count in of_class.items()):
        raise Refusal(reasons.REPLY_PATIENTS)
