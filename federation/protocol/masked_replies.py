"""The names in a masked reply to a round of training, and the figures that are summed with it."""

from federation.protocol.metric_allowlist import EPSILON
from federation.protocol.metric_allowlist import FIGURES as ALL

MASKED, WORDS = "masked", "words"  # the record of a masked reply, and its only array
FIGURES = tuple(sorted(set(ALL["train"]) - {EPSILON}))  # ε is a site's own; private studies are not masked
