"""What a gateway notes in its ledger about masked rounds, after the word "masked: ".

From these lines the gateway's memory is rebuilt after its folder was lost (`federation.gateway.masked_memory`).
"""

import re

CHANGED, MAY_REVEAL = "hospitals of the sum changed", "sum may be revealed"
_SUMMED = re.compile(r"([a-z.]{1,40})( with figures)? over ([0-9a-f]{64})")


def summed_over(kind: str, hospitals: str, *, figures: bool) -> str:
    """Return the note that a sum of this kind was signed. `hospitals`: their `hospitals_digest`.

    `figures`: whether figures or answers are in the sum, and not an update alone.
    """
    return f"{kind}{' with figures' if figures else ''} over {hospitals}"


def read_summed(note: str) -> tuple[str, str, bool] | None:
    """Return kind, hospitals and figures of a note that `summed_over` made; None for any other note."""
    found = _SUMMED.fullmatch(note)
    return (found[1], found[3], found[2] is not None) if found else None
