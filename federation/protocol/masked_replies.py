"""What a study with secure aggregation masks: the kinds of replies, their names, and the numbers of their rounds."""

from federation.protocol.metric_allowlist import EPSILON, HANDSHAKE, Kind
from federation.protocol.metric_allowlist import FIGURES as ALL
from federation.protocol.summed_answers import SUMMED

MASKED, WORDS = "masked", "words"  # the record of a masked reply, and its only array
FIGURES = tuple(sorted(set(ALL["train"]) - {EPSILON}))  # ε is each site's own, and sent beside the sum
# What a site answers in such a study. A handshake is not masked: it has no figures of patients.
ANSWERED: tuple[Kind, ...] = (HANDSHAKE, "train", *SUMMED)
# Of one hospital, in the number by which answers are divided. With a larger number, only what a large hospital answers
# would be left after rounding.
MOST_PATIENTS = 400_000
_ORDER: tuple[Kind, ...] = ("evaluate.embed", "evaluate.calibrate", "evaluate.test")


def round_of(kind: Kind, rounds: int) -> int:
    """Return the number of the masked round in which a question is answered, after the study's last round.

    Questions have a fixed order: a gateway that has begun a later one answers nothing about an earlier one.
    """
    return rounds + 1 + _ORDER.index(kind)
