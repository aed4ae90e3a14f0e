"""What a gateway notes in its ledger about masked rounds, after the word "masked: ".

From these lines the gateway's memory is rebuilt after its folder was lost (`federation.gateway.masked_memory`).
"""

import re
from dataclasses import dataclass

CHANGED, MAY_REVEAL = "hospitals of the sum changed", "sum may be revealed"
_SUMMED = re.compile(r"([a-z.]{1,40})( with figures)? over ([0-9a-f]{64}), study ([0-9a-f]{64})")


@dataclass(frozen=True)
class Signed:
    """A sum whose list of replies was signed. Fields: see `summed_over`."""

    kind: str
    hospitals: str
    study: str
    figures: bool


def summed_over(kind: str, hospitals: str, *, study: str, figures: bool) -> str:
    """Return the note that a sum of this kind was signed. `hospitals`: their `hospitals_digest`.

    `study`: the digest of the run's study. `figures`: whether figures or answers are in the sum, not an update alone.
    """
    return f"{kind}{' with figures' if figures else ''} over {hospitals}, study {study}"


def read_summed(note: str) -> Signed | None:
    """Return what a note that `summed_over` made says; None for any other note."""
    found = _SUMMED.fullmatch(note)
    return Signed(found[1], found[3], found[4], found[2] is not None) if found else None
