"""What a study masks: the kinds of replies, their names, and the numbers of their rounds.

With `secure = true` each reply that describes patients is masked as a whole. With `summed_answers = true` the answers
to questions are, and of a reply to training only the figures; its update is sent as it is.
"""

from collections.abc import Mapping

from federation.protocol.metric_allowlist import EPSILON, HANDSHAKE, Kind
from federation.protocol.metric_allowlist import FIGURES as ALL
from federation.protocol.summed_answers import SUMMED, Table

SUMMED_OVER = "summed.json"  # in the server's folder: over which hospitals figures and answers were summed
MASKED, WORDS = "masked", "words"  # the record of a masked reply, and its only array
FIGURES = tuple(sorted(set(ALL["train"]) - {EPSILON}))  # ε is each site's own, and sent beside the sum
# The figures of a round as a sum of their own, beside an update that is not masked.
ROUND_FIGURES = "train.figures"
# What is summed as counts, means and moments, without an update.
TABLES: Mapping[str, Table] = {
    **{str(kind): table for kind, table in SUMMED.items()},
    ROUND_FIGURES: Table(means=FIGURES),
}
# What a site answers in such a study. A handshake is not masked: it has no figures of patients.
ANSWERED: tuple[Kind, ...] = (HANDSHAKE, "train", *SUMMED)
# Of one hospital, in the number by which answers are divided. With a larger number, only what a large hospital answers
# would be left after rounding.
MOST_PATIENTS = 400_000
_ORDER: tuple[Kind, ...] = ("evaluate.embed", "evaluate.calibrate", "evaluate.test")


def summed_as(kind: Kind, *, secure: bool) -> str:
    """Return the kind of the sum that a reply is part of. `secure`: whether updates are masked."""
    return ROUND_FIGURES if kind == "train" and not secure else kind


def round_of(kind: Kind, rounds: int) -> int:
    """Return the number of the masked round in which a question is answered, after the study's last round.

    Questions have a fixed order: a gateway that has begun a later one answers nothing about an earlier one.
    """
    return rounds + 1 + _ORDER.index(kind)
