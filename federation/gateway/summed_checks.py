"""Check what a site adds to a sum: counts that are exactly its own patients, and figures as in any other reply.

Nothing of it leaves by itself: the gateway masks it (`masked_rounds`). A false count would spoil the sum unseen, and a
count can carry what an app hides in it, so the total of each class must be the class's size in the site's own cohort.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from federation.gateway import reasons
from federation.gateway.figure_checks import check_figures
from federation.protocol import reasons as protocol_reasons
from federation.protocol.metric_allowlist import EXAMPLES, EXAMPLES_OF, FIGURES, LABELS, Kind
from federation.protocol.patient_counts import Patients
from federation.protocol.summed_answers import (
    CLASSES,
    LOAD_EDGES,
    LOGIT_BINS,
    SUMMED,
    load_counts,
    logit_counts,
    reported,
    sites_with,
    summands,
)
from models.refusal import Refusal


def check_summands(
    metrics: Mapping[str, Any],
    kind: Kind,
    patients: Patients,
    *,
    min_patients: int,
    embeddings: bool,
    withheld_figures: Collection[str] = (),
) -> dict[str, float]:
    """Return what a site adds to the sum: all counts, and its rounded figures and their squares; and its patients.

    Either the counts of a label are whole numbers whose totals are the site's own class sizes, which reach
    `min_patients`, or all of them are 0. `embeddings`, `withheld_figures`: as in `check_figures`.

    Raises Refusal: E_REPLY_METRICS, E_REPLY_PATIENTS, and those of `check_figures`.
    """
    names = SUMMED[kind].counts
    counts = {name: metrics[name] for name in names if name in metrics}
    if len(counts) < len(names) or any(type(count) is not int or count < 0 for count in counts.values()):
        raise Refusal(protocol_reasons.REPLY_METRICS)
    for label in LABELS if names else ():
        _check_label(label, kind, counts, patients, min_patients)
    figures = check_figures(
        {name: value for name, value in metrics.items() if name not in counts},
        kind,
        patients,
        min_patients=min_patients,
        histograms=False,
        embeddings=embeddings,
        withheld_figures=(set(FIGURES[kind]) - reported(kind)).union(withheld_figures),
    )
    return {**summands({**counts, **figures}, kind), EXAMPLES: figures[EXAMPLES]}


def _check_label(label: str, kind: Kind, counts: Mapping[str, int], patients: Patients, min_patients: int) -> None:
    """Require that a label's counts cover all its patients, of enough of both classes, or nobody."""
    split = EXAMPLES_OF[kind]
    own = [patients.with_value.get((split, label, value), 0) for value in CLASSES]
    tables = [(logit_counts(label), LOGIT_BINS), (load_counts(label), len(LOAD_EDGES) - 1)]
    totals = [
        [_total(counts, (names[value, bin] for bin in range(bins))) for value in CLASSES]
        for names, bins in tables
        if names[False, 0] in counts
    ]
    is_there = counts[sites_with(label)]
    allowed = own if is_there == 1 else [0, 0]
    if is_there > 1 or (is_there and min(own) < min_patients) or any(each != allowed for each in totals):
        raise Refusal(reasons.REPLY_PATIENTS)


def _total(counts: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(counts[name] for name in names)
